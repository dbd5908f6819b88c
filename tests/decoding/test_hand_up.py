"""A price for what is handed up: rounds that pay are made, and no token differs."""

import numpy as np
import pytest
import torch

from specquant.decoding import EagleDrafter, Greedy, Sampling, Speculator
from specquant.decoding.hand_up import FEWEST_STEPS, FIRST, MOST, HandUp
from specquant.models.options import ADAPTIVE
from tests.decoding.conftest import perturbed, random_head, random_model, taken, tokens_of
from tests.decoding.test_speculator import VOCABULARY, assert_targets_joint_distribution

PROMPT = [3, 14, 15, 9, 26, 5]
TARGET_MS = 13.0  # of 70B in W4A16 on an H200, about; a round of 8B takes 2.5


def decoded(texts, round_ms, least=None):
    """Tokens per millisecond where each text is the probabilities of tokens to draft, and whether each is accepted.
    least: tokens that are always handed up; None where the price decides."""
    hand_up, tokens, time_ms = HandUp(), 0.0, 0.0
    for probabilities, agrees in texts:
        count = 1
        while count < len(agrees) and (count < least if least else hand_up.goes_on(probabilities[:count])):
            count += 1
        accepted = int(np.argmin([*agrees[:count], False]))
        step_ms = TARGET_MS + count * round_ms
        hand_up.learn(probabilities[:count], accepted, [round_ms] * count, step_ms)
        tokens, time_ms = tokens + 1 + accepted, time_ms + step_ms
    return tokens / time_ms


@pytest.mark.parametrize("shift", [0.0, 0.3])
@pytest.mark.parametrize("round_ms", [0.5, 2.5, 8.0])
def test_it_is_about_as_fast_as_the_best_length_and_faster_where_probabilities_tell(shift, round_ms):
    """Also where they are wrong: the target agrees less often than they say."""
    draw = np.random.default_rng(0)
    probabilities = draw.choice([0.4, 0.75, 0.97, 0.995], size=(600, MOST), p=[0.15, 0.15, 0.3, 0.4])
    agrees = draw.random(probabilities.shape) < probabilities - shift
    texts = list(zip(probabilities.tolist(), agrees.tolist(), strict=True))
    static = [decoded(texts, round_ms, least) for least in range(1, MOST + 1)]
    assert decoded(texts, round_ms) > (1.05 if (round_ms, shift) == (2.5, 0.0) else 0.97) * max(static)


def test_chances_are_what_came_of_such_probabilities():
    hand_up = HandUp()
    assert hand_up.chances([0.1, 0.85, 1.0]) == pytest.approx([0.15, 0.85, 0.995])
    for _ in range(1000):
        hand_up.learn([0.85, 0.97, 0.1], 1, [1.0], 10.0)  # the second is refused, the third is not judged
    assert hand_up.chances([0.85, 0.97, 0.1]) == pytest.approx([1.0, 0.0, 0.15], abs=0.01)


def test_before_times_are_known_it_hands_up_as_the_paper_does():
    hand_up = HandUp()
    for _ in range(FEWEST_STEPS):
        assert [hand_up.goes_on([0.9] * n) for n in (1, FIRST - 1, FIRST)] == [True, True, False]
        hand_up.learn([0.9] * FIRST, FIRST, [0.001], 1e6)
    assert hand_up.goes_on([0.9] * (MOST - 1))
    assert not hand_up.goes_on([0.9] * MOST)


@pytest.mark.parametrize("rule", [Greedy, lambda: Sampling(1.0, seed=5)], ids=["greedy", "sampling"])
@pytest.mark.parametrize("with_head", [False, True])
def test_no_token_differs(rule, with_head):
    """Greedily. Samples follow the same distribution, for no draw decides about itself; they end within the limit."""
    target, small = random_model(), random_model(seed=3)
    below = EagleDrafter(random_head(small), 8, 2, 4) if with_head else None
    inner = Speculator(small, below, ADAPTIVE)
    steps = taken(Speculator(target, inner), PROMPT, 60, rule())
    assert len(tokens_of(steps)) == 60
    if rule is Greedy:
        assert tokens_of(steps) == tokens_of(taken(Speculator(target), PROMPT, 60, Greedy()))
    assert sum(inner.hand_up._counts[1]) > 40  # it learned from them
    assert max(len(step.tree) for step in steps) <= MOST + 4


@pytest.mark.parametrize("rule", ["time", "the draft itself"])
@pytest.mark.parametrize("with_head", [False, True])
def test_sampling_has_the_targets_joint_distribution(with_head, rule):
    """Also where a drafted token decides whether another round follows, which no price makes as strong."""
    target = random_model(VOCABULARY, layers=1, seed=7, scale=0.3, context_length=16)
    small = perturbed(target, 0.3, seed=8)
    inner = Speculator(small, EagleDrafter(random_head(small), 5, 2, 2) if with_head else None, ADAPTIVE)
    lengths = set()
    goes_on = inner.hand_up.goes_on if rule == "time" else lambda probabilities: probabilities[-1] > 0.2

    def noted(probabilities):
        lengths.add(len(probabilities))
        return goes_on(probabilities)

    inner.hand_up.goes_on = noted
    assert_targets_joint_distribution(target, Speculator(target, inner), draws=600)
    assert len(lengths) > 2


def test_what_is_learned_is_what_happened():
    """A model that drafts for itself: every token is accepted. Rounds take a part of the time of a step."""
    model = random_model()
    inner = Speculator(model, None, ADAPTIVE)
    told = []
    learn = inner.hand_up.learn
    inner.hand_up.learn = lambda *what: (told.append(what), learn(*what))
    steps = taken(Speculator(model, inner), PROMPT, 30, Greedy())
    drafted = [step for step in steps[1:] if len(step.tree) > 1]
    for (probabilities, accepted, rounds_ms, step_ms), step in zip(told, drafted, strict=True):
        assert accepted == len(step.path) == len(probabilities) == len(step.tree) - 1
        assert len(rounds_ms) == len(step.rounds)
        assert 0 < sum(rounds_ms) < step_ms
        assert all(0 < p <= 1 for p in probabilities)


def test_a_small_model_s_probabilities_are_its_softmax():
    model = random_model()
    inner = Speculator(model, None, ADAPTIVE)
    inner.start(PROMPT, None, Greedy())
    (drafted,) = inner.propose(1).tokens[1:].tolist()
    logits = model.logits(model.prefill(torch.tensor(PROMPT), model.new_cache(20))[-1])
    assert inner._drafted_with == pytest.approx([logits.float().softmax(-1)[drafted].item()], rel=1e-4)
