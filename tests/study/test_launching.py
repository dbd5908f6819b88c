"""Passes of several processes, and how much of their difference is what the host takes to launch them."""

import pandas as pd
import pytest

from specquant.study.launching import numbers, processes_apart, without_launching

COLUMNS = ["apart_ms", "launch_apart_ms", "left_ms"]


def recorded(launches_us: dict[int, float | None], slower_ms: float = 0.0, schemes=("fp16", "w8a8", "w4a16-g128")):
    """Passes of two sizes in some processes: what the host takes is in the time, and `slower_ms` is of the last one."""
    return pd.DataFrame(
        {"model": "llama-3-8b", "scheme": scheme, "weights": "synthetic", "context_length": 512, "draft_size": size}
        | {"process": process, "time_ms": 2 * (1 + size / 60) + (us or 0) / 1e3 + slower_ms * (process == 2)}
        | {"launch_us": us}
        for scheme in schemes
        for size in (1, 60)
        for process, us in launches_us.items()
    )


def test_processes_that_differ_by_the_host_do_not_differ_without_launching():
    told = processes_apart(recorded({0: 150.0, 1: 60.0, 2: 55.0}))
    assert told.index.tolist() == [("llama-3-8b", 1), ("llama-3-8b", 60)]
    for _, row in told.iterrows():
        assert row[COLUMNS].tolist() == pytest.approx([0.095, 0.095, 0.0])


def test_what_is_not_the_host_s_is_left():
    told = processes_apart(recorded({0: 60.0, 1: 60.0, 2: 60.0}, slower_ms=0.09))
    assert told.loc[("llama-3-8b", 60), COLUMNS].tolist() == pytest.approx([0.09, 0.0, 0.09])


def test_what_one_scheme_alone_does_does_not_count():
    rows = recorded({0: 60.0, 1: 60.0, 2: 60.0})
    rows.loc[(rows.scheme == "fp16") & (rows.process == 2), "launch_us"] += 500
    assert processes_apart(rows).launch_apart_ms.tolist() == pytest.approx([0.0, 0.0])


def test_a_table_that_does_not_say_how_long_the_host_took_says_nothing():
    rows = recorded({0: 60.0, 1: 60.0, 2: 60.0}).drop(columns="launch_us")
    assert without_launching(rows).empty
    assert processes_apart(rows).empty
    assert numbers(rows) == {}


def test_one_process_alone_is_not_apart_from_others():
    """Not apart by 0 ms, which would be told as agreement. A table that was gone on with has it in its newer rows."""
    rows = recorded({0: None, 1: None, 2: 60.0})
    assert without_launching(rows).process.unique().tolist() == [2]
    assert processes_apart(rows).empty


def test_the_time_of_each_row_is_less_what_the_host_took():
    rows = recorded({0: 150.0, 1: 60.0})
    assert without_launching(rows).time_ms.tolist() == pytest.approx((2 * (1 + rows.draft_size / 60)).tolist())


def test_numbers_have_the_names_of_their_marks():
    known = numbers(recorded({0: 150.0, 1: 60.0, 2: 55.0}))
    assert known["processes of 8b apart, 1 tokens, ms"] == pytest.approx(0.095)
    assert known["processes of 8b apart, 60 tokens, launching, ms"] == pytest.approx(0.095)
    assert known["processes of 8b apart, 60 tokens, without launching, ms"] == pytest.approx(0.0)
