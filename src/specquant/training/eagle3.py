"""Training an EAGLE-3 head (arXiv 2503.01840): by tokens alone, and on its own outputs over several steps.

The head at position p reads the embedding of token p + 1 and the model's features of three layers at p, and drafts
token p + 2. A step further it reads its own output in place of features, as it will when it drafts ("training-time
test"). No feature is regressed: what counts is the distribution over the tokens that it may draft.
"""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, LlamaConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from specquant.errors import SpecquantError
from specquant.files import written_whole
from specquant.models.checkpoint import SINGLE_FILE, stored_with
from specquant.models.eagle import most_frequent
from specquant.models.eagle3 import FUSED, LAYERS
from specquant.training.distributions import chunk_size
from specquant.training.eagle import seen_by_chains
from specquant.training.fit import Schedule
from specquant.training.heads import head_config, learn_to_draft, lm_head_of, training_batches
from specquant.training.running import autocast
from specquant.training.writing import Rows
from specquant.training.written import Written

DRAFTED_ONE_IN = 4  # tokens of a vocabulary, as the published heads of Llama-3 do: 32,000 of 128,256


@dataclass(frozen=True)
class Eagle3Recipe:
    """How a head learns.

    Attributes:
        schedule: Its optimizer's; `fitting` sets the number of steps.
        rows: Of one step.
        draft_vocab_size: How many tokens it drafts, the most frequent ones of the text's answers; None for every
            `DRAFTED_ONE_IN`th of its model's.
        depth: How many drafts deep it reads its own outputs.
        decay: How much less each further draft weighs.
        least_squares_rows: That its `fc` starts from.
        seed: Of its first weights, and of the order of rows.
    """

    schedule: Schedule = field(default=Schedule(steps=1, learning_rate=3e-3, weight_decay=0.01, muon=True))
    rows: int = 32
    draft_vocab_size: int | None = None
    depth: int = 4
    decay: float = 0.8
    least_squares_rows: int = 512
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
        """What it knows `depth` drafts ahead from every position at once, [rows, n, hidden] for each, along the text's
        own tokens; `lm_head` of its `norm` makes logits of that.

        Args:
            embeddings: Of tokens 1 to n, [rows, n, hidden].
            streams: Of positions 0 to n - 1, [rows, n, 3 * hidden].
            depth: How many drafts.

        Returns:
            Entry d holds at p what says token p + 2 in a chain that left the model's features at p - d (positions
            p < d have no such chain).
        """
        fused = inputs = self.fc(streams)
        positions = torch.arange(fused.shape[1], device=fused.device)
        rotary = self.rotary(fused, positions[None])
        cache, known = DynamicCache(), []
        for step in range(depth):
            outputs = self.midlayer.read(
                embeddings,
                inputs,
                attention_mask=seen_by_chains(positions, step),
                position_embeddings=rotary,
                past_key_values=cache,
            )
            known.append(outputs)
            inputs = torch.cat((fused[:, :1], outputs[:, :-1]), dim=1)
        return known

    def save(self, path: Path, bits: int = 16) -> None:
        """Write config.json and model.safetensors (`stored_with` so many bits, the published names), which
        `--eagle3-target` takes."""
        fields = self.config.to_diff_dict() | {"draft_vocab_size": len(self.d2t), LAYERS: list(self.layers_read)}
        fields |= {"dtype": "float16", "model_type": "llama"}
        with written_whole(path) as directory:
            save_file(stored_with(bits, self.state_dict()), directory / SINGLE_FILE, metadata={"format": "pt"})
            (directory / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
            shutil.rmtree(path, ignore_errors=True)  # of a run that was interrupted behind this


def layers_to_read(count: int) -> tuple[int, ...]:
    """An early, a middle and a late layer of a model with so many: the authors' where it is deep enough.

    Raises SpecquantError where it has fewer than three.
    """
    if count < FUSED:
        raise SpecquantError(f"a model of {count} layers has no {FUSED} that an EAGLE-3 head could read")
    usual = (2, count // 2, count - 3)
    return usual if 2 < usual[1] < usual[2] else (1 if count > FUSED else 0, count // 2, count - 1)


def draft_vocab_size(asked: int | None, vocab_size: int) -> int:
    """How many tokens of a vocabulary a head drafts, where so many were asked for."""
    return asked or -(-vocab_size // DRAFTED_ONE_IN)


@torch.no_grad()
def model_streams(
    model: PreTrainedModel, tokens: torch.Tensor, layers: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The residual streams where layers begin, side by side, [rows, length, len(layers) * hidden], and the model's
    features, [rows, length, hidden], both fp32 where they are not more exact."""
    with autocast(tokens.device):
        told = model.model(input_ids=tokens, use_cache=False, output_hidden_states=True)
    streams = torch.cat([_float(told.hidden_states[layer]) for layer in layers], dim=-1)
    return streams, _float(told.last_hidden_state)


def _float(numbers: torch.Tensor) -> torch.Tensor:
    return numbers if numbers.dtype == torch.float64 else numbers.float()


def unrolled(
    head: Eagle3Head, model: PreTrainedModel, rows: Rows, depth: int
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What a head knows where the token that follows is an answer's, [n, hidden] for each draft, and the model's
    features there, [n, hidden]."""
    streams, features = model_streams(model, rows.tokens, head.layers_read)
    embeddings = F.embedding(rows.tokens[:, 1:], model.model.embed_tokens.weight).to(streams.dtype)
    with autocast(rows.tokens.device):
        outputs = head.unroll(embeddings, streams[:, :-1], depth)
    chosen = rows.answers[:, 2:].clone()
    chosen[:, : depth - 1] = False  # no chain is so deep there
    return [states[:, :-1][chosen] for states in outputs], features[:, 1:-1][chosen]


def eagle3_loss(head: Eagle3Head, model: PreTrainedModel, rows: Rows, depth: int, decay: float = 0.8) -> torch.Tensor:
    """Cross-entropy against the model's distribution over the drafted tokens, `depth` drafts deep.

    Positions of answers count where the model's own most likely token may be drafted: elsewhere no draft would be
    right. Each further draft weighs `decay` times as much.
    """
    outputs, features = unrolled(head, model, rows, depth)
    lm_head, drafted = lm_head_of(model), head.drafted

    def of_part(wanted: torch.Tensor, *known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            logits = wanted.to(lm_head.dtype) @ lm_head.t()
            counts = head.t2d[logits.argmax(-1)]
            distribution = _float(logits[:, drafted]).softmax(-1)
        with autocast(wanted.device):
            drafts = [_float(head.lm_head(head.norm(states))) for states in known]
        losses = [F.cross_entropy(logits, distribution, reduction="none") for logits in drafts]
        return torch.stack([(decay**skip * loss * counts).sum() for skip, loss in enumerate(losses)]), counts.sum()

    # Logits are the largest tensors of a step by far: they are made again for the gradient.
    parts = torch.arange(len(features), device=features.device).split(chunk_size(lm_head))
    told = [
        checkpoint(of_part, features[part], *(states[part] for states in outputs), use_reentrant=False)
        for part in parts
    ]
    losses, counted = (torch.stack(each).sum(dim=0) for each in zip(*told, strict=True))
    return losses.sum() / counted.clamp(min=1) / sum(decay**skip for skip in range(depth))


@torch.no_grad()
def drafts_right(head: Eagle3Head, model: PreTrainedModel, batches: Iterable[Rows], depth: int) -> list[float]:
    """The share of answers' drafts that are the model's most likely tokens, by depth, where all drafts before them are
    the text's tokens."""
    right, count = torch.zeros(depth, dtype=torch.float64), 0
    lm_head = lm_head_of(model)
    for rows in batches:
        outputs, features = unrolled(head, model, rows, depth)
        for part in torch.arange(len(features), device=features.device).split(chunk_size(lm_head)):
            tokens = (features[part].to(lm_head.dtype) @ lm_head.t()).argmax(-1)
            with autocast(tokens.device):
                drafts = [head.drafted[head.lm_head(head.norm(states[part])).argmax(-1)] for states in outputs]
            right += torch.stack([(draft == tokens).sum() for draft in drafts]).cpu()
        count += len(features)
    return [round(share, 4) for share in (right / max(count, 1)).tolist()]


def train_eagle3_head(
    name: str,
    model: PreTrainedModel,
    written: Written,
    recipe: Eagle3Recipe,
    seconds: float,
    checkpoints: Path,
) -> tuple[Eagle3Head, dict]:
    """Train a model's head on what a target wrote, masked to its answers.

    Args:
        name: What it is called in progress bars and checkpoints.
        model: Whose embedding and features it reads; it stays as it is.
        written: The text.
        recipe: How it learns.
        seconds: How long.
        checkpoints: The folder of what an interrupted call goes on from.

    Returns:
        The head, in float32, and what `learn_to_draft` says, with "drafted_share": of the text's answers, the share of
        tokens that the head can draft.
    """
    torch.manual_seed(recipe.seed)
    config = head_config(model.config)
    answers = written.tokens[written.held_out :][written.answers[written.held_out :]]
    size = draft_vocab_size(recipe.draft_vocab_size, config.vocab_size)
    drafted = most_frequent(answers.tolist(), size, config.vocab_size)
    head = Eagle3Head(config, drafted, layers_to_read(model.config.num_hidden_layers)).to(written.device)
    start_from_model(head, model, training_batches(written, recipe.rows, recipe.least_squares_rows))
    run = learn_to_draft(
        name,
        head,
        lambda rows: eagle3_loss(head, model, rows, recipe.depth, recipe.decay),
        lambda: drafts_right(head, model, written.held_out_batches(recipe.rows), recipe.depth),
        written,
        recipe,
        seconds,
        checkpoints,
    )
    return head, run | {"drafted_share": round(head.t2d[answers].double().mean().item(), 4)}


@torch.no_grad()
def start_from_model(head: Eagle3Head, model: PreTrainedModel, batches: Iterable[Rows]) -> None:
    """Let a head begin with its model's LM head, and with what three streams say of the next features by a linear map;
    its layer adds nothing."""
    width = len(head.layers_read) * model.config.hidden_size
    products = torch.zeros(width, width + model.config.hidden_size, dtype=torch.float64, device=head.d2t.device)
    for rows in batches:
        streams, features = model_streams(model, rows.tokens, head.layers_read)
        chosen = rows.answers[:, 1:]
        read = streams[:, :-1][chosen].double()
        products += read.t() @ torch.cat((read, features[:, 1:][chosen].double()), dim=-1)
    left, right = products[:, :width], products[:, width:]
    left += 1e-4 * left.diagonal().mean() * torch.eye(width, dtype=left.dtype, device=left.device)
    head.fc.weight.copy_(torch.linalg.solve(left, right).t())
    head.lm_head.weight.copy_(model.lm_head.weight[head.drafted])
    for linear in (head.midlayer.self_attn.o_proj, head.midlayer.mlp.down_proj):
        linear.weight.zero_()
