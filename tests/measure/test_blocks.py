"""Blocks: each thing after itself, warmed up, in an order that is drawn."""

import random

import pytest
import torch

from specquant.measure import attention, blocks, ceilings, drafting, kernels, peers, verify_cost
from specquant.measure.blocks import Blocks, in_blocks, launches_in_blocks
from specquant.measure.card import CardState

CPU = torch.device("cpu")


def test_a_block_holds_one_thing_alone_and_its_warm_up_is_not_timed(monkeypatch):
    ran = []
    monkeypatch.setattr(blocks, "perf_counter", lambda: len(ran))  # each run takes a second
    runs = {name: lambda name=name: ran.append(name) for name in "abc"}
    rows = in_blocks(runs, CPU, Blocks(count=2, repeats=3, warm_ups=2, warm_up_ms=0), random.Random(0))
    assert len(ran) == 3 * 2 * (2 + 3)
    assert [ran[at : at + 5] for at in range(0, 30, 5)] == [[what] * 5 for what in rows.what]
    assert sorted(zip(rows.what, rows.block, strict=True)) == [(what, block) for what in "abc" for block in (0, 1)]
    assert rows.place.tolist() == list(range(6))
    assert (rows.time_ms == 1e3).all()
    assert rows.repeats.unique().tolist() == [3]


def test_warming_up_lasts_as_long_as_asked_for(monkeypatch):
    ran = []
    monkeypatch.setattr(blocks, "perf_counter", lambda: len(ran))
    in_blocks({"a": lambda: ran.append("a")}, CPU, Blocks(1, 1, 2, warm_up_ms=10_000), random.Random(0))
    assert len(ran) - 1 == 10


@pytest.mark.parametrize(("rest_over_run", "rests"), [(2.0, [2.0] * 5), (0.0, [])])
def test_the_device_rests_behind_each_run_and_rests_are_not_timed(rest_over_run, rests, monkeypatch):
    now, rested = [0.0], []
    monkeypatch.setattr(blocks, "perf_counter", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    monkeypatch.setattr(blocks, "sleep", lambda seconds: (rested.append(seconds), passes(seconds)))
    rows = in_blocks({"a": lambda: passes(1.0)}, CPU, Blocks(1, 3, 2, 0.0, rest_over_run), random.Random(0))
    assert rested == rests
    assert rows[["time_ms", "p10_ms", "p90_ms"]].eq(1e3).all(axis=None)


def test_launches_alone_rest_and_wait_and_whole_passes_do_not():
    for module in (kernels, peers, attention):
        assert (module.Parameters().block.rest_over_run, module.Parameters().block.delay_ms) == (2, 0.5)
        assert module.Parameters(device="cpu").same()["rest_over_run"] == 2
        assert module.Parameters(device="cpu").same()["delay_ms"] == 0.5
        assert module.Parameters(device="cpu").unnamed()["delay_ms"] == 0
    for module in (verify_cost.Parameters("llama-3-8b"), drafting.Parameters()):
        assert (module.block.rest_over_run, module.block.delay_ms) == (0, 0)


def test_rates_of_a_card_are_taken_with_rests_as_products_are(monkeypatch):
    rested = []
    monkeypatch.setattr(blocks, "sleep", rested.append)
    times = blocks.replay_times_us(lambda _: None, 4, 3, "cpu", ceilings.Parameters().rest_over_run)
    assert len(times) == len(rested) == 3
    assert ceilings.Parameters(device="cpu").same()["rest_over_run"] == kernels.Parameters().rest_over_run


def test_times_of_launches_are_of_one_in_microseconds(monkeypatch):
    """A run launches once for each turn; here a launch takes a second, and one of "b" twice as long."""
    now = [0.0]
    monkeypatch.setattr(blocks, "perf_counter", lambda: now[0])

    def launch(takes_s):
        return lambda turn: now.__setitem__(0, now[0] + takes_s)

    launches = {"a": (launch(1.0), 4), "b": (launch(2.0), 3)}
    rows = launches_in_blocks(launches, CPU, Blocks(1, 3, 1, 0), random.Random(0)).set_index("what")
    assert rows.time_us.to_dict() == {"a": 1e6, "b": 2e6}
    assert rows[["time_us", "p10_us", "p90_us"]].nunique(axis=1).eq(1).all()
    assert not {"time_ms", "p10_ms", "p90_ms"} & set(rows.columns)


class Timeline:
    """A GPU and its host in made-up milliseconds: the GPU does one thing after the other, behind what the host asks."""

    def __init__(self, monkeypatch):
        self.host_ms = self.free_ms = 0.0
        timeline = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at_ms = timeline.ask(0.0)

            def query(self):
                return self.at_ms <= timeline.host_ms

            def synchronize(self):
                timeline.host_ms = max(timeline.host_ms, self.at_ms)

            def elapsed_time(self, stop):
                return stop.at_ms - self.at_ms

        monkeypatch.setattr(blocks, "perf_counter", lambda: timeline.host_ms / 1e3)
        monkeypatch.setattr(blocks, "CardState", lambda _: CardState(CPU))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda _: timeline.wait())
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: timeline.ask(cycles / blocks.CYCLES_OF_MS))

    def ask(self, takes_ms):
        """The time at which the GPU has done what it is now asked to do."""
        self.free_ms = max(self.free_ms, self.host_ms) + takes_ms
        return self.free_ms

    def wait(self):
        self.host_ms = max(self.host_ms, self.free_ms)

    def run(self, launch_ms):
        """1.5 ms on the GPU, behind a launch by the host."""
        self.host_ms += launch_ms
        self.ask(1.5)


