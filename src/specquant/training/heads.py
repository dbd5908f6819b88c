"""An EAGLE head for any model, from text that a target wrote: started from least squares, then trained as it drafts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from specquant.training.distributions import agreement, cross_entropy
from specquant.training.eagle import EagleHead
from specquant.training.fit import Schedule
from specquant.training.learning import learn
from specquant.training.running import autocast
from specquant.training.transformer import plain_config
from specquant.training.writing import Rows
from specquant.training.written import Reading, Written

Features = Callable[[Rows], torch.Tensor]


class Learning(Protocol):
    """What recipes of heads of every kind say."""

    @property
    def schedule(self) -> Schedule: ...

    @property
    def rows(self) -> int: ...

    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class HeadRecipe:
    """How a head learns.

    Attributes:
        schedule: Its optimizer's; `fitting` sets the number of steps.
        rows: Of one step.
        depth: How many drafts deep it reads its own predictions (HASS, arXiv 2408.15766; EAGLE-3, arXiv 2503.01840).
        feature_weight, token_weight: Of EAGLE's two losses.
        noise: Uniform, on the features that it reads, as a share of their standard deviation.
        least_squares_rows: That it starts from.
        seed: Of the order of rows.
    """

    schedule: Schedule = field(default=Schedule(steps=1, learning_rate=1e-3, weight_decay=0.01))
    rows: int = 32
    depth: int = 4
    feature_weight: float = 0.2
    token_weight: float = 1.0
    noise: float = 0.05
    least_squares_rows: int = 512
    seed: int = 0


def stored_features(rows: Rows) -> torch.Tensor:
    """The target's features, as they were stored."""
    return rows.features.float()


def features_of(model: PreTrainedModel) -> Features:
    """Another model's features of the same rows."""

    @torch.no_grad()
    def features(rows: Rows) -> torch.Tensor:
        with autocast(rows.tokens.device):
            return model.model(input_ids=rows.tokens, use_cache=False).last_hidden_state.float()

    return features


