"""Blocks: each thing after itself, warmed up, in an order that is drawn."""

import random

import torch

from specquant.measure import blocks
from specquant.measure.blocks import Blocks, in_blocks

CPU = torch.device("cpu")


def test_a_block_holds_one_thing_alone_and_its_warm_up_is_not_timed(monkeypatch):
    ran, clock = [], iter(range(10_000))
    monkeypatch.setattr(blocks, "perf_counter", lambda: next(clock))
    runs = {name: lambda name=name: ran.append(name) for name in "abc"}
    rows = in_blocks(runs, CPU, Blocks(count=2, repeats=3, warm_ups=2, warm_up_ms=0), random.Random(0))
    assert len(ran) == 3 * 2 * (2 + 3)
    assert [ran[at : at + 5] for at in range(0, 30, 5)] == [[what] * 5 for what in rows.what]
    assert sorted(zip(rows.what, rows.block, strict=True)) == [(what, block) for what in "abc" for block in (0, 1)]
    assert rows.place.tolist() == list(range(6))
    assert (rows.time_ms == 1e3).all()  # each run lies between two readings of the clock
    assert rows.repeats.unique().tolist() == [3]


def test_warming_up_lasts_as_long_as_asked_for(monkeypatch):
    ran, clock = [], iter(range(10_000))
    monkeypatch.setattr(blocks, "perf_counter", lambda: next(clock))  # a second passes between two readings
    in_blocks({"a": lambda: ran.append("a")}, CPU, Blocks(1, 1, 2, warm_up_ms=10_000), random.Random(0))
    assert len(ran) - 1 >= 9


def test_the_order_is_drawn_anew_for_every_process():
    runs = dict.fromkeys(range(12), lambda: None)
    orders = [in_blocks(runs, CPU, Blocks(1, 1, 1, 0), random.Random(f"0 {process}")).what for process in (0, 1)]
    assert orders[0].tolist() != orders[1].tolist()
    assert orders[0].tolist() != sorted(orders[0])
    again = in_blocks(runs, CPU, Blocks(1, 1, 1, 0), random.Random("0 0")).what
    assert again.tolist() == orders[0].tolist()


def test_on_a_cpu_there_is_no_clock_or_power_to_tell():
    rows = in_blocks({"a": lambda: None}, CPU, Blocks(1, 1, 1, 0), random.Random(0))
    assert rows[["clock_mhz", "power_w"]].isna().all(axis=None)
    assert blocks.time_ms(lambda: None, CPU) >= 0
