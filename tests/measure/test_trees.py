import pandas as pd
import pytest
import torch

from specquant.decoding import DraftTree
from specquant.decoding.method import DraftSettings
from specquant.decoding.models import tiny_models
from specquant.errors import SpecquantError
from specquant.measure import confidences
from specquant.measure.measure import record
from specquant.measure.trees import MEASURE, Parameters, drafted_trees
from specquant.models.loading import load_tokenizer
from specquant.planning.trees import tree_shapes
from specquant.study import read_results


@pytest.fixture
def trees(small_models):
    models, tokenizer = tiny_models(small_models), load_tokenizer(small_models / "target")
    prompts = [{"prompt": "1 plus 1"}, {"prompt": "Once upon"}]
    return drafted_trees(models, "small", tokenizer, prompts, DraftSettings(9, 2, 4), max_new_tokens=12, most=5)


def test_trees_are_what_was_verified(trees):
    assert 0 < len(trees) <= 5
    assert set(trees.weights) == {"trained"}
    for parents in tree_shapes(trees, 9, 2):
        tree = DraftTree.from_parents(torch.zeros(9, dtype=torch.int64), torch.tensor(parents))
        assert tree.depths.max() <= 2
    assert trees.accepted_length.between(1, 3).all()


def test_a_size_that_was_not_recorded(trees):
    with pytest.raises(SpecquantError, match="no trees of 60 nodes and 6 iterations were recorded, only of 9 and 2"):
        tree_shapes(trees, 60, 6)


@pytest.mark.parametrize("parents", ["", "-1 0", "-1 0 1 2", "-1 0 2", "-1 0 x", "-1 0 -1", "-1 0 0.5", "- 0 1"])
def test_parents_that_make_no_tree_are_refused(parents):
    trees = pd.DataFrame({"draft_size": 3, "iterations": 2, "parents": ["-1 0 1", parents]})
    with pytest.raises(SpecquantError, match="the parents of a recorded tree of 3 nodes are"):
        tree_shapes(trees, 3, 2)


def test_trees_on_both_models(small_models, tmp_path, in_process, monkeypatch):
    (tmp_path / "prompts.jsonl").write_text('{"id": "a", "task": "code", "prompt": "1 plus 1"}\n')
    options = {"models_dir": small_models, "name": "small", "prompts": tmp_path / "prompts.jsonl", "max_new_tokens": 12}
    monkeypatch.setattr(Parameters, "target_trees", ((60, 6), (24, 3)))
    monkeypatch.setattr(Parameters, "inner_trees", ((30, 3),))
    parameters = Parameters(**options)
    trees = read_results(record(MEASURE, parameters, tmp_path))
    recorded = trees[["model", "draft_size", "iterations"]].drop_duplicates()
    assert list(recorded.itertuples(index=False, name=None)) == [
        ("small intermediate", 30, 3),
        ("small target", 24, 3),
        ("small target", 60, 6),
    ]
    assert (trees.parents.str.split().str.len() == trees.draft_size).all()


@pytest.mark.parametrize("settings", [{"draft_size": "adaptive"}, {"iterations": 2}, {"min_draft_length": 3}])
def test_settings_that_change_nothing_are_refused(settings, small_models):
    Parameters(models_dir=small_models, settings=DraftSettings(top_k=12)).check()
    named = f"leave out --{next(iter(settings)).replace('_', '-')}"
    with pytest.raises(SpecquantError, match=named):
        Parameters(models_dir=small_models, settings=DraftSettings(**settings)).check()


def test_answers_without_a_whole_tree_have_no_confidences(small_models, tmp_path, in_process):
    (tmp_path / "prompts.jsonl").write_text('{"id": "a", "task": "code", "prompt": "1 plus 1"}\n')
    options = {"models_dir": small_models, "name": "small", "prompts": tmp_path / "prompts.jsonl", "max_new_tokens": 2}
    with pytest.raises(SpecquantError, match="no prompt gave the small target a tree of 60 nodes: decode more tokens"):
        record(confidences.MEASURE, confidences.Parameters(**options), tmp_path)


def test_models_that_are_missing_are_refused_before_a_process_is_started(tmp_path, in_process):
    with pytest.raises(SpecquantError, match="is not a model directory"):
        record(MEASURE, Parameters(models_dir=tmp_path / "nowhere"), tmp_path / "out")
    assert in_process == []
    assert not (tmp_path / "out").exists()
