"""Predictions against what the decoder does when acceptance is replayed, and against sums done by hand."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from specquant.decoding import EagleDrafter, Speculator
from specquant.decoding.drafters.replay import ReplayedTrees
from specquant.decoding.method import Plan
from specquant.decoding.replay import Replay
from specquant.errors import SpecquantError
from specquant.planning.acceptance import Chances, Shapes
from specquant.planning.planner import LevelCosts, Planner, against_fixed, against_measured, measured_costs, phases
from tests.decoding.conftest import random_head, random_model

SHAPES = ("-1 0 0 1 1 3 2", "-1 0 1 2 0 0 0", "-1 0 0 0 1 2 3")  # their longest paths have 3, 3 and 2 nodes
TREES = pd.DataFrame({"draft_size": 7, "iterations": 3, "parents": SHAPES})
BOTH = Shapes.of(TREES)
CHANCES = Chances(head=[0.9, 0.6], inner_head=[0.8, 0.7, 0.5], agreement=0.85)
STATISTICS = BOTH.statistics(CHANCES)
TARGET = LevelCosts(pd.Series({1: 10.0, 7: 16.0, 16: 25.0}), pd.Series({3: 3.0, 6: 6.0}), 0.5)
SMALL = LevelCosts(pd.Series({1: 2.0, 2: 2.5, 7: 3.0}), pd.Series({3: 1.0}), 0.25)


@pytest.fixture
def planner():
    return Planner(TARGET, SMALL)


def test_autoregressive_decoding_is_a_pass_a_token(planner):
    row = planner.predict(Plan("autoregressive"), STATISTICS)
    assert row["tokens_per_s"] == pytest.approx(1e3 / 10.5)


def test_eagle2_by_hand(planner):
    row = planner.predict(Plan("eagle2", 7, 3), STATISTICS)
    accepted = 1 + 0.9 + 0.9 * 0.6 + (2 / 3) * 0.9 * 0.6 * 0.6
    assert row["accepted_length"] == pytest.approx(accepted)
    assert row["tokens_per_s"] == pytest.approx(1e3 * accepted / (3 + 16 + 0.5))


def test_vanilla_by_hand(planner):
    """A token a round; after a whole draft, which 0.85 ** 4 of the steps accept, the first round runs two tokens."""
    row = planner.predict(Plan("vanilla", min_draft_length=4), STATISTICS)
    assert row["accepted_length"] == pytest.approx(sum(0.85**i for i in range(5)))
    assert row["draft_ms"] == pytest.approx(4 * 2.25 + 0.85**4 * 0.5)
    assert row["verify_ms"] == pytest.approx(14.0)
    assert row["inner_rounds"] == pytest.approx(4)


@pytest.mark.parametrize("least", [1, 6])
@pytest.mark.parametrize("agreement", [0.6, 1.0])
def test_the_decoder_does_what_is_predicted(planner, least, agreement):
    chances = Chances(CHANCES.head, CHANCES.inner_head, agreement)
    predicted = planner.predict(Plan("hierarchical", 7, 3, least), BOTH.statistics(chances))
    size = {"hidden_size": 64, "layers": 1, "context_length": 400}
    small = random_model(seed=5, **size)
    shapes = [[int(parent) for parent in shape.split()] for shape in SHAPES]
    drafter = ReplayedTrees(EagleDrafter(random_head(small), 7, 3, 3), shapes, "cpu")
    decoder = Speculator(random_model(**size), Speculator(small, drafter, least))
    steps = []
    rule = Replay(chances.inner_head, agreement, seed=3)
    for _ in range(8):
        decoder.prefill([1, 2, 3], rule)
        steps += [decoder.step(40) for _ in range(40)][5:]
    assert np.mean([step.accepted_length for step in steps]) == pytest.approx(predicted["accepted_length"], rel=0.08)
    assert np.mean([len(step.tree) for step in steps]) == pytest.approx(predicted["mean_draft_size"], rel=0.05)
    rounds = np.mean([len(step.inner_accepted_lengths) for step in steps])
    assert rounds == pytest.approx(predicted["inner_rounds"], rel=0.08)


def test_the_best_plan_is_the_fastest_of_the_table(planner):
    table = planner.table(STATISTICS)
    assert table.tokens_per_s.is_monotonic_decreasing
    assert set(table.method) == {"autoregressive", "vanilla", "eagle2", "hierarchical"}
    best = planner.best(STATISTICS)
    assert (best.method, best.draft_size) == tuple(table.iloc[0][["method", "draft_size"]])
    nothing = BOTH.statistics(Chances([0.0], [0.0], 0.0))
    assert planner.best(nothing) == Plan("autoregressive")


def test_plans_whose_passes_were_not_measured_are_left_out(planner):
    """The target's passes were measured up to 16 tokens; a round in the hierarchy adds up to four."""
    plans = planner.plans(STATISTICS, (12, 15, 16))
    assert [plan.min_draft_length for plan in plans if plan.method == "vanilla"] == [12, 15]
    assert [plan.min_draft_length for plan in plans if plan.method == "hierarchical"] == [12]
    for plan in plans:
        planner.predict(plan, STATISTICS)


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