def test_what_the_host_needs_to_launch_a_run_is_no_part_of_its_time(monkeypatch):
    timeline = Timeline(monkeypatch)
    gpu = torch.device("cuda")
    assert blocks.device_ms(lambda: timeline.run(0.2), gpu, 0.5) == pytest.approx(1.5)
    assert blocks.device_ms(lambda: timeline.run(0.2), gpu) == pytest.approx(1.7)  # launched while the clock ran


def test_a_run_that_was_launched_too_late_is_timed_again_and_at_most_a_few_times(monkeypatch):
    timeline = Timeline(monkeypatch)
    launches_ms = [0.9, 0.7, 0.1, 0.1]
    assert blocks.device_ms(lambda: timeline.run(launches_ms.pop(0)), torch.device("cuda"), 0.5) == pytest.approx(1.5)
    assert launches_ms == [0.1]
    always_late_ms = [0.9] * 9
    assert blocks.device_ms(lambda: timeline.run(always_late_ms.pop()), torch.device("cuda"), 0.5) > 1.5
    assert len(always_late_ms) == 9 - blocks.TRIES


def test_beside_a_pass_stands_how_long_the_host_took_to_launch_it(monkeypatch):
    """The median of the block, behind a warm-up. From an idle card on a pass is as much longer."""
    timeline, launches_ms = Timeline(monkeypatch), iter([0.5, 0.06, 0.05, 0.15])
    runs = {1: lambda: timeline.run(next(launches_ms))}
    (row,) = in_blocks(runs, torch.device("cuda"), Blocks(1, 3, 1, 0), random.Random(0)).itertuples()
    assert row.launch_us == pytest.approx(60)
    assert row.time_ms == pytest.approx(1.56)


def test_the_order_is_drawn_anew_for_every_process():
    runs = dict.fromkeys(range(12), lambda: None)
    orders = [in_blocks(runs, CPU, Blocks(1, 1, 1, 0), random.Random(f"0 {process}")).what for process in (0, 1)]
    assert orders[0].tolist() != orders[1].tolist()
    assert orders[0].tolist() != sorted(orders[0])
    again = in_blocks(runs, CPU, Blocks(1, 1, 1, 0), random.Random("0 0")).what
    assert again.tolist() == orders[0].tolist()


def test_on_a_cpu_there_is_no_clock_power_or_launching_to_tell():
    rows = in_blocks({"a": lambda: None}, CPU, Blocks(1, 1, 1, 0), random.Random(0))
    assert rows[["clock_mhz", "power_w", "launch_us"]].isna().all(axis=None)
    assert blocks.host_time(lambda: None, CPU).ms >= 0


def test_of_many_launches_in_a_run_the_host_s_time_is_not_told():
    launches = {"a": (lambda turn: None, 2)}
    (row,) = blocks.launches_in_blocks(launches, CPU, Blocks(1, 1, 1, 0), random.Random(0)).to_dict("records")
    assert set(row) == {"what", "block", "place", "repeats", "time_us", "p10_us", "p90_us", "clock_mhz", "power_w"}
