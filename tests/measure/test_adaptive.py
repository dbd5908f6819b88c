"""Adaptive trees on small shapes: every choice has its row, and what was recorded is what is accepted."""

from dataclasses import replace

import numpy as np
import pytest

from specquant.decoding.replay import ConfidenceTrace, Replay
from specquant.errors import SpecquantError
from specquant.measure import adaptive
from specquant.measure.measure import record
from specquant.planning.confidences import simulate
from specquant.study import read_results

STAIRS = {1: 10.0, 8: 10.5, 16: 11.0, 24: 14.0, 32: 14.5, 48: 18.0, 60: 18.5}


@pytest.fixture
def measured(small_models, tmp_path, in_process):
    parameters = adaptive.Parameters(
        str(small_models / "target"), ("fp16",), repeats=1, prompt_length=5, processes=1, device="cpu"
    )
    return read_results(record(adaptive.MEASURE, parameters, tmp_path / "out")), parameters


def test_every_choice_has_its_row(measured):
    rows, parameters = measured
    assert set(rows.choice) == set(adaptive.CHOICES)
    static = rows[rows.choice == "static"].set_index(["draft_size", "iterations"])
    assert set(adaptive.STATIC) <= set(static.index)
    # And, if they are new, the best one by what this machine's steps cost and the one that adaptive ends up with.
    assert 0 <= len(static) - len(adaptive.STATIC) <= 2
    assert (rows[rows.choice == "one by one"].accepted_length == 1).all()
    traces = [trace for text in parameters.texts()[1::2] for trace in text]
    assert (rows.steps == len(traces)).all()  # every choice meets every recorded tree, also where drafts do not pay
    for (size, iterations), row in static.iterrows():
        expected = [trace.within(iterations).accepted_length(size) for trace in traces]
        assert row.accepted_length == pytest.approx(np.mean(expected))
    assert (static.mean_draft_size.to_numpy() == [size for size, _ in static.index]).all()
    assert (rows.predicted_tokens_per_s > 0).all()


def test_rows_of_other_repeats_are_not_mixed(measured, tmp_path):
    """The one run that counted before and the median of three are two kinds of times."""
    _, parameters = measured
    with pytest.raises(SpecquantError, match=r"adaptive\.csv holds rows measured with repeats 1, not 3"):
        record(adaptive.MEASURE, replace(parameters, repeats=3, processes=2), tmp_path / "out")


def test_the_run_that_is_timed_knows_no_more_of_its_texts_than_a_first_one(
    small_models, tmp_path, in_process, monkeypatch
):
    """So adaptive sizes accept what is predicted of a budget that begins anew, though runs that are not timed went
    before."""
    prices, measured_prices = [], adaptive.measured_prices

    def keeping(*args):
        prices.append(replace(measured_prices(*args), verify_ms=STAIRS, draft_ms=[1.0 + n for n in range(6)]))
        return prices[-1]

    monkeypatch.setattr(adaptive, "measured_prices", keeping)
    target = str(small_models / "target")
    parameters = adaptive.Parameters(target, ("fp16",), repeats=1, prompt_length=5, processes=1, device="cpu")
    rows = read_results(record(adaptive.MEASURE, parameters, tmp_path))
    row = rows[rows.choice == "adaptive"].iloc[0]
    expected = simulate(parameters.texts()[1::2], prices[0])
    assert row.accepted_length == pytest.approx(expected.accepted_length)
    assert row.mean_draft_size == pytest.approx(expected.draft_size)


def test_a_recorded_tree_is_accepted_as_it_was():
    trace = ConfidenceTrace(np.array([1.0, 0.8, 0.6, 0.1]), (-1, 0, 1, 0), (0, 1, 2))
    assert [Replay([0.0], 0.0).path(trace.shape(size, "cpu")) for size in (2, 3, 4)] == [[1], [1, 2], [1, 2]]
    wide = trace.shape(6, "cpu")
    assert wide.parents.tolist() == [-1, 0, 1, 0, 0, 0]


@pytest.mark.parametrize(("name", "value"), [("repeats", 0), ("prompt_length", 0), ("seed", -1)])
def test_what_cannot_be_measured(small_models, name, value):
    with pytest.raises(SpecquantError, match=f"{name} is {value}"):
        adaptive.Parameters(str(small_models / "target"), ("fp16",), **{name: value}).check()


def test_traces_of_one_text_are_refused(small_models, tmp_path):
    parameters = adaptive.Parameters(str(small_models / "target"), ("fp16",), device="cpu")
    rows = read_results(parameters.confidences)
    rows[rows.id == rows.id[0]].to_csv(tmp_path / "one.csv", index=False)
    target, one = str(small_models / "target"), tmp_path / "one.csv"
    with pytest.raises(SpecquantError, match=r"one\.csv holds trees of fewer than two texts"):
        adaptive.Parameters(target, ("fp16",), device="cpu", confidences=one).check()


class _Ran:
    def __init__(self, decode_ms):
        self.decode_ms = decode_ms


@pytest.mark.parametrize(("repeats", "median"), [(1, 3.0), (2, 1.0), (3, 2.0), (4, 2.0)])
def test_the_median_of_the_runs_without_new_graphs_counts(repeats, median, monkeypatch):
    """So a stall of the host in one run does not count, and neither does a run that captures."""
    times_ms, captures = iter([90.0, 3.0, 80.0, 1.0, 2.0, 70.0]), iter([1, 0, 1, 0, 0, 0])

    def run():
        monkeypatch.setattr(adaptive.graphs, "captures", adaptive.graphs.captures + next(captures))
        return _Ran(next(times_ms))

    assert adaptive.without_captures(run, repeats).decode_ms == median


def test_runs_that_capture_again_and_again_are_refused(monkeypatch):
    def run():
        monkeypatch.setattr(adaptive.graphs, "captures", adaptive.graphs.captures + 1)
        return _Ran(1.0)

    with pytest.raises(SpecquantError, match="more than 8 runs made new CUDA graphs"):
        adaptive.without_captures(run, 3)
