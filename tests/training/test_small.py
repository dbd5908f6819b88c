"""Small models of some of a target's layers: which ones, with whose ends, and that they learn."""

import pytest
import torch

from specquant.errors import SpecquantError
from specquant.models.loading import load_model
from specquant.training.saving import rounded, save_small
from specquant.training.small import SmallRecipe, choose_layers, distill, held_out_agreement, shortened

RECIPE = SmallRecipe(layers=1, rows=4)


@pytest.mark.parametrize(
    ("count", "of", "chosen", "layers"),
    [
        (6, 30, "ends", [0, 1, 2, 27, 28, 29]),
        (3, 30, "ends", [0, 1, 29]),
        (1, 30, "ends", [0]),
        (6, 30, "evenly", [0, 6, 12, 17, 23, 29]),
        (1, 30, "evenly", [0]),
        (4, 4, "ends", [0, 1, 2, 3]),
        (4, 4, "evenly", [0, 1, 2, 3]),
    ],
)
def test_layers(count, of, chosen, layers):
    assert choose_layers(count, of, chosen) == layers


@pytest.mark.parametrize("count", [0, 5])
def test_there_are_not_so_many(count):
    told = r"a target of 4 layers has no intermediate model of .*: give --layers 1 to 4"
    with pytest.raises(SpecquantError, match=told):
        choose_layers(count, 4, "ends")


def test_all_layers_are_the_target(target, written):
    whole = shortened(target, [0, 1])
    assert held_out_agreement(whole, written, target.lm_head.weight, 4) == 1.0
    assert whole.model.embed_tokens is target.model.embed_tokens
    assert whole.model.layers[0].mlp.down_proj.weight is not target.model.layers[0].mlp.down_proj.weight


def test_it_learns_and_leaves_the_target_alone(target, written, small_models, tmp_path):
    before = {name: p.clone() for name, p in target.named_parameters()}
    small, log = distill("small", target, written, RECIPE, 1.0, tmp_path)
    assert log["layers"] == [0]
    assert log["curve"][-1]["train_loss"] < log["curve"][0]["train_loss"] or log["steps"] < 10
    assert held_out_agreement(small, written, target.lm_head.weight, 4) == log["agreement"]
    assert all(torch.equal(p, before[name]) for name, p in target.named_parameters())
    save_small(rounded(small), str(small_models / "target"), tmp_path / "out")
    ours = load_model(tmp_path / "out")
    tokens = written.tokens[0]
    with torch.no_grad():
        expected = small(input_ids=tokens[None]).logits[0]
    logits = ours.logits(ours.prefill(tokens, ours.new_cache(len(tokens))))
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max().clamp(min=1)


def test_it_may_learn_on(target, written, tmp_path):
    first, log = distill("a", target, written, RECIPE, 0.5, tmp_path)
    start = {f"model.{name}": p for name, p in first.model.state_dict().items() if "embed_tokens" not in name}
    _, later = distill("b", target, written, RECIPE, 0.0, tmp_path, start)
    assert later["agreement_before"] == log["agreement"]
