"""The figures hold the numbers that they are given."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from specquant.errors import SpecquantError
from specquant.study import read_results, true_size


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_passes_beside_each_other():
    ours = pd.DataFrame({"scheme": ["fp16"] * 2 + ["w8a8"] * 2, "draft_size": [1, 60] * 2, "time_ms": [2, 3, 1, 4]})
    theirs = ours[ours.scheme == "w8a8"].assign(time_ms=[5, 5])
    left, right = true_size.verify_costs_beside({"ours": ours, "theirs": theirs}).axes
    assert [list(line.get_ydata()) for line in left.lines] == [[1, 1.5], [1, 4]]
    assert [list(line.get_ydata()) for line in right.lines] == [[1, 1]]
    assert (left.get_title(), right.get_title()) == ("ours", "theirs")
    low, high = left.get_ylim()
    assert low == 0.9
    assert high > 4  # whichever panel has the highest line


def test_the_second_panel_is_not_cut_off():
    flat, steep = (pd.DataFrame({"scheme": "fp16", "draft_size": [1, 60], "time_ms": [1, high]}) for high in (1.1, 9))
    figure = true_size.verify_costs_beside({"ours": flat, "theirs": steep})
    assert all(axis.get_ylim()[1] > 9 for axis in figure.axes)


def test_speedups_beside_each_other():
    lines = {"theirs": pd.Series({"w8a8": 2.0}), "ours": pd.Series({"fp16": 3.0, "w8a8": 2.5})}
    (axis,) = true_size.speedups_beside(lines, "speedup").axes
    theirs, ours, _one = axis.lines
    assert [label.get_text() for label in axis.get_yticklabels()] == ["FP16", "W8A8"]
    assert (list(theirs.get_xdata()), list(theirs.get_ydata())) == ([2.0], [1])
    assert (list(ours.get_xdata()), list(ours.get_ydata())) == ([3.0, 2.5], [0, 1])


def test_each_tree_has_its_best_depth():
    table = pd.DataFrame({"scheme": "fp16", "draft_size": [8, 8, 60], "speedup": [1.5, 2.0, 1.0]})
    (axis,) = true_size.speedup_over_draft_size(table).axes
    assert list(axis.lines[0].get_ydata()) == [2.0, 1.0]


def test_cards_are_rows():
    table = pd.DataFrame({"fp16": [200.0, 100.0], "fp8": [300.0, None]}, index=["B200", "A100"])
    (axis,) = true_size.free_drafts(table).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["B200", "A100"]
    assert list(axis.lines[0].get_xdata()) == [200.0, 100.0]


def test_a_phase_for_each_point():
    grid = pd.DataFrame(
        [["eagle2", "autoregressive"], ["hierarchical", "eagle2"]], index=[0.5, 0.9], columns=[0.4, 0.8]
    )
    figure = true_size.phase_diagram({"a": grid, "b": grid, "c": grid}, marked=(0.8, 0.9))
    names = list(true_size.MARKS)
    assert [names[int(code)] for code in figure.axes[0].collections[0].get_array().ravel()] == list(
        grid.to_numpy().ravel()
    )
    assert [axis.get_title() for axis in figure.axes] == ["a", "b", "c", ""]
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert labels == {"EAGLE-2", "autoregressive", "hierarchical"}


def test_predictions_over_measurements():
    table = pd.DataFrame(
        {"method": ["eagle2", "vanilla"], "tokens_per_s": [10.0, 20], "predicted_tokens_per_s": [11.0, 19]}
    )
    (axis,) = true_size.predicted_against_measured(table).axes
    assert {(line.get_xdata()[0], line.get_ydata()[0]) for line in axis.lines[:2]} == {(20.0, 19.0), (10.0, 11.0)}


def test_speeds_over_what_decides_about_each_method():
    rows = [
        ("autoregressive", 0, 0, 0, 0.0, 0.0, 80),
        ("eagle2", 24, 3, 0, 0.8, 0.0, 150),
        ("eagle2", 24, 3, 0, 0.5, 0.0, 100),
        ("eagle2", 60, 6, 0, 0.8, 0.0, 130),  # one point is no line
        ("hierarchical", 30, 3, 6, 0.8, 0.9, 200),
        ("hierarchical", 30, 3, 6, 0.8, 0.7, 120),
        ("hierarchical", 30, 3, 6, 0.6, 0.9, 180),  # of another inner head
    ]
    columns = ["method", "draft_size", "iterations", "min_draft_length", "head_chance", "agreement", "tokens_per_s"]
    left, right = true_size.speeds_over_acceptance(pd.DataFrame(rows, columns=columns)).axes
    trees, one_by_one = left.lines
    assert (list(trees.get_xdata()), list(trees.get_ydata())) == ([0.5, 0.8], [100, 150])
    assert list(one_by_one.get_ydata()) == [80, 80]
    assert (list(right.lines[0].get_xdata()), list(right.lines[0].get_ydata())) == ([0.7, 0.9], [120, 200])


def test_acceptance_is_drawn_beside_decoding_one_by_one():
    replayed = read_results("data/recorded/h200/replayed.csv").query("method != 'autoregressive'")
    with pytest.raises(SpecquantError, match="has no autoregressive row to compare with"):
        true_size.speeds_over_acceptance(replayed)
