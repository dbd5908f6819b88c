"""Replayed decoding on small shapes: rows say what they rest on, and interrupted recording goes on."""

import pandas as pd
import pytest
import torch

from specquant.errors import SpecquantError
from specquant.experiments import acceptance
from specquant.experiments.methods import Plan
from specquant.study import read_results, replay, write_results

PLANS = (
    Plan("autoregressive"),
    Plan("vanilla", min_draft_length=3),
    Plan("eagle2", 7, 3),
    Plan("hierarchical", 7, 3, 4),
)


@pytest.fixture
def record(small_models, tmp_path, monkeypatch):
    for module in (acceptance, replay):
        monkeypatch.setattr(module, "PAPER_PLANS", PLANS)
    monkeypatch.setattr(replay, "MORE_PLANS", ())
    shapes = ["-1 0 0 1 1 3 2", "-1 0 1 2 0 0 0"]
    trees = pd.DataFrame({"draft_size": 7, "iterations": 3, "parents": shapes, "weights": "trained"})
    trees = trees.assign(model="any", scheme="fp16", accepted_length=2)
    write_results(trees, tmp_path / "trees.csv", {})

    def run(*schemes, intermediate=small_models / "intermediate", **options):
        options = {"trees": tmp_path / "trees.csv", "new_tokens": 12, "prompt_length": 5} | options
        return replay.record_replayed(
            small_models / "target",
            intermediate,
            schemes,
            tmp_path / "out",
            tree=(7, 3),
            accepted_length=2.5,
            hierarchical_length=3.0,
            device="cpu",
            dtype=torch.float32,
            **options,
        )

    return run


def test_every_plan_has_its_row(record):
    rows = read_results(record("fp16", "w4a16-g128"))
    assert list(rows.method) == [plan.method for plan in PLANS] * 2
    assert set(rows.weights) == {"synthetic"}
    assert set(rows.acceptance) == {"replayed"}
    one_by_one = rows[rows.method == "autoregressive"]
    assert (one_by_one.accepted_length == 1).all()
    assert (rows.new_tokens >= 12).all()
    assert (rows.tokens_per_s > 0).all()
    again = read_results(record("fp16", "w4a16-g128"))
    pd.testing.assert_frame_equal(rows, again)  # nothing is measured twice


def test_without_an_intermediate_model_trees_alone_are_replayed(record):
    rows = read_results(record("fp16", intermediate=None, sweep=True))
    assert list(rows.method) == ["autoregressive"] + ["eagle2"] * (1 + len(replay.CHANCES))
    assert rows.head_chance.iloc[0] == 0
    assert rows.head_chance.iloc[1:].nunique() == 1 + len(replay.CHANCES)
    assert (rows.agreement == 0).all()


def test_rows_of_other_parameters_are_not_mixed(record):
    record("fp16", intermediate=None)
    with pytest.raises(SpecquantError, match="holds rows measured with new_tokens 12, not 13"):
        record("fp16", intermediate=None, new_tokens=13)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused(tmp_path):
    with pytest.raises(SpecquantError, match="there is no device 'cuda' here"):
        replay.record_replayed("llama-3-8b", None, ["fp16"], tmp_path)
