"""Training an EAGLE-3 head (arXiv 2503.01840): by tokens alone, and on its own outputs over several steps.

The head at position p reads the embedding of token p + 1 and the model's features of three layers at p, and drafts
token p + 2. A step further it reads its own output in place of features, as it will when it drafts ("training-time
test"). No feature is regressed: what counts is the distribution over the tokens that it may draft.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from specquant.errors import SpecquantError
from specquant.files import written_whole
from specquant.models.eagle import most_frequent
from specquant.models.eagle3 import FUSED, LAYERS
from specquant.training.eagle import seen_by_chains
from specquant.training.fit import Schedule, fit


@dataclass(frozen=True)
class Eagle3Recipe:
    """How a head learns.

    Attributes:
        schedule: Its optimizer's.
        draft_vocab_size: How many tokens it drafts: the most frequent ones of what it reads.
        depth: How many drafts deep it reads its own outputs.
        decay: How much less each further draft weighs.
        seed: Of its first weights.
    """

    schedule: Schedule = field(default=Schedule(steps=2500, learning_rate=1e-3, weight_decay=0.05))
    draft_vocab_size: int = 1024
    depth: int = 4
    decay: float = 0.8
    seed: int = 0


class Eagle3Layer(LlamaDecoderLayer):
    """A decoder layer whose attention reads the embedding beside what is known of a position."""

    def __init__(self, config: LlamaConfig):
        super().__init__(config, layer_idx=0)
        for name in ("q_proj", "k_proj", "v_proj"):
            linear = getattr(self.self_attn, name)
            setattr(self.self_attn, name, nn.Linear(2 * config.hidden_size, linear.out_features, bias=False))
        self.hidden_norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def read(self, embeddings: torch.Tensor, known: torch.Tensor, **attention) -> torch.Tensor:
        """What is known of the positions behind, [rows, n, hidden]. attention: mask, rotary angles and cache."""
        both = torch.cat((self.input_layernorm(embeddings), self.hidden_norm(known)), dim=-1)
        x = known + self.self_attn(hidden_states=both, **attention)[0]
        return x + self.mlp(self.post_attention_layernorm(x))


class Eagle3Head(nn.Module):
    """The published head, with the names of EAGLE's authors in its state dict; it borrows its model's embedding.

    Args:
        config: Of its model.
        drafted: The tokens that it drafts, int64 [n], ascending.
        layers: The three whose residual streams it reads, as `Llama.run` counts them.

    Raises:
        SpecquantError: If those are not three.
    """

    d2t: torch.Tensor
    t2d: torch.Tensor

    def __init__(self, config: LlamaConfig, drafted: torch.Tensor, layers: tuple[int, ...]):
        super().__init__()
        if len(layers) != FUSED:
            raise SpecquantError(f"an EAGLE-3 head reads {FUSED} layers, not {len(layers)}")
        fields = config.to_dict() | {"num_hidden_layers": 1, "architectures": ["LlamaForCausalLMEagle3"]}
        self.config = LlamaConfig.from_dict(fields | {"tie_word_embeddings": False})
        self.config._attn_implementation = "sdpa"
        self.layers_read = layers
        hidden = config.hidden_size
        self.fc = nn.Linear(FUSED * hidden, hidden, bias=False)
        self.midlayer = Eagle3Layer(self.config)
        self.norm = LlamaRMSNorm(hidden, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(hidden, len(drafted), bias=False)
        self.rotary = LlamaRotaryEmbedding(self.config)
        for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
            nn.init.normal_(linear.weight, std=config.initializer_range)
        self.register_buffer("d2t", drafted - torch.arange(len(drafted)))
        self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool).index_fill(0, drafted, True))

    @property
    def drafted(self) -> torch.Tensor:
        """The tokens that rows of the LM head stand for, int64 [n]."""
        return self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)

    def unroll(self, embeddings: torch.Tensor, streams: torch.Tensor, depth: int) -> list[torch.Tensor]:
        """Logits [rows, n, drafted] of `depth` drafts ahead from every position at once, along the text's own tokens.

        Args:
            embeddings: Of tokens 1 to n, [rows, n, hidden].
            streams: Of positions 0 to n - 1, [rows, n, 3 * hidden].
            depth: How many drafts.

        Returns:
            Entry d holds at p the logits of token p + 2 in a chain that left the model's features at p - d (positions
            p < d have no such chain).
        """
        fused = inputs = self.fc(streams)
        positions = torch.arange(fused.shape[1], device=fused.device)
        rotary = self.rotary(fused, positions[None])
        cache, logits = DynamicCache(), []
        for step in range(depth):
            outputs = self.midlayer.read(
                embeddings,
                inputs,
                attention_mask=seen_by_chains(positions, step),
                position_embeddings=rotary,
                past_key_values=cache,
            )
            logits.append(self.lm_head(self.norm(outputs)))
            inputs = torch.cat((fused[:, :1], outputs[:, :-1]), dim=1)
        return logits

    def save(self, path: Path) -> None:
        """Write config.json and model.safetensors (fp16, the published names), which `--eagle3-target` takes."""
        fields = self.config.to_diff_dict() | {"draft_vocab_size": len(self.d2t), LAYERS: list(self.layers_read)}
        fields |= {"dtype": "float16", "model_type": "llama"}
        stored = {
            name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous().cpu()
            for name, tensor in self.state_dict().items()
        }
        with written_whole(path) as directory:
            save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
            (directory / "config.json").write_text(json.dumps(fields, indent=2) + "\n")


def layers_to_read(count: int) -> tuple[int, ...]:
    """An early, a middle and a late layer of a model with so many: the authors' where it is deep enough.

    Raises SpecquantError where it has fewer than three.
    """
    if count < FUSED:
        raise SpecquantError(f"a model of {count} layers has no {FUSED} that an EAGLE-3 head could read")
    usual = (2, count // 2, count - 3)
    return usual if 2 < usual[1] < usual[2] else (1 if count > FUSED else 0, count // 2, count - 1)


@torch.no_grad()
def model_streams(
    model: LlamaForCausalLM, rows: torch.Tensor, layers: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The residual streams where layers begin, side by side, [rows, length, len(layers) * hidden], and the model's
    logits, both fp32 where they are not more exact."""
    told = model(input_ids=rows, use_cache=False, output_hidden_states=True)
    streams = torch.cat([told.hidden_states[layer] for layer in layers], dim=-1)
    return _float(streams), _float(told.logits)


