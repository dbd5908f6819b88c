"""EAGLE-2's speedups: the planner's numbers, and figures that hold what they are given."""

import pandas as pd
import pytest

from specquant.planning.eagle2_speedups import (
    OVER_THE_SAME_SCHEME,
    draw_over_draft_size,
    draw_speedups,
    eagle2_speedups,
    over_accepted_lengths,
    with_published,
)

TREES = pd.DataFrame({"draft_size": 3, "iterations": 2, "parents": ["-1 0 1", "-1 0 0"], "accepted_length": [2, 2]})


def test_speedups_are_the_planner_s():
    passes = {"model": "m", "scheme": ["fp16"] * 2 + ["w8a8"] * 2, "context_length": 512, "draft_size": [1, 3] * 2}
    passes = pd.DataFrame(passes).assign(time_ms=[4.0, 4.0, 2.0, 3.0])
    drafting = pd.DataFrame(
        {"model": "m", "head_scheme": "fp16", "head_vocabulary": 9, "iterations": [2], "time_ms": 0.5}
    )
    table = eagle2_speedups(passes, drafting, TREES, {"m": ((3, 2), 2.0)}, other_ms=0.0)
    assert dict(zip(table.scheme, table.speedup, strict=True)) == {
        "fp16": pytest.approx(2.0 * 4 / 4.5),
        "w8a8": pytest.approx(2.0 * 2 / 3.5),
    }


def test_the_paper_s_trees_stand_beside_the_paper_s_cards():
    speedups = pd.DataFrame({"model": "llama-3-8b", "scheme": "fp16", "draft_size": [60, 48], "iterations": 6})
    published = {"model": "Llama-3-8B", "method": ["eagle2", "eagle2", "vanilla"], "scheme": "fp16"}
    published = pd.DataFrame(published | {"gpu": ["A100", "RTX 3090", "A100"], "value": [2.3, 2.2, 9.0]})
    quantities = [OVER_THE_SAME_SCHEME, OVER_THE_SAME_SCHEME, "speedup over fp16 autoregressive"]
    published = published.assign(quantity=quantities)
    lines = with_published(speedups.assign(speedup=[2.5, 9.0]), published, "H200")
    assert {name: dict(line) for name, line in lines.items()} == {
        "Llama-3-8B, A100, paper": {"fp16": 2.3},
        "Llama-3-8B, RTX 3090, paper": {"fp16": 2.2},
        "Llama-3-8B, H200, ours": {"fp16": 2.5},
        "Llama-3-70B, H200, ours": {},
    }


def test_a_speedup_is_proportional_to_the_accepted_length():
    speedups = pd.DataFrame({"model": "m", "scheme": ["a", "b"], "accepted_length": [4.0, 3.0], "speedup": [2.0, 0.5]})
    table = over_accepted_lengths(speedups, (2, 4))
    assert table.loc["m", "a"].tolist() == [2.0, 1.0, 2.0]
    assert table.loc["m", "b"].tolist() == pytest.approx([6.0, 1 / 3, 2 / 3])


def test_speedups_beside_each_other():
    lines = {"theirs": pd.Series({"w8a8": 2.0}), "ours": pd.Series({"fp16": 3.0, "w8a8": 2.5})}
    (axis,) = draw_speedups(lines, "speedup").axes
    theirs, ours, _one = axis.lines
    assert [label.get_text() for label in axis.get_yticklabels()] == ["FP16", "W8A8"]
    assert (list(theirs.get_xdata()), list(theirs.get_ydata())) == ([2.0], [1])
    assert (list(ours.get_xdata()), list(ours.get_ydata())) == ([3.0, 2.5], [0, 1])


def test_each_tree_has_its_best_depth():
    table = pd.DataFrame({"scheme": "fp16", "draft_size": [8, 8, 60], "speedup": [1.5, 2.0, 1.0]})
    (axis,) = draw_over_draft_size(table).axes
    assert list(axis.lines[0].get_ydata()) == [2.0, 1.0]
