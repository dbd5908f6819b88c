from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from specquant.decoding.method import Plan
from specquant.planning.acceptance import Chances, Shapes, TreeShapes
from specquant.planning.predictions import (
    against_fixed,
    against_measured,
    draw_predictions,
    plans_against_fixed,
    replayed_against_fixed,
)
from tests.planning.conftest import BOTH


def test_predictions_beside_measurements(planner):
    measured = {"method": "eagle2", "draft_size": 7, "iterations": 3, "min_draft_length": 0, "head_chance": 0.5}
    measured |= {"agreement": 0.0, "draft_ms": 3.0, "verify_ms": 16.0, "other_ms": 1.0, "tokens_per_s": 80.0}
    (row,) = against_measured(planner, BOTH, pd.DataFrame([measured])).to_dict("records")
    assert (row["step_ms"], row["predicted_step_ms"]) == (20.0, 19.5)
    assert row["step_error"] == pytest.approx(-0.025)
    predicted = planner.predict(Plan("eagle2", 7, 3), BOTH.statistics(Chances([0.5], [0.5], 0.0)))["tokens_per_s"]
    assert row["error"] == pytest.approx(predicted / 80 - 1)


def test_the_pick_is_compared_with_the_papers_choices():
    plans = [Plan("autoregressive"), Plan("vanilla", min_draft_length=6), Plan("eagle2", 7, 3), Plan("eagle2", 8, 3)]
    table = pd.DataFrame([asdict(plan) for plan in plans]).assign(tokens_per_s=[90.0, 200.0, 210.0, 300.0])
    assert against_fixed(table.assign(predicted_tokens_per_s=[100.0, 190.0, 220.0, np.nan])) == {
        "picked": "eagle2 (7 nodes, 3 iterations)",
        "tokens_per_s": 210.0,
        "fixed": "vanilla (6 tokens or more)",
        "fixed_tokens_per_s": 200.0,
        "ratio": 1.05,
    }


def test_a_plan_of_the_papers_that_the_planner_found_too_counts_once():
    """It was replayed twice."""
    plans = [Plan("autoregressive"), Plan("eagle2", 24, 3), Plan("eagle2", 24, 3)]
    table = pd.DataFrame([asdict(plan) for plan in plans]).assign(tokens_per_s=[90.0, 200.0, 220.0])
    told = against_fixed(table.assign(predicted_tokens_per_s=[100.0, 205.0, 205.0]))
    assert told["picked"] == told["fixed"] == "eagle2 (24 nodes, 3 iterations)"
    assert told["tokens_per_s"] == told["fixed_tokens_per_s"] == 210
    assert told["ratio"] == 1


def test_picks_are_compared_under_every_acceptance_that_was_replayed():
    """Two chances of the target's head, two agreements: each plan counts where its own are those."""
    passes = {"scheme": "fp16", "context_length": 512, "draft_size": [1, 2, 24]}
    passes = pd.DataFrame(passes | {"model": "m", "time_ms": [10.0, 10.0, 12.0]})
    small = pd.DataFrame({"model": "s", "scheme": "fp16", "context_length": 512, "draft_size": [1, 24]})
    passes = pd.concat([passes, small.assign(time_ms=1.0)])
    drafting = {"model": "m", "head_scheme": "fp16", "head_vocabulary": 9, "iterations": [3], "time_ms": 2.0}
    rounds = pd.DataFrame({"head_scheme": ["fp16"], "other_ms": 0.1})
    trees = pd.DataFrame({"draft_size": 24, "iterations": 3, "parents": [" ".join(["-1", *map(str, range(23))])]})
    shapes = Shapes(TreeShapes(trees), TreeShapes(trees))
    columns = ("method", "draft_size", "iterations", "min_draft_length", "head_chance", "agreement", "tokens_per_s")
    rows = [
        ("autoregressive", 0, 0, 0, 0.0, 0.0, 95.0),
        ("eagle2", 24, 3, 0, 0.9, 0.0, 500.0),
        ("eagle2", 24, 3, 0, 0.1, 0.0, 75.0),
        ("vanilla", 0, 0, 6, 0.0, 0.9, 300.0),
        ("vanilla", 0, 0, 6, 0.0, 0.0, 61.0),
    ]
    about = {"model": "m", "scheme": "fp16", "intermediate": "s", "intermediate_scheme": "fp16", "other_ms": 0.1}
    about |= {"draft_ms": 0.0, "verify_ms": 0.9, "chances": "fitted"}
    replayed = pd.DataFrame(rows, columns=columns).assign(**about, head_scheme="fp16", head_vocabulary=0)
    table = replayed_against_fixed(passes, pd.DataFrame(drafting), rounds, shapes, replayed)
    picked = {(row.head, row.agreement): row.picked.split()[0] for row in table.itertuples()}
    assert picked == {
        (0.9, 0.9): "eagle2",
        (0.9, 0.0): "eagle2",
        (0.1, 0.9): "vanilla",
        (0.1, 0.0): "autoregressive",
    }
    assert (table.ratio == 1).all()
    # Every step took a millisecond: the plan with the greatest accepted length would be the best.
    lengths = table.set_index(["head", "agreement"]).expected_ratio
    assert lengths[0.1, 0.0] == pytest.approx(1 / sum(0.1**depth for depth in range(24)))
    assert lengths[0.9, 0.0] == 1


def test_a_pick_over_all_tasks_is_the_fastest_for_as_much_text_of_each():
    """Alone the second plan is the fastest in one task by 3 s of 4; over both, decoding one by one takes 2 s, it 5."""
    plans = [asdict(Plan("autoregressive")), asdict(Plan("eagle2", 24, 3)), asdict(Plan("eagle2", 8, 2))]
    one = pd.DataFrame(plans).assign(task="one", tokens_per_s=[1.0, 4.0, 5.0], predicted_tokens_per_s=[1.0, 4.0, None])
    two = pd.DataFrame(plans).assign(task="two", tokens_per_s=[1.0, 0.2, 5.0], predicted_tokens_per_s=[1.0, 0.2, 9.0])
    table = plans_against_fixed(pd.concat([one, two]).assign(scheme="fp16")).set_index("task")
    assert table.picked["one"] == "eagle2 (24 nodes, 3 iterations)"
    assert table.picked["overall"] == "autoregressive"  # of the smallest tree one prediction is missing
    assert table.tokens_per_s["overall"] == 1.0
    assert table.ratio["overall"] == 1.0


def test_predictions_over_measurements():
    table = pd.DataFrame(
        {"method": ["eagle2", "vanilla"], "tokens_per_s": [10.0, 20], "predicted_tokens_per_s": [11.0, 19]}
    )
    (axis,) = draw_predictions(table).axes
    assert {(line.get_xdata()[0], line.get_ydata()[0]) for line in axis.lines[:2]} == {(20.0, 19.0), (10.0, 11.0)}