def _float(numbers: torch.Tensor) -> torch.Tensor:
    return numbers if numbers.dtype == torch.float64 else numbers.float()


def eagle3_loss(
    head: Eagle3Head, model: LlamaForCausalLM, rows: torch.Tensor, depth: int, decay: float = 0.8
) -> torch.Tensor:
    """Cross-entropy against the model's distribution over the drafted tokens, `depth` drafts deep.

    Positions count where the model's own most likely token may be drafted: elsewhere no draft would be right. Each
    further draft weighs `decay` times as much.
    """
    streams, logits = model_streams(model, rows, head.layers_read)
    with torch.no_grad():
        embeddings = model.model.embed_tokens(rows[:, 1:]).to(streams.dtype)
        wanted = logits[:, 1:]
        counts = head.t2d[wanted.argmax(-1)]
        distribution = wanted[..., head.drafted].softmax(-1)
    losses = []
    for skip, drafted in enumerate(head.unroll(embeddings, streams[:, :-1], depth)):
        of_position = F.cross_entropy(
            _float(drafted[:, skip:]).flatten(0, 1), distribution[:, skip:].flatten(0, 1), reduction="none"
        )
        counted = counts[:, skip:].flatten()
        losses.append(decay**skip * (of_position * counted).sum() / counted.sum().clamp(min=1))
    return torch.stack(losses).sum() / sum(decay**skip for skip in range(depth))


@torch.no_grad()
def drafts_right(head: Eagle3Head, model: LlamaForCausalLM, rows: torch.Tensor, depth: int) -> list[float]:
    """The share of drafts that are the model's most likely tokens, by depth, where all drafts before them are the
    text's tokens."""
    streams, logits = model_streams(model, rows, head.layers_read)
    embeddings, wanted = model.model.embed_tokens(rows[:, 1:]).to(streams.dtype), logits[:, 1:].argmax(-1)
    drafts = [head.drafted[step.argmax(-1)] for step in head.unroll(embeddings, streams[:, :-1], depth)]
    return [(draft == wanted)[:, skip:].double().mean().item() for skip, draft in enumerate(drafts)]


def train_eagle3_head(
    name: str,
    model: LlamaForCausalLM,
    batch: Callable[[int], torch.Tensor],
    held_out: torch.Tensor,
    recipe: Eagle3Recipe,
    checkpoints: Path,
) -> tuple[Eagle3Head, dict]:
    """Train a model's head on text, best on what the model itself wrote.

    Args:
        name: What it is called in progress bars and checkpoints.
        model: Whose embedding and features it reads; it stays as it is.
        batch: The rows of tokens of each step, int64 [n, length].
        held_out: Rows that are not learned from, by which the best weights are kept.
        recipe: How it learns.
        checkpoints: The folder of what an interrupted call goes on from.

    Returns:
        The head, in float32, and {"seconds", "curve", "right"}: of held-out drafts by depth, the share that are the
        model's most likely tokens.
    """
    torch.manual_seed(recipe.seed)
    drafted = most_frequent(batch(0).flatten().tolist(), recipe.draft_vocab_size, model.config.vocab_size)
    head = Eagle3Head(model.config, drafted, layers_to_read(model.config.num_hidden_layers)).to(model.device)

    def loss_at(step: int) -> torch.Tensor:
        return eagle3_loss(head, model, batch(step), recipe.depth, recipe.decay)

    @torch.no_grad()
    def held_out_loss() -> float:
        return eagle3_loss(head, model, held_out, recipe.depth, recipe.decay).item()

    run = fit(name, head, loss_at, held_out_loss, recipe.schedule, recipe.seed, checkpoints / f"{name}.pt")
    return head, run | {"right": drafts_right(head, model, held_out, recipe.depth)}
