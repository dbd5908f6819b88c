"""Fixed drafts that stop while they do not pay: on recorded traces hardly anything is lost, and no token differs."""

import numpy as np
import pytest
import torch

from specquant.decoding import EagleDrafter, Greedy, Speculator
from specquant.decoding.drafters.suffix import SuffixDrafter
from specquant.decoding.method import PLAN_FIELDS, Plan
from specquant.decoding.paying import Pays, WhilePaying
from specquant.decoding.traces import read_traces
from specquant.planning.costs import LevelCosts
from specquant.planning.planner import Planner
from specquant.planning.recorded import RecordedCosts
from specquant.planning.traced_speedups import step_ms
from specquant.planning.traces import of_one_target
from specquant.study.drafters import recorded_table
from specquant.tables.results import read_results
from tests.decoding.conftest import perturbed, random_head, random_model, taken, tokens_of
from tests.decoding.test_speculator import VOCABULARY, assert_targets_joint_distribution

PROMPT = [3, 14, 15, 9, 26, 5]


@pytest.fixture(scope="module")
def recorded():
    """The greedy steps of SmolLM2, by plan and question; and what 70B and 8B in W4A16 take on an H200."""
    rows = of_one_target(read_results(recorded_table("traces")))
    rows = rows.sort_values(["benchmark", "task", "id"], key=lambda column: column.astype(str))
    steps = {Plan(*plan): [*map(read_traces, of_plan.steps)] for plan, of_plan in rows.groupby(list(PLAN_FIELDS))}
    costs = RecordedCosts.read("data/recorded/h200")
    return steps, costs.planner("llama-3-70b", "llama-3-8b", "w4a16-g128", "w4a16-g128")


def dearer(costs: LevelCosts, factor: float, one_ms: float) -> LevelCosts:
    """What is beyond a pass of `one_ms` takes so many times as long."""
    verify_ms = one_ms + factor * (costs.verify_ms - one_ms)
    return LevelCosts(verify_ms, factor * costs.draft_ms, costs.other_ms)


def decoded(steps, plain_ms, calibrated) -> float:
    """The speedup over decoding one by one on a text that is as the traced steps are, each (tokens, ms). A step without
    a draft adds one token; the next draft is that of the step that has the token behind it."""
    first = np.cumsum([0, *(tokens for tokens, _ in steps)])
    pays = Pays(lambda rows: plain_ms if rows == 1 else steps[rows - 2][1], *calibrated)
    place, time_ms = 0, 0.0
    while place < first[-1]:
        number = int(np.searchsorted(first, place, side="right")) - 1
        rows = number + 2 if pays.drafts() else 1
        tokens = steps[number][0] if rows > 1 else 1
        pays.learn(tokens, rows)
        place, time_ms = place + tokens, time_ms + pays.step_ms(rows)
    return place * plain_ms / time_ms


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5, 6, 8])
def test_a_plan_that_paid_on_one_question_loses_at_most_3_percent_on_others(recorded, factor):
    """Chosen on each question in turn, as `--method auto` chooses, and then decoded on eight others, or on a text of
    which nothing is accepted. Passes and drafts cost up to so many times as much as on the H200."""
    steps, costs = recorded
    target = dearer(costs.target, factor, costs.target.verify(1))
    planner, draw = Planner(target, dearer(costs.intermediate, factor, 0.0)), np.random.default_rng(0)
    plain_ms = target.verify(1) + target.other_ms
    static, guarded = [], []
    for plan, questions in steps.items():
        if plan.method == "eagle3":  # no such head was timed
            continue
        told = [[(len(step.path) + 1, step_ms(step, plan, planner)) for step in steps] for steps in questions]
        for calibrating in told:
            calibrated = np.mean(calibrating, axis=0)
            if calibrated[0] * plain_ms <= calibrated[1]:
                continue  # it would not be chosen
            text = [step for number in draw.permutation(len(told))[:8] for step in told[number]]
            for some in (text, 3 * [(1, time_ms) for _, time_ms in text]):
                tokens, time_ms = np.sum(some, axis=0)
                static.append(tokens * plain_ms / time_ms)
                guarded.append(decoded(some, plain_ms, calibrated))
    static, guarded = np.array(static), np.array(guarded)
    assert len(static) >= 48  # lookups pay at every price
    assert static.min() < 0.9  # without stopping more would be lost
    assert guarded.min() > 0.97
    wins = static > 1.05
    assert (guarded / static)[wins].mean() > (0.97 if factor <= 3 else 0.95)