def test_what_was_not_measured_is_refused(planner):
    for plan, sentence in (
        (Plan("eagle2", 60, 6), "no trees of 60 nodes and 6 iterations"),
        (Plan("magic"), "unknown method 'magic'"),
        (Plan("vanilla", min_draft_length=20), "a pass over 21 tokens was not measured, only over 1 to 16"),
    ):
        with pytest.raises(SpecquantError, match=sentence):
            planner.predict(plan, STATISTICS)
    with pytest.raises(SpecquantError, match="needs the costs of an intermediate model"):
        Planner(TARGET).predict(Plan("vanilla", min_draft_length=4), STATISTICS)


def test_costs_come_from_the_tables():
    passes = {"model": "m", "scheme": "fp16", "context_length": 512, "draft_size": [8, 1], "time_ms": [3.0, 2.0]}
    drafts = {"model": "m", "head_scheme": "fp16", "head_vocabulary": [100, 100, 100, 10], "iterations": [3, 3, 6, 3]}
    drafts["time_ms"] = [1.0, 1.2, 2.2, 0.5]
    tables = pd.DataFrame(passes), pd.DataFrame(drafts)
    costs = measured_costs(*tables, "m", "fp16", other_ms=0.3)
    assert (costs.verify(1), costs.verify(4.5), costs.other_ms) == (2.0, 2.5, 0.3)
    assert (costs.draft(3), costs.draft(6)) == (pytest.approx(1.1), pytest.approx(2.2))
    assert measured_costs(*tables, "m", "fp16", head_vocabulary=10).draft(6) == pytest.approx(1.0)
    with pytest.raises(SpecquantError, match="no pass of m in w8a8 behind 512 tokens was measured"):
        measured_costs(*tables, "m", "w8a8")


def test_phases_name_the_fastest_method(planner):
    grid = phases(planner, BOTH, [0.0, 0.9], [0.0, 1.0])
    assert grid.loc[0.0, 0.0] == "autoregressive"
    assert grid.loc[0.0, 0.9] == "eagle2"
    assert grid.loc[1.0, 0.9] == planner.best(BOTH.statistics(Chances([0.9], [0.9], 1.0))).method


def test_predictions_beside_measurements(planner):
    measured = {"method": "eagle2", "draft_size": 7, "iterations": 3, "min_draft_length": 0, "head_chance": 0.5}
    measured |= {"agreement": 0.0, "draft_ms": 3.0, "verify_ms": 16.0, "other_ms": 1.0, "tokens_per_s": 80.0}
    (row,) = against_measured(planner, BOTH, pd.DataFrame([measured])).to_dict("records")
    assert (row["step_ms"], row["predicted_step_ms"]) == (20.0, 19.5)
    assert row["step_error"] == pytest.approx(-0.025)
    predicted = planner.predict(Plan("eagle2", 7, 3), BOTH.statistics(Chances([0.5], [0.5], 0.0)))["tokens_per_s"]
    assert row["error"] == pytest.approx(predicted / 80 - 1)
