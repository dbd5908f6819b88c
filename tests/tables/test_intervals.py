"""Intervals over questions are those of the normal approximation where that holds, and none where there is nothing."""

import math

import numpy as np
import pandas as pd
import pytest

from specquant.tables.intervals import (
    apart_percent,
    ends,
    in_each_process,
    in_words,
    over_processes,
    over_questions_with,
    told_with_interval,
)


def test_a_ratio_of_sums_has_the_interval_of_its_mean():
    lengths = np.random.default_rng(1).normal(3, 0.5, 400)
    told = over_questions_with("accepted_length", lengths * 10, np.full(400, 10))
    error = 1.96 * lengths.std() / 20
    assert told["accepted_length"] == pytest.approx(lengths.mean())
    assert told["accepted_length_low"] == pytest.approx(lengths.mean() - error, abs=0.01)
    assert told["accepted_length_high"] == pytest.approx(lengths.mean() + error, abs=0.01)
    assert told == over_questions_with("accepted_length", lengths * 10, np.full(400, 10))


def test_it_is_of_sums_and_questions_without_steps_do_not_count():
    told = over_questions_with("rate", [9, 0, 0], [10, 0, 2])
    assert told["rate"] == 9 / 12
    assert 0 <= told["rate_low"] <= told["rate"] <= told["rate_high"] == 0.9
    assert over_questions_with("rate", [1], [1]) == {"rate": 1, "rate_low": 1, "rate_high": 1}
    assert all(map(math.isnan, over_questions_with("rate", [0, 0], [0, 0]).values()))


def test_a_number_is_told_with_its_interval():
    row = pd.Series({"rate": 0.655, "rate_low": 0.6444, "rate_high": 0.6656})
    assert told_with_interval(row, "rate") == "0.66 (0.64 to 0.67)"
    assert told_with_interval(row, "rate", 1, 100, "%") == "65.5% (64.4 to 66.6)"


def test_ends_are_named():
    assert ends("loss", pd.Series([3.0, 1.0]), " %") == {"loss, least %": 1.0, "loss, most %": 3.0}


def test_processes_are_apart_by_the_highest_over_the_lowest_and_one_alone_is_not():
    places = [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("c", 0), ("c", 1)]
    index = pd.MultiIndex.from_tuples(places, names=["what", "process"])
    told = apart_percent(over_processes(pd.Series([2.0, 2.5, 2.2, 7.0, 4.0, 6.0], index)))
    assert told.to_dict() == pytest.approx({"a": 25, "c": 50})


def test_a_block_that_was_slow_once_moves_neither_its_process_nor_the_median():
    times_ms = [9.0, 1.0, 1.2, 2.0, 2.0, 2.0, 30.0, 31.0, 32.0]
    rows = pd.DataFrame({"what": "a", "process": [0] * 3 + [1] * 3 + [2] * 3, "time_ms": times_ms})
    told = over_processes(in_each_process(rows, ["what"])).loc["a"]
    assert told.tolist() == [2.0, 1.2, 31.0, 3]


def test_one_process_alone_has_no_interval_to_tell():
    row = pd.Series({"median": 1.314, "low": 1.3, "high": 1.32, "processes": 2})
    assert in_words(row) == "1.31 (1.30 to 1.32)"
    assert in_words(row.replace(2, 1)) == "1.31"