def constant(tokens, draft_ms=1.0):
    return Pays(lambda rows: 10.0 + (draft_ms if rows > 1 else 0.0), tokens, 10.0 + draft_ms)


def test_drafts_end_where_they_lose_and_begin_again_where_they_win():
    pays = constant(2.0, draft_ms=5.0)
    drafts = []
    for accepted in [3] * 30 + [0] * 2000 + [3] * 2000:
        drafts.append(pays.drafts())
        pays.learn(1 + accepted if drafts[-1] else 1, 8 if drafts[-1] else 1)
    assert all(drafts[:30])
    assert np.mean(drafts[500:2030]) < 0.02
    assert np.mean(drafts[-1000:]) > 0.99


def test_a_text_is_judged_by_itself_and_what_drafts_are_worth_is_kept():
    pays = constant(1.2)
    for _ in range(200):
        pays.learn(1, 8 if pays.drafts() else 1)
    assert not pays.drafts()
    lost = pays._gained_ms
    assert -0.03 * pays._time_ms - 2 * 11.0 < lost < 0
    pays.start()
    assert pays._gained_ms == 0
    assert not pays.drafts()


class EverySecond(Pays):
    """Has a draft in every second step, or after some more."""

    def __init__(self, pause=1):
        super().__init__(lambda rows: 1.0, 1.0, 1.0)
        self.pause, self.count = pause, 0

    def drafts(self):
        self.count += 1
        return self.count % (1 + self.pause) == 0


def drafters(model, small, head):
    yield "eagle2", EagleDrafter(head, 12, 3, 4)
    yield "vanilla", Speculator(small, None, 3)
    yield "hierarchical", Speculator(small, EagleDrafter(random_head(small), 8, 2, 4), 3)
    yield "suffix", SuffixDrafter(model.config.vocab_size, model.context_length, model.device)


@pytest.mark.parametrize("pause", [1, 7])
@pytest.mark.parametrize("method", ["eagle2", "vanilla", "hierarchical", "suffix"])
def test_no_token_differs_whichever_steps_have_drafts(method, pause):
    model = random_model()
    small = perturbed(model, 0.02, seed=8)
    expected = tokens_of(taken(Speculator(model), PROMPT, 60, Greedy()))
    drafter = dict(drafters(model, small, random_head(model)))[method]
    steps = taken(Speculator(model, WhilePaying(drafter, EverySecond(pause), model.device)), PROMPT, 60, Greedy())
    assert tokens_of(steps) == expected
    sizes = [len(step.tree) for step in steps[1:]]
    assert sizes[:pause] == [1] * pause
    assert max(sizes) > 1
    assert all(not step.rounds for step in steps[1:] if len(step.tree) == 1)


def test_behind_a_pause_drafts_are_what_they_would_have_been():
    model, pause = random_model(), 7
    head = random_head(model)
    drafter = WhilePaying(EagleDrafter(head, 12, 3, 4), EverySecond(pause), model.device)
    speculator = Speculator(model, drafter)
    steps = taken(speculator, PROMPT, 1 + pause + 4, Greedy())
    late = steps[1 + pause]
    before = [*PROMPT, *(token for step in steps[: 1 + pause] for token in step.tokens)]
    fresh = EagleDrafter(head, 12, 3, 4)
    fresh.start(before, model.prefill(torch.tensor(before[:-1]), model.new_cache(80)), Greedy())
    assert torch.equal(late.tree.tokens, fresh.propose(3).tokens)


@pytest.mark.parametrize("method", ["eagle2", "vanilla"])
def test_sampling_has_the_targets_joint_distribution(method):
    target = random_model(VOCABULARY, layers=1, seed=7, scale=0.3, context_length=16)
    small = perturbed(target, 0.3, seed=8)
    drafter = EagleDrafter(random_head(target), 8, 2, 3) if method == "eagle2" else Speculator(small, None, 2)
    speculator = Speculator(target, WhilePaying(drafter, EverySecond(), target.device))
    assert_targets_joint_distribution(target, speculator, draws=600)
