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


@pytest.fixture
def on_a_card(monkeypatch):
    """A card that is not there: the host launches a run within `launch_us`, then the card works for 1,800 us. Returns
    the run."""
    now, busy_until, events = [0.0], [0.0], []

    class Event:
        def __init__(self, **_):
            events.append(self)

        def record(self):
            self.at = max(now[0], busy_until[0])

        def synchronize(self):
            now[0] = max(now[0], self.at)

        def elapsed_time(self, other):
            return 1e3 * (other.at - self.at)

    monkeypatch.setattr(blocks, "perf_counter", lambda: now[0])
    monkeypatch.setattr(blocks, "CardState", lambda _: CardState(CPU))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: now.__setitem__(0, max(now[0], busy_until[0])))
    monkeypatch.setattr(torch.cuda, "Event", Event)

    def run(launch_us):
        now[0] += launch_us / 1e6
        busy_until[0] = now[0] + 1800e-6

    return run


def test_beside_a_pass_stands_how_long_the_host_took_to_launch_it(on_a_card):
    """The median of the block: here of 60, 50 and 150 us behind a warm-up. From an idle card on a pass is as much
    longer, by either clock."""
    card = torch.device("cuda")
    for clock in (blocks.host_time, blocks.device_time):
        took_us = iter([500, 60, 50, 150])
        runs = {1: lambda took_us=took_us: on_a_card(next(took_us))}
        (row,) = in_blocks(runs, card, Blocks(1, 3, 1, 0), random.Random(0), clock).itertuples()
        assert row.launch_us == pytest.approx(60)
        assert row.time_ms == pytest.approx(1.86)


def test_a_launch_alone_has_its_share_of_what_the_host_takes(on_a_card, monkeypatch):
    monkeypatch.setattr(blocks, "repeated", lambda launch, turns, _: (lambda: launch(0), 10 * turns))
    launches = {8: (lambda _: on_a_card(50), 4)}
    (row,) = launches_in_blocks(launches, torch.device("cuda"), Blocks(1, 3, 1, 0), random.Random(0)).itertuples()
    assert row.launch_us == pytest.approx(50 / 40)
    assert row.time_us == pytest.approx(1850 / 40)


def test_launches_alone_rest_and_whole_passes_do_not():
    for module in (kernels, peers, attention):
        assert module.Parameters().block.rest_over_run == 2
        assert module.Parameters(device="cpu").same()["rest_over_run"] == 2
    assert verify_cost.Parameters("llama-3-8b").block.rest_over_run == 0
    assert drafting.Parameters().block.rest_over_run == 0


def test_rates_of_a_card_are_taken_with_rests_as_products_are(monkeypatch):
    rested = []
    monkeypatch.setattr(blocks, "sleep", rested.append)
    times = blocks.replay_times_us(lambda _: None, 4, 3, "cpu", ceilings.Parameters().rest_over_run)
    assert len(times) == len(rested) == 3
    assert ceilings.Parameters(device="cpu").same()["rest_over_run"] == kernels.Parameters().rest_over_run


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