def head_config(model_config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of a model's head: one layer of Llama's kind in the model's own shape."""
    from transformers import LlamaConfig

    fields = plain_config(model_config).to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    names += ("max_position_embeddings", "rms_norm_eps", "rope_parameters", "bos_token_id", "eos_token_id")
    kept = {name: fields[name] for name in names}
    return LlamaConfig(**kept, num_hidden_layers=1, architectures=["EagleHead"], bias=True, tie_word_embeddings=False)


def train_head(
    name: str,
    model: PreTrainedModel,
    written: Written,
    features: Features,
    recipe: HeadRecipe,
    seconds: float | None,
    checkpoints: Path,
    start: dict[str, torch.Tensor] | None = None,
) -> tuple[EagleHead, dict]:
    """Train a model's head on what a target wrote, masked to its answers.

    Args:
        name: What it is called in progress bars and checkpoints.
        model: Whose embedding and LM head it uses; it stays as it is.
        written: The text.
        features: The model's features of rows.
        recipe: How it learns.
        seconds: How long; None for the steps that the recipe has.
        checkpoints: The folder of what an interrupted call goes on from.
        start: The weights of a head that learns on; None for one that starts from least squares.

    Returns:
        The head, in float32, and {"seconds", "curve", "steps", "accuracy_before", "accuracy"}: by depth, the share of
        held-out greedy drafts that are the model's own most likely tokens, where all drafts before them are the text's.
    """
    device = written.device
    torch.manual_seed(recipe.seed)
    head = EagleHead(head_config(model.config)).to(device)
    if start is None:
        start_from_least_squares(head, model, written, features, recipe)
    else:
        head.load_state_dict(start)
    ends = model.model.embed_tokens.weight, lm_head_of(model)
    scale = features(written.rows(torch.arange(min(8, len(written.tokens))))).std()

    def loss(rows: Rows) -> torch.Tensor:
        states = features(rows)
        noise = (2 * torch.rand_like(states) - 1) * (recipe.noise * scale) if head.training else 0
        with autocast(device):
            predicted, wanted = unrolled(head, ends[0], rows, states, recipe.depth, states + noise)
        regression = F.smooth_l1_loss(predicted, wanted.expand_as(predicted))
        return recipe.feature_weight * regression + recipe.token_weight * cross_entropy(predicted, wanted, ends[1])

    def right() -> list[float]:
        return unrolled_accuracy(head, model, written, features, recipe)

    return head, learn_to_draft(name, head, loss, right, written, recipe, seconds, checkpoints)


def learn_to_draft(
    name: str,
    head: nn.Module,
    loss: Callable[[Rows], torch.Tensor],
    right: Callable[[], list[float]],
    written: Written,
    recipe: Learning,
    seconds: float | None,
    checkpoints: Path,
) -> dict:
    """Train a head of any kind on a text.

    Args:
        name: What it is called in progress bars and checkpoints.
        head: What learns.
        loss: Of rows.
        right: The share of held-out drafts that are right, by depth.
        written: The text.
        recipe: How it learns.
        seconds: How long; None for the steps that the recipe has.
        checkpoints: The folder of what an interrupted call goes on from.

    Returns:
        What `learn` says, with "accuracy_before" and "accuracy", which `right` says.
    """
    before, text = right(), Reading(written, recipe.rows, recipe.seed)
    run = learn(name, head, text, loss, recipe.schedule, recipe.seed, checkpoints, seconds)
    return run | {"accuracy_before": before, "accuracy": right()}


def lm_head_of(model: PreTrainedModel) -> torch.Tensor:
    """A model's LM head, in the dtype that products with it are computed in."""
    weight = model.lm_head.weight
    return weight if weight.is_cuda else weight.float()


def unrolled(
    head: EagleHead, embedding: torch.Tensor, rows: Rows, features: torch.Tensor, depth: int, read: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a head predicts where the token that follows is an answer's, [depth, n, hidden], and the model's features
    there, [n, hidden]. read: the features that the head reads, the model's or noisy ones."""
    embeddings = F.embedding(rows.tokens[:, 1:], embedding).to(features.dtype)
    predicted = head.unroll(embeddings, read[:, :-1], depth)
    chosen = rows.answers[:, 2:].clone()
    chosen[:, : depth - 1] = False  # no chain is so deep there
    wanted = features[:, 1:-1][chosen]
    return torch.stack([states[:, :-1][chosen].float() for states in predicted]), wanted


@torch.no_grad()
def unrolled_accuracy(
    head: EagleHead, model: PreTrainedModel, written: Written, features: Features, recipe: HeadRecipe
) -> list[float]:
    """The share of held-out drafts that are the model's most likely tokens, by depth."""
    right, count = 0, 0
    weight, embedding = lm_head_of(model), model.model.embed_tokens.weight
    for rows in written.held_out_batches(recipe.rows):
        states = features(rows)
        with autocast(written.device):
            predicted, wanted = unrolled(head, embedding, rows, states, recipe.depth, states)
        right, count = right + agreement(predicted, wanted, weight), count + len(wanted)
    return [round(share, 4) for share in (right / count).tolist()]


@torch.no_grad()
def start_from_least_squares(
    head: EagleHead, model: PreTrainedModel, written: Written, features: Features, recipe: HeadRecipe
) -> None:
    """Let a head begin as the best linear map from token and feature to the next feature; its layer adds nothing."""
    size = model.config.hidden_size
    device = written.device
    products = torch.zeros(2 * size + 1, 3 * size + 1, dtype=torch.float64, device=device)
    embedding = model.model.embed_tokens.weight
    for rows in training_batches(written, recipe.rows, recipe.least_squares_rows):
        states = features(rows)
        chosen = rows.answers[:, 1:]
        inputs = torch.cat((F.embedding(rows.tokens[:, 1:], embedding).float(), states[:, :-1]), dim=-1)[chosen]
        inputs = F.pad(inputs, (0, 1), value=1.0).double()
        products += inputs.t() @ torch.cat((inputs, states[:, 1:][chosen].double()), dim=-1)
    left, right = products[:, : 2 * size + 1], products[:, 2 * size + 1 :]
    left += 1e-6 * left.diagonal().mean() * torch.eye(len(left), dtype=left.dtype, device=device)
    solution = torch.linalg.solve(left, right).t()
    head.fc.weight.copy_(solution[:, :-1])
    head.fc.bias.copy_(solution[:, -1])
    for linear in (head.layers[0].self_attn.o_proj, head.layers[0].mlp.down_proj):
        linear.weight.zero_()


def training_batches(written: Written, count: int, most: int) -> Iterator[Rows]:
    """Rows that are not held out, `count` at a time, `most` in all if there are so many."""
    numbers = torch.arange(written.held_out, len(written.tokens))[:most]
    for part in numbers.split(count):
        yield written.rows(part)
