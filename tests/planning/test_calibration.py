"""Calibration: what is taken from steps, by hand; and that the steps are those of every method that can decode."""

import pandas as pd
import pytest
import torch

from specquant.decoding.drafters import PAPER_METHODS
from specquant.decoding.method import ADAPTIVE, PLAN_FIELDS, Plan
from specquant.decoding.models import Models, tiny_models
from specquant.errors import SpecquantError
from specquant.models.config import load_config
from specquant.models.loading import load_tokenizer
from specquant.planning import calibration
from specquant.planning.calibration import COLUMNS, calibrate, calibrated, pays_of

PROBES = (
    Plan("autoregressive"),
    Plan("vanilla", min_draft_length=3),
    Plan("eagle2", 9, 2),
    Plan("hierarchical", 7, 2, 3),
)


@pytest.fixture
def probes(monkeypatch):
    monkeypatch.setattr(calibration, "PROBES", PROBES)


def test_every_method_takes_its_steps(small_models, tokenizer, probes):
    steps = calibrate(tiny_models(small_models), tokenizer, ["1 plus 1", "2 times"], new_tokens=40, most_of_one=20)
    assert set(steps.columns) == set(COLUMNS)
    assert set(steps.head_vocabulary) == {load_config(small_models / "target").vocab_size}  # all of its tokens
    outer, inner = (steps[steps.level == level] for level in ("target", "intermediate"))
    assert set(outer.method) == set(PAPER_METHODS)
    assert set(inner.method) == {"vanilla", "hierarchical"}
    for method, group in outer.groupby("method"):
        assert 40 <= (group.accepted + 1).sum() <= 40 + 20, method
        assert (group.rows == group.drafts + 1).all()
    trees = outer[outer.method == "eagle2"]
    assert (trees.drafts == 8).mean() > 0.9
    planner, statistics = calibrated(steps)
    assert set(statistics.trees) == {(9, 2)}
    assert set(statistics.inner_trees) == {(7, 2)}
    assert {plan.method for plan in planner.plans(statistics)} == set(PAPER_METHODS)
    measured = outer[outer.method == "eagle2"].accepted.mean() + 1
    assert statistics.accepted_length(Plan("eagle2", 9, 2)) == pytest.approx(measured, rel=0.1)


def test_other_methods_are_predicted_as_they_were_measured(small_models, tokenizer, monkeypatch):
    probes = (Plan("autoregressive"), Plan("eagle3", 9, 2), Plan("hierarchical-eagle3", 7, 2, 3), Plan("suffix"))
    monkeypatch.setattr(calibration, "PROBES", probes)
    steps = calibrate(tiny_models(small_models), tokenizer, ["1 plus 1", "2 times"], new_tokens=40, most_of_one=20)
    planner, statistics = calibrated(steps)
    assert set(probes) <= set(planner.plans(statistics))
    for plan in probes[1:]:
        outer = steps[(steps.method == plan.method) & (steps.level == "target")]
        told = planner.predict(plan, statistics)
        assert told["accepted_length"] == pytest.approx(1 + outer.accepted.mean())
        assert told["verify_ms"] == pytest.approx(outer.verify_ms.mean())
        assert (told["inner_rounds"] > 0) == plan.method.startswith("hierarchical")
    with pytest.raises(SpecquantError, match="the speed of suffix-eagle2 cannot be predicted"):
        planner.predict(Plan("suffix-eagle2", 60, 6), statistics)


def test_adaptive_trees_are_a_plan_where_confidence_was_measured(small_models, tokenizer, probes, monkeypatch):
    monkeypatch.setattr(calibration, "TRACED", 9)
    steps = calibrate(tiny_models(small_models), tokenizer, ["1 plus 1", "2 times"], new_tokens=60, most_of_one=40)
    planner, statistics = calibrated(steps)
    (adaptive,) = (plan for plan in planner.plans(statistics) if plan.draft_size == ADAPTIVE)
    assert adaptive == Plan("eagle2", ADAPTIVE, 2)
    told = planner.predict(adaptive, statistics)
    assert 1 <= told["accepted_length"] <= told["mean_draft_size"] <= 9
    assert told["tokens_per_s"] > 0


