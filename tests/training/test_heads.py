"""Heads for any model: a good start, learning, the published form, and the features that decoding reads."""

import pytest
import torch

from specquant.models.loading import load_eagle_head, load_model
from specquant.training.eagle import EagleHead
from specquant.training.heads import (
    HeadRecipe,
    features_of,
    head_config,
    start_from_least_squares,
    stored_features,
    train_head,
    unrolled_accuracy,
)
from specquant.training.saving import rounded, save_head

RECIPE = HeadRecipe(rows=4, depth=2)


@pytest.fixture
def head(target):
    torch.manual_seed(0)
    return EagleHead(head_config(target.config))


def test_least_squares_are_nearer_than_any_other_line(target, written, head):
    start_from_least_squares(head, target, written, stored_features, RECIPE)
    rows = written.rows(torch.arange(written.held_out, 16))
    chosen = rows.answers[:, 1:]
    embeddings = target.model.embed_tokens(rows.tokens[:, 1:])

    @torch.no_grad()
    def error():
        return (head.unroll(embeddings, rows.features[:, :-1].float(), 1)[0] - rows.features[:, 1:])[chosen].norm()

    least = error()
    assert least < rows.features[:, 1:][chosen].float().norm()
    for change in (0.01, -0.01):
        with torch.no_grad():
            head.fc.weight.add_(change)
            assert error() > least
            head.fc.weight.sub_(change)


def test_training_lowers_the_loss_and_loads(target, written, small_models, tmp_path):
    head, log = train_head("head", target, written, stored_features, RECIPE, 1.0, tmp_path)
    assert log["curve"][-1]["train_loss"] < log["curve"][0]["train_loss"] or log["steps"] < 10
    assert len(log["accuracy"]) == len(log["accuracy_before"]) == RECIPE.depth
    assert unrolled_accuracy(head, target, written, stored_features, RECIPE) == log["accuracy"]
    save_head(rounded(head), head_config(target.config), tmp_path / "out")
    loaded = load_eagle_head(tmp_path / "out", load_model(small_models / "target"))
    assert torch.equal(loaded.fc.weight, head.fc.weight.float())


def test_a_head_may_learn_on(target, written, tmp_path, head):
    start = head.state_dict()
    trained, log = train_head("head", target, written, stored_features, RECIPE, 0.0, tmp_path, start)
    assert log["steps"] == 1
    assert log["accuracy_before"] == unrolled_accuracy(head, target, written, stored_features, RECIPE)
    assert all((trained.state_dict()[name] - w).abs().max() < 0.1 for name, w in start.items())


def test_features_of_a_model_are_those_that_were_stored(target, written):
    rows = written.rows(torch.arange(4))
    assert (features_of(target)(rows) - stored_features(rows)).abs().max() < 0.02
