"""Prices are measured whatever room a context has, and in a time that does not grow with what nobody will draft."""

import itertools
import math

import pytest
import torch

from specquant.decoding import pricing
from specquant.decoding.budget import ConfidenceMap
from specquant.decoding.pricing import MOST_TIMED, REPEATS, Times, measured_prices
from specquant.errors import SpecquantError
from tests.decoding.conftest import random_head, random_model


def prices(context_length: int, iterations: int, top_k: int = 4):
    model = random_model(context_length=context_length)
    return measured_prices(model, random_head(model), iterations, top_k, 37, ConfidenceMap())


@pytest.mark.parametrize("context_length", [3, 7, 12, 33, 96])
def test_short_contexts_have_prices_of_what_fits_them(context_length):
    told = prices(context_length, 6)
    assert len(told.draft_ms) == min(6, context_length - 2)
    assert all(map(math.isfinite, (*told.verify_ms.values(), *told.draft_ms)))


@pytest.mark.parametrize("context_length", [1, 2])
def test_a_context_without_room_for_a_draft_is_refused(context_length):
    """A prompt's token and the first new one fill two positions."""
    with pytest.raises(SpecquantError, match=f"the context is {context_length}: there is no room for a draft; give"):
        prices(context_length, 6)


@pytest.mark.parametrize(("iterations", "top_k"), [(9, 2), (15, 1)])
def test_trees_that_only_more_iterations_grow_are_priced(iterations, top_k):
    """Those that are timed are too few for the largest tree."""
    told = prices(96, iterations, top_k)
    assert len(told.draft_ms) == iterations
    assert max(told.verify_ms) <= 1 + top_k + (iterations - 1) * top_k**2


def test_of_many_iterations_only_the_first_are_timed(monkeypatch):
    """Each behind a pass of another size, while there are any."""
    times = iter(range(1, 100))
    monkeypatch.setattr(pricing, "_settled", lambda *_: Times(float(next(times)), 0.5))
    told = prices(96, 60)
    assert next(times) == 1 + MOST_TIMED + 1  # decoding one by one, and the steps
    assert [*told.draft_ms] == [float(1 + count) for count in range(1, 61)]
    assert len(told.verify_ms) <= MOST_TIMED
    assert {*told.verify_ms.values()} == {0.5}


def test_a_gpu_is_brought_into_the_state_of_decoding_first(monkeypatch):
    """By the steps themselves, for as long as that takes."""
    clock = itertools.count()
    monkeypatch.setattr(pricing, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(pricing, "SETTLE_S", 3)
    steps = iter([Times(100.0, 100.0)] * 3 + [Times(float(n), 2.0 * n) for n in range(1, 100)])
    taken = pricing._settled(lambda: next(steps), torch.device("cuda"))
    assert taken == (1 + REPEATS // 2, 2 * (1 + REPEATS // 2))
    assert pricing._settled(lambda: next(steps), torch.device("cpu"))[0] == REPEATS + 1 + 1 + REPEATS // 2


def test_a_step_is_timed_as_decoding_takes_it(monkeypatch):
    """With all that follows the pass, behind the same prompt, however much the last one accepted."""
    taken = []

    def settled(step, device):
        times = [step() for _ in range(3)]
        taken.append(times)
        return times[-1]

    lengths = []
    original = pricing.Speculator.step

    def recorded(self, limit):
        lengths.append((self.cache.length, len(self.tokens)))
        step = original(self, limit)
        assert step.other_ms > 0
        steps.append(step)
        return step

    steps = []
    monkeypatch.setattr(pricing, "_settled", settled)
    monkeypatch.setattr(pricing.Speculator, "step", recorded)
    told = prices(96, 4)
    assert set(lengths) == {(32, 33)}
    assert [len(step.tree) for step in steps[::3]] == [1, 8, 16, 24, 32, 48]
    assert [times.verify_ms for times in taken[0]] == [step.verify_ms + step.other_ms for step in steps[:3]]
    assert told.verify_ms[1] == taken[0][-1].verify_ms
