import math
from dataclasses import replace

import pandas as pd
import pytest

from specquant.decoding.drafters import MARKS
from specquant.decoding.method import Plan
from specquant.errors import SpecquantError
from specquant.planning.acceptance import Chances, Shapes
from specquant.planning.phases import (
    advantages,
    draw_phases,
    draw_speeds,
    gain_grids,
    least_agreement,
    lookup_grids,
    phase_grids,
    phases,
    speeds_over_chances,
)
from specquant.planning.planner import Planner
from specquant.planning.recorded import RecordedCosts
from specquant.tables.results import read_results
from tests.planning.conftest import BOTH, SMALL, TARGET


def test_phases_name_the_fastest_method(planner):
    grid = phases(planner, BOTH, [0.0, 0.9], [0.0, 1.0])
    assert grid.loc[0.0, 0.0] == "autoregressive"
    assert grid.loc[0.0, 0.9] == "eagle2"
    assert grid.loc[1.0, 0.9] == planner.best(BOTH.statistics(Chances([0.9], [0.9], 1.0))).method


def test_a_phase_for_each_point():
    grid = pd.DataFrame(
        [["eagle2", "autoregressive"], ["hierarchical", "eagle2"]], index=[0.5, 0.9], columns=[0.4, 0.8]
    )
    figure = draw_phases({"a": grid, "b": grid, "c": grid}, marked=(0.8, 0.9))
    names = list(MARKS)
    assert [names[int(code)] for code in figure.axes[0].collections[0].get_array().ravel()] == list(
        grid.to_numpy().ravel()
    )
    assert [axis.get_title() for axis in figure.axes] == ["a", "b", "c", ""]
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert labels == {"EAGLE-2", "autoregressive", "hierarchical"}


def test_speeds_over_chances_are_the_planner_s():
    planner = RecordedCosts.read("data/recorded/h200").planner("llama-3-70b", "llama-3-8b", "w4a16-g128", "w4a16-g128")
    shapes = Shapes.of(read_results("data/recorded/cpu/trees.csv"))
    fitted = shapes.fitted_chances()
    table = speeds_over_chances(planner, shapes, fitted)
    row = table[(table.method == "hierarchical") & (table.agreement == 0.7)].iloc[0]
    statistics = shapes.statistics(Chances(fitted.head, fitted.inner_head, 0.7))
    assert row.tokens_per_s == planner.predict(Plan("hierarchical", 30, 3, 6), statistics)["tokens_per_s"]
    assert table[table.method == "autoregressive"].tokens_per_s.nunique() == 1
    assert table[table.method == "eagle2"].groupby("draft_size").tokens_per_s.is_monotonic_increasing.all()


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
    left, right = draw_speeds(pd.DataFrame(rows, columns=columns)).axes
    trees, one_by_one = left.lines
    assert (list(trees.get_xdata()), list(trees.get_ydata())) == ([0.5, 0.8], [100, 150])
    assert list(one_by_one.get_ydata()) == [80, 80]
    assert (list(right.lines[0].get_xdata()), list(right.lines[0].get_ydata())) == ([0.7, 0.9], [120, 200])


def test_acceptance_is_drawn_beside_decoding_one_by_one():
    replayed = read_results("data/recorded/h200/replayed.csv").query("method != 'autoregressive'")
    with pytest.raises(SpecquantError, match="has no autoregressive row to compare with"):
        draw_speeds(replayed)


def test_gains_agree_with_phases_and_with_the_advantage_at_a_point():
    costs = RecordedCosts.read("data/recorded/h200")
    planners = {"one": costs.planner("llama-3-70b", "llama-3-8b", "w4a16-g128", "w4a16-g128")}
    shapes = Shapes.of(read_results("data/recorded/cpu/trees.csv"))
    gains, fastest = gain_grids(planners, shapes)["one"], phase_grids(planners, shapes)["one"]
    assert (gains.to_numpy()[fastest.to_numpy() == "hierarchical"] > 1).all()
    assert (gains.to_numpy()[fastest.to_numpy() == "eagle2"] < 1).all()
    chance, agreement = gains.columns[10], gains.index[12]
    told = advantages(planners, shapes.statistics(Chances([chance], [chance], agreement)))
    assert gains.loc[agreement, chance] == pytest.approx(told["one"])
    figure = draw_phases({"one": fastest}, (0.8, 0.86), {"one": gains})
    assert len(figure.axes[0].collections) == 2  # the colours and the contours


def test_a_lookup_wins_where_it_adds_more_than_all_others(planner, monkeypatch):
    paper = (Plan("autoregressive"), Plan("eagle2", 7, 3), Plan("hierarchical", 7, 3, 3))
    monkeypatch.setattr("specquant.planning.phases.PAPER_PLANS", paper)
    never, always = lookup_grids(planner, BOTH, (1.0, 50.0)).values()
    assert "suffix" not in set(never.to_numpy().ravel())
    assert set(always.to_numpy().ravel()) == {"suffix"}


def test_from_the_least_agreement_on_the_hierarchy_is_faster():
    costs = RecordedCosts.read("data/recorded/h200")
    planners = costs.by_head("llama-3-70b", "llama-3-8b", "w4a16-g128", "w4a16-g128")
    assert planners["eagle3"].target.draft(3) < planners["eagle"].target.draft(3)
    shapes = Shapes.of(read_results("data/recorded/cpu/trees.csv"))
    least = least_agreement(planners["eagle"], shapes, 0.82)
    for agreement, wins in ((least - 0.01, False), (least + 0.01, True)):
        statistics = shapes.statistics(Chances([0.82], [0.82], agreement))
        assert bool(advantages({"one": planners["eagle"]}, statistics)["one"] > 1) is wins
    assert least_agreement(planners["eagle"], shapes, 0.9) > least  # the better the heads, the more it takes


def test_where_the_hierarchy_always_or_never_wins_no_agreement_is_sought(monkeypatch):
    """Trees of a dear head lose even where nothing is agreed on, and a model as slow as its target never wins."""
    paper = (Plan("eagle2", 7, 3), Plan("hierarchical", 7, 3, 3))
    monkeypatch.setattr("specquant.planning.phases.PAPER_PLANS", paper)
    dear, slow = replace(TARGET, draft_ms=pd.Series({3: 500.0})), replace(SMALL, verify_ms=TARGET.verify_ms)
    assert least_agreement(Planner(dear, SMALL), BOTH, 0.5) == 0
    assert math.isnan(least_agreement(Planner(TARGET, slow), BOTH, 0.5))


def test_points_are_drawn_in_every_panel():
    grid = pd.DataFrame([["eagle2"]], index=[0.5], columns=[0.4])
    figure = draw_phases({"a": grid, "b": grid}, points=[(0.4, 0.5), (0.4, 0.6)])
    assert [len(axis.lines) for axis in figure.axes[:2]] == [3, 2]  # the first has the legend's mark, too
