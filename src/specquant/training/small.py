"""An intermediate model for a target: some of its layers between its own embedding and LM head, distilled."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from specquant.errors import SpecquantError
from specquant.training.distributions import agreement, cross_entropy
from specquant.training.fit import Schedule
from specquant.training.heads import lm_head_of
from specquant.training.learning import learn
from specquant.training.running import autocast
from specquant.training.writing import Rows
from specquant.training.written import Reading, Written


@dataclass(frozen=True)
class SmallRecipe:
    """How an intermediate model learns.

    Attributes:
        layers: How many it has.
        chosen: Which of the target's it begins with: one of `CHOICES`.
        schedule: Its optimizer's; `fitting` sets the number of steps.
        rows: Of text in one training step.
        greedy_weight: Of the target's most likely token, beside its distribution.
        feature_weight: Of the distance between both models' features.
        seed: Of the order of rows.
    """

    layers: int = 6
    chosen: str = "evenly"
    schedule: Schedule = field(default=Schedule(steps=1, learning_rate=2e-3, weight_decay=0.01, muon=True))
    rows: int = 64
    greedy_weight: float = 0.5
    feature_weight: float = 0.0
    seed: int = 1


def evenly(count: int, of: int) -> list[int]:
    """Layers with even distances between them, the first and the last among them."""
    return [0] if count == 1 else [round(i * (of - 1) / (count - 1)) for i in range(count)]


def ends(count: int, of: int) -> list[int]:
    """The first half and the last half of as many layers."""
    return [*range(-(-count // 2)), *range(of - count // 2, of)]


CHOICES = {"evenly": evenly, "ends": ends}


def choose_layers(count: int, of: int, chosen: str) -> list[int]:
    """The target's layers that an intermediate model begins with, in order.

    Raises:
        SpecquantError: There are not so many.
    """
    if not 1 <= count <= of:
        raise SpecquantError(f"a target of {of} layers has no intermediate model of {count}: give --layers 1 to {of}")
    return CHOICES[chosen](count, of)


def shortened(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A model of some of another's layers, copied, with its final norm; embedding and LM head are the other's own, and
    do not learn. In float32."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in layers]
    with torch.device("meta"):
        small = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    small.model.layers = nn.ModuleList(copy.deepcopy(model.model.layers[i]).float() for i in layers)
    for index, layer in enumerate(small.model.layers):
        layer.self_attn.layer_idx = index
    small.model.norm = copy.deepcopy(model.model.norm).float()
    small.model.rotary_emb = copy.deepcopy(model.model.rotary_emb)
    small.requires_grad_(True)
    small.model.embed_tokens, small.lm_head = model.model.embed_tokens, model.lm_head
    return small


def distill(
    name: str,
    model: PreTrainedModel,
    written: Written,
    recipe: SmallRecipe,
    seconds: float,
    checkpoints: Path,
    start: dict[str, torch.Tensor] | None = None,
) -> tuple[PreTrainedModel, dict]:
    """Make a model of some of a target's layers and teach it the target's distributions over its answers.

    Args:
        name: What it is called in progress bars and checkpoints.
        model: The target.
        written: The text, with the target's features, which stand for its distributions.
        recipe: How it learns.
        seconds: How long.
        checkpoints: The folder of what an interrupted call goes on from.
        start: The layers and final norm of one that learns on, by transformers' names; None for the target's.

    Returns:
        The model, its layers in float32, and {"seconds", "curve", "steps", "layers", "agreement"}: the share of
        held-out positions of answers where both models' most likely tokens are the same.
    """
    layers = choose_layers(recipe.layers, model.config.num_hidden_layers, recipe.chosen)
    small = shortened(model, layers)
    if start is not None:
        small.model.load_state_dict({name.removeprefix("model."): w for name, w in start.items()}, strict=False)
    learner = nn.ModuleDict({"layers": small.model.layers, "norm": small.model.norm})
    lm_head = lm_head_of(model)
    before = held_out_agreement(small, written, lm_head, recipe.rows)

    def loss(rows: Rows) -> torch.Tensor:
        predicted, wanted = answers_of(small, rows)
        loss = cross_entropy(predicted[None], wanted, lm_head, recipe.greedy_weight)
        if recipe.feature_weight:
            loss = loss + recipe.feature_weight * F.smooth_l1_loss(predicted, wanted)
        return loss

    text = Reading(written, recipe.rows, recipe.seed)
    run = learn(name, learner, text, loss, recipe.schedule, recipe.seed, checkpoints, seconds)
    small.requires_grad_(False).eval()
    reached = held_out_agreement(small, written, lm_head, recipe.rows)
    return small, run | {"layers": layers, "agreement_before": before, "agreement": reached}


def answers_of(model: PreTrainedModel, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """A model's features and the target's, [n, hidden] each, where the token that follows is an answer's."""
    with autocast(rows.tokens.device):
        states = model.model(input_ids=rows.tokens, use_cache=False).last_hidden_state
    chosen = rows.answers[:, 1:]
    return states[:, :-1][chosen].float(), rows.features[:, :-1][chosen].float()


@torch.no_grad()
def held_out_agreement(model: PreTrainedModel, written: Written, lm_head: torch.Tensor, rows: int) -> float:
    """The share of held-out positions of answers where a model's most likely token is the target's."""
    same, count = 0.0, 0
    for batch in written.held_out_batches(rows):
        predicted, wanted = answers_of(model, batch)
        same, count = same + agreement(predicted[None], wanted, lm_head).item(), count + len(wanted)
    return round(same / count, 4)
