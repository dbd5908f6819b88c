"""The state of a GPU is what NVML reads meanwhile; without one there is none."""

import math
from time import perf_counter, sleep
from types import SimpleNamespace

import pytest
import torch

from specquant.measure.card import CardState


class NVML:
    """What is read of a driver: a clock that grows by 100 MHz each time, and fails once; a power of 500 W."""

    NVML_CLOCK_SM, NVML_FI_DEV_POWER_INSTANT = "sm", "power"

    class NVMLError(Exception):
        pass

    def __init__(self):
        self.reads = 0

    def nvmlDeviceGetClockInfo(self, handle, clock):
        assert (handle, clock) == ("card", "sm")
        self.reads += 1
        if self.reads == 2:
            raise self.NVMLError
        return 1000 + 100 * self.reads

    def nvmlDeviceGetFieldValues(self, handle, fields):
        assert (handle, fields) == ("card", ["power"])
        return [SimpleNamespace(value=SimpleNamespace(uiVal=500_000))]


@pytest.fixture
def state():
    """Of a card with such a driver, sampled at least four times."""
    state = CardState(torch.device("cpu"))
    state._nvml, state._handle = NVML(), "card"
    with state:
        while state._nvml.reads < 5:
            sleep(0.001)
    return state


def test_on_a_cpu_there_is_none():
    with CardState(torch.device("cpu")) as state:
        pass
    assert all(map(math.isnan, state.mean().values()))
    assert [list(map(math.isnan, values)) for values in state.at([0.0, 1.0]).values()] == [[True, True]] * 2


def test_means_are_of_all_samples_that_could_be_read(state):
    clocks = [1000 + 100 * read for read in range(1, state._nvml.reads + 1) if read != 2]
    assert state.mean() == {"clock_mhz": pytest.approx(sum(clocks) / len(clocks)), "power_w": 500.0}


def test_between_samples_the_state_lies_on_a_line(state):
    (first, low, _), (second, high, _) = state._samples[1:3]
    at = state.at([first, (first + second) / 2, perf_counter() + 100])
    assert at["clock_mhz"][:2] == pytest.approx([low, (low + high) / 2])
    assert at["clock_mhz"][2] == state._samples[-1][1]
    assert list(at["power_w"]) == [500.0] * 3