def test_only_methods_whose_models_were_given_take_part(small_models, tokenizer, probes):
    models = Models(small_models / "target", eagle_target=small_models / "eagle-target")
    steps = calibrate(models, tokenizer, ["1 plus 1"], 16)
    assert set(steps.method) == {"autoregressive", "eagle2"}
    planner, statistics = calibrated(steps)
    assert {plan.method for plan in planner.plans(statistics)} == {"autoregressive", "eagle2"}


def test_companions_are_checked_before_anything_is_loaded(small_models, tokenizer, monkeypatch):
    monkeypatch.setattr("specquant.decoding.models.load_model", lambda *_: pytest.fail("loaded"))
    models = Models(small_models / "target", eagle_target=small_models / "eagle-intermediate")
    with pytest.raises(SpecquantError, match="has hidden_size 128, and its model 256"):
        calibrate(models, tokenizer, ["1 plus 1"])


def test_prompts_without_room_are_left_out(small_models, tokenizer, probes):
    models = Models(small_models / "target", context_length=60)
    long = list(range(2, 47))
    assert len(calibrate(models, tokenizer, [long, "1 plus 1"], 16)) == 16
    with pytest.raises(SpecquantError, match="needs prompts with room for 20 tokens behind them"):
        calibrate(models, tokenizer, [long], 16)


@pytest.mark.gpu
def test_it_works_on_a_gpu_too(probes):
    models = tiny_models("data/tiny", dtype=torch.float16, device="cuda")
    steps = calibrate(models, load_tokenizer(models.paths["target"]), ["Question: How many are 3 and 4?\nAnswer:"], 32)
    outer = steps[steps.level == "target"]
    assert set(outer.method) == set(PAPER_METHODS)
    planner, statistics = calibrated(steps)
    assert {plan.method for plan in planner.plans(statistics)} == set(PAPER_METHODS)


def made_by_hand() -> pd.DataFrame:
    """Of each kind three steps or more."""
    columns = ("method", *PLAN_FIELDS[1:], "level", "drafts", "accepted", "rows", "draft_ms", "verify_ms", "other_ms")
    rows = [("autoregressive", 0, 0, 0, "target", 0, 0, 1, 0.0, time_ms, 0.5) for time_ms in (4.0, 5.0, 9.0)]
    rows += [("eagle2", 8, 2, 0, "target", 7, accepted, 8, 2.0, 6.0, 0.5) for accepted in (0, 1, 1, 2)]
    rows += [("eagle2", 8, 2, 0, "target", 0, 0, 1, 0.1, 5.0, 0.5)]  # without room for a tree
    rows += [("vanilla", 0, 0, 2, "target", 2, accepted, 3, 3.0, 5.5, 0.5) for accepted in [0] * 5 + [1] * 5 + [2] * 10]
    rows += [("vanilla", 0, 0, 2, "intermediate", 0, 0, size, 0.0, size, 0.25) for size in (1, 1, 1, 2, 2)]
    return pd.DataFrame(rows, columns=columns)


def test_costs_are_medians_of_what_was_often_enough():
    planner, _ = calibrated(made_by_hand())
    assert planner.target.verify_ms.to_dict() == {1: 5.0, 3: 5.5, 8: 6.0}
    assert planner.target.draft_ms.to_dict() == {2: 2.0}
    assert planner.intermediate.verify_ms.to_dict() == {1: 1.0}  # two passes of two rows are too few
    assert len(planner.intermediate.draft_ms) == 0
    assert (planner.target.other_ms, planner.intermediate.other_ms) == (0.5, 0.25)


def test_a_fixed_plan_stops_by_calibrated_times():
    planner, statistics = calibrated(made_by_hand())
    pays = pays_of(Plan("eagle2", 8, 2), planner, statistics)
    assert [pays.step_ms(rows) for rows in (1, 8, 60)] == [5.5, 8.5, 8.5]  # the last was not measured
    assert pays.drafts()
    for _ in range(40):
        pays.learn(1, 8)  # nothing was accepted
    assert not pays.drafts()
    assert pays_of(Plan("autoregressive"), planner, statistics) is None
    assert pays_of(Plan("eagle2", ADAPTIVE, 2), planner, statistics) is None  # each tree is chosen by itself


def test_acceptance_is_counted():
    _, statistics = calibrated(made_by_hand())
    assert {tree: list(accepted) for tree, accepted in statistics.trees.items()} == {(8, 2): [0.25, 0.5, 0.25]}
    assert not statistics.inner_trees
    assert statistics.agreement == [15 / 20, 10 / 15]
