"""Passes of several processes, and how much of their difference is what the host takes to launch them."""

import pandas as pd
import pytest

from specquant.study import launching
from specquant.study.launching import (
    SHOWN,
    draw_launching,
    from_the_mean,
    growths_apart,
    numbers,
    processes_apart,
    recordings_apart,
    without_launching,
)

COLUMNS = ["apart_ms", "launch_apart_ms", "left_ms"]


def recorded(launches_us: dict[int, float | None], slower_ms: float = 0.0, schemes=("fp16", "w8a8", "w4a16-g128")):
    """Passes of two sizes in some processes: what the host takes is in the time, and `slower_ms` is of the last one."""
    return pd.DataFrame(
        {"model": "llama-3-8b", "scheme": scheme, "weights": "synthetic", "context_length": 512, "draft_size": size}
        | {"process": process, "time_ms": 2 * (1 + size / 60) + (us or 0) / 1e3 + slower_ms * (process == 2)}
        | {"launch_us": us, "protocol": "blocks"}
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


def test_one_process_alone_is_not_apart_from_others():
    """Not apart by 0 ms, which would be told as agreement. A table that was gone on with has it in its newer rows."""
    rows = recorded({0: None, 1: None, 2: 60.0})
    assert without_launching(rows).process.unique().tolist() == [2]
    assert processes_apart(rows).empty


def test_the_time_of_each_row_is_less_what_the_host_took():
    rows = recorded({0: 150.0, 1: 60.0})
    assert without_launching(rows).time_ms.tolist() == pytest.approx((2 * (1 + rows.draft_size / 60)).tolist())


def test_a_pass_is_longer_than_the_mean_by_its_launch_and_by_what_else_took_longer():
    """Both in microseconds. A row without launching is in no mean."""
    rows = recorded({0: 100.0, 1: 160.0, 2: 70.0, 3: None}, slower_ms=0.03, schemes=("fp16",))
    told = from_the_mean(rows[rows.draft_size == 60]).set_index("process")
    assert told.index.tolist() == [0, 1, 2]
    assert told.launched_longer_us.tolist() == pytest.approx([-10, 50, -40])
    assert told.longer_us.tolist() == pytest.approx([-20, 40, -20])


def test_growths_of_processes_that_differ_by_the_host_agree_without_launching():
    """A pass of one token takes 2.033 ms and one of 60 tokens 4 ms, and each longer by its launch."""
    rows = recorded({0: 200.0, 1: 100.0}, schemes=("fp16",))
    one_ms = 2 * (1 + 1 / 60)
    told = growths_apart(rows).loc["fp16"]
    assert told["as it is"] == pytest.approx(100 * (4.1 / (one_ms + 0.1) / (4.2 / (one_ms + 0.2)) - 1))
    assert told["without launching"] == pytest.approx(0, abs=1e-9)


@pytest.fixture
def tables(monkeypatch):
    """Sets what the two recordings are."""

    def put(first: pd.DataFrame, second: pd.DataFrame) -> None:
        known = {launching.FIRST: first, launching.TABLE: second}
        monkeypatch.setattr(launching, "read_results", known.__getitem__)

    return put


def test_two_recordings_are_compared_where_both_have_as_many_processes(tables):
    first, second = (recorded({0: us, 1: us, 2: us}, schemes=("fp16", "w8a8")) for us in (0.0, 100.0))
    tables(first[(first.scheme == "fp16") | (first.process == 0)], second)
    told = recordings_apart(second)
    assert told.index.tolist() == ["fp16"]
    one_ms = 2 * (1 + 1 / 60)
    assert told["fp16"] == pytest.approx(100 * ((4 / one_ms) / (4.1 / (one_ms + 0.1)) - 1))


def test_numbers_have_the_names_of_their_marks(tables):
    rows = recorded({0: 150.0, 1: 60.0, 2: 55.0})
    tables(pd.concat([rows, recorded({0: 300.0}).assign(model="llama-3-70b")]), rows)
    known = numbers()
    assert known["processes of 8b apart, 1 tokens, ms"] == pytest.approx(0.095)
    assert known["processes of 8b apart, 60 tokens, launching, ms"] == pytest.approx(0.095)
    assert known["processes of 8b apart, 60 tokens, without launching, ms"] == pytest.approx(0.0)
    assert (known["launching of 8b us, least"], known["launching of 8b us, most"]) == (55, 150)
    assert known["a us of launching, us"] == pytest.approx(1)
    assert known["a us of launching, correlation"] == pytest.approx(1)
    assert known["growths of 8b launched"] == known["growths of 8b launched, without launching, within 2%"] == 3
    assert known["growths of 8b launched, as it is, within 2%"] == 0
    assert known["recordings of 8b"] == known["recordings of 8b within 2%"] == 3
    assert known["recordings of 8b apart, most %"] == 0
    assert known["launching of 8b, most %"] == pytest.approx(100 * 0.15 / (2 * (1 + 1 / 60) + 0.15))
    assert known["launching of 70b, most %"] == pytest.approx(100 * 0.3 / (2 * (1 + 1 / 60) + 0.3))


def test_marks_of_a_size_stand_where_its_passes_are():
    longer = from_the_mean(recorded({0: 150.0, 1: 60.0, 2: 55.0}))
    (axis,) = draw_launching(longer).axes
    shown = {line.get_label(): line for line in axis.lines}
    for size, label, *_ in SHOWN:
        of = longer[longer.draft_size == size]
        assert shown[label].get_xdata().tolist() == of.launched_longer_us.tolist()
        assert shown[label].get_ydata().tolist() == of.longer_us.tolist()
