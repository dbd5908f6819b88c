"""Predictions against what the decoder does when acceptance is replayed, and against sums done by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from specquant.decoding import EagleDrafter, Speculator
from specquant.decoding.drafters.replay import ReplayedTrees
from specquant.decoding.method import Plan
from specquant.decoding.replay import Replay
from specquant.errors import SpecquantError
from specquant.planning.acceptance import Chances
from specquant.planning.planner import Planner, faster_heads, fastest
from tests.decoding.conftest import random_head, random_model
from tests.planning.conftest import BOTH, SHAPES, TARGET

CHANCES = Chances(head=[0.9, 0.6], inner_head=[0.8, 0.7, 0.5], agreement=0.85)
STATISTICS = BOTH.statistics(CHANCES)


def test_autoregressive_decoding_is_a_pass_a_token(planner):
    row = planner.predict(Plan("autoregressive"), STATISTICS)
    assert row["tokens_per_s"] == pytest.approx(1e3 / 10.5)


def test_eagle2_by_hand(planner):
    row = planner.predict(Plan("eagle2", 7, 3), STATISTICS)
    accepted = 1 + 0.9 + 0.9 * 0.6 + (2 / 3) * 0.9 * 0.6 * 0.6
    assert row["accepted_length"] == pytest.approx(accepted)
    assert row["tokens_per_s"] == pytest.approx(1e3 * accepted / (3 + 16 + 0.5))


def test_vanilla_by_hand(planner):
    """A token a round; after a whole draft, which 0.85 ** 4 of the steps accept, the first round runs two tokens."""
    row = planner.predict(Plan("vanilla", min_draft_length=4), STATISTICS)
    assert row["accepted_length"] == pytest.approx(sum(0.85**i for i in range(5)))
    assert row["draft_ms"] == pytest.approx(4 * 2.25 + 0.85**4 * 0.5)
    assert row["verify_ms"] == pytest.approx(14.0)
    assert row["inner_rounds"] == pytest.approx(4)


@pytest.mark.parametrize("least", [1, 6])
@pytest.mark.parametrize("agreement", [0.6, 1.0])
def test_the_decoder_does_what_is_predicted(planner, least, agreement):
    chances = Chances(CHANCES.head, CHANCES.inner_head, agreement)
    predicted = planner.predict(Plan("hierarchical", 7, 3, least), BOTH.statistics(chances))
    size = {"hidden_size": 64, "layers": 1, "context_length": 400}
    small = random_model(seed=5, **size)
    shapes = [[int(parent) for parent in shape.split()] for shape in SHAPES]
    drafter = ReplayedTrees(EagleDrafter(random_head(small), 7, 3, 3), shapes, "cpu")
    decoder = Speculator(random_model(**size), Speculator(small, drafter, least))
    steps = []
    rule = Replay(chances.inner_head, agreement, seed=3)
    for _ in range(8):
        decoder.prefill([1, 2, 3], rule)
        steps += [decoder.step(40) for _ in range(40)][5:]
    assert np.mean([step.accepted_length for step in steps]) == pytest.approx(predicted["accepted_length"], rel=0.08)
    assert np.mean([len(step.tree) for step in steps]) == pytest.approx(predicted["mean_draft_size"], rel=0.05)
    rounds = np.mean([len(step.inner_accepted_lengths) for step in steps])
    assert rounds == pytest.approx(predicted["inner_rounds"], rel=0.08)


def test_the_best_plan_is_the_fastest_of_the_table(planner):
    table = planner.table(STATISTICS)
    assert table.tokens_per_s.is_monotonic_decreasing
    assert set(table.method) == {"autoregressive", "vanilla", "eagle2", "hierarchical"}
    best = planner.best(STATISTICS)
    assert (best.method, best.draft_size) == tuple(table.iloc[0][["method", "draft_size"]])
    nothing = BOTH.statistics(Chances([0.0], [0.0], 0.0))
    assert planner.best(nothing) == Plan("autoregressive")


def test_of_given_plans_alone_is_the_best(planner):
    given = [Plan("autoregressive"), Plan("vanilla", min_draft_length=2)]
    assert set(planner.table(STATISTICS, given)["method"]) == {"autoregressive", "vanilla"}
    assert planner.best(STATISTICS, given[:1]) == given[0] != planner.best(STATISTICS)


def test_of_a_table_the_first_rows_and_each_method_s_fastest_are_told():
    table = pd.DataFrame({"method": ["a", "a", "a", "b", "b"], "row": range(5)})
    assert fastest(table, 2).row.tolist() == [0, 1, 3]


def test_plans_whose_passes_were_not_measured_are_left_out(planner):
    """The target's passes were measured up to 16 tokens; a round in the hierarchy adds up to four."""
    plans = planner.plans(STATISTICS, (12, 15, 16))
    assert [plan.min_draft_length for plan in plans if plan.method == "vanilla"] == [12, 15]
    assert [plan.min_draft_length for plan in plans if plan.method == "hierarchical"] == [12]
    for plan in plans:
        planner.predict(plan, STATISTICS)


def test_what_was_not_measured_is_refused(planner):
    for plan, sentence in (
        (Plan("eagle2", 60, 6), "no trees of 60 nodes and 6 iterations"),
        (Plan("magic"), "unknown method 'magic'"),
        (Plan("vanilla", min_draft_length=20), "a pass over 21 tokens was not measured, only over 1 to 16"),
    ):
        with pytest.raises(SpecquantError, match=sentence):
            planner.predict(plan, STATISTICS)
    with pytest.raises(SpecquantError, match="needs the costs of an intermediate model"):
        Planner(TARGET).predict(Plan("vanilla", min_draft_length=4), STATISTICS)


@pytest.mark.parametrize(("draft_ms", "gain"), [(3.0, None), (2.95, None), (1.0, 19.5 / 17.5), (5.0, None)])
def test_other_heads_are_told_where_the_fastest_plan_gains_by_them(draft_ms, gain):
    def table(costs):
        return Planner(costs).table(STATISTICS, [Plan("autoregressive"), Plan("eagle2", 7, 3)])

    others = table(replace(TARGET, draft_ms=pd.Series({3: draft_ms})))
    told = faster_heads({"fp16": table(TARGET), "w4a16-g128": others})
    assert told == (gain and ("w4a16-g128", pytest.approx(others.tokens_per_s.max()), pytest.approx(gain)))
    assert faster_heads({"w8a8": table(TARGET), "fp16": others}) == (told and ("fp16", *told[1:]))


def test_plans_that_only_other_heads_have_do_not_count():
    ours = Planner(TARGET).table(STATISTICS, [Plan("autoregressive")])
    theirs = Planner(TARGET).table(STATISTICS, [Plan("autoregressive"), Plan("eagle2", 7, 3)])
    assert faster_heads({"fp16": ours, "w4a16-g128": theirs}) is None
