"""The draft head of EAGLE-3 (arXiv 2503.01840): what it computes, and what its config.json may say."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from specquant.errors import SpecquantError
from specquant.models.config import config_of, find_config
from specquant.models.eagle import DraftHead
from specquant.models.fields import COUNT, FLAG, Kind, check_fields, list_of, optional, read_json, shown, whole
from specquant.models.llama import LlamaLayer, RMSNorm
from specquant.quant import Scheme, get_scheme

FUSED = 3  # layers whose features a head reads
LAYERS = "eagle_aux_hidden_state_layer_ids"
ROTATED = "reads_rotated_features"  # what `convert-head` writes: fc undoes the rotation
FIELDS = {
    "draft_vocab_size": optional(COUNT),
    "target_hidden_size": optional(COUNT),
    "norm_before_residual": optional(FLAG),
    ROTATED: optional(FLAG),
    LAYERS: optional(list_of(whole(0))),
}
# Fields by which published heads vary, and the values with which they compute what we do.
AS_HERE: dict[str, tuple[Any, ...]] = {
    "norm_before_fc": (False, None),
    "fc_norm": (False, None),
    "norm_output": (False, None),
    "use_aux_hidden_state": (True, None),
    "use_input_layernorm_in_first_layer": (True, None),
    "use_last_layernorm": (True, None),
    "use_mtp_layernorm": (False, None),
    "parallel_drafting": (False, None),
    "ptd_token_id": (None,),
    "pard_token": (None,),
    "is_causal": (True, None),
    "logit_scale": (1, None),
    "quantization_config": (None,),
}


@dataclass(frozen=True)
class Eagle3Config:
    """What the config.json of an EAGLE-3 head says.

    Attributes:
        layer: Of its decoder layer: Llama's, with the vocabulary of its model.
        draft_vocab_size: The tokens that it drafts.
        target_hidden_size: Of its model.
        feature_layers: Whose residual streams it reads, counted as `Llama.run` does; None where config.json does not
            name them.
        norm_before_residual: The residual stream of its layer begins with what `hidden_norm` makes, not with what that
            reads.
        reads_rotated_features: It was converted for a rotated model.
    """

    layer: PreTrainedConfig
    draft_vocab_size: int
    target_hidden_size: int
    feature_layers: tuple[int, ...] | None = None
    norm_before_residual: bool = False
    reads_rotated_features: bool = False

    def layers_of(self, model: PreTrainedConfig, path: str | Path) -> tuple[int, ...]:
        """The layers of a model that it reads: by default those of the paper's authors, an early, a middle and a late
        one. Raises SpecquantError where the model does not have them."""
        count = model.num_hidden_layers
        if self.feature_layers is None:
            layers = (2, count // 2, count - 3)
            if not 2 < layers[1] < layers[2]:
                raise SpecquantError(
                    f"{path}: config.json does not name {LAYERS}, and of a model of {count} layers there are no "
                    f"{FUSED} usual ones: name them"
                )
            return layers
        if max(self.feature_layers) > count:
            raise SpecquantError(
                f"{path}: {LAYERS} is {list(self.feature_layers)}, and its model has {count} layers: this head is for "
                "another model"
            )
        return self.feature_layers


def is_eagle3(path: str | Path) -> bool:
    """Whether the config.json in a directory is that of an EAGLE-3 head, in either format. Raises SpecquantError where
    there is none."""
    fields = read_json(find_config(Path(path)))
    return any(name in fields for name in ("draft_vocab_size", "speculators_model_type", LAYERS))


def load_eagle3_config(path: str | Path) -> Eagle3Config:
    """The configuration of the EAGLE-3 head in a directory: SafeAILab's format, or that of vLLM's speculators.

    Raises SpecquantError where it is damaged, and where a field says that the head computes otherwise than here.
    """
    file = find_config(Path(path))
    fields = read_json(file)
    if not is_eagle3(path):
        raise SpecquantError(f"{path} is no EAGLE-3 head: its config.json has no draft_vocab_size")
    nested = "speculators_model_type" in fields or "transformer_layer_config" in fields
    kinds = dict(FIELDS)
    if nested:
        _require(fields, "speculators_model_type", ("eagle3",), file)
        kinds["norm_before_residual"] = FLAG  # two programs take two values for what is missing
        kinds["transformer_layer_config"] = Kind("an object", lambda value: isinstance(value, dict))
        missing = [name for name in ("norm_before_residual", "transformer_layer_config") if name not in fields]
        if missing:
            raise SpecquantError(f"{file}: {missing[0]} is missing; it must be {kinds[missing[0]].words}")
    check_fields(fields, kinds, file)
    of_eagle = fields.get("eagle_config")
    if isinstance(of_eagle, dict):
        fields = {**fields, **of_eagle}
        check_fields(fields, kinds, file)
    layer = fields["transformer_layer_config"] if nested else fields
    for name, values in AS_HERE.items():
        for said in (fields, layer):
            if name in said:
                _require(said, name, values, file)
    _require(layer, "model_type", ("llama",), file)
    _require(layer, "num_hidden_layers", (1,), file)
    config = config_of(layer, file)
    layers = fields.get(LAYERS)
    if layers is not None and len(layers) != FUSED:
        raise SpecquantError(f"{file}: {LAYERS} is {shown(layers)}; EAGLE-3 reads {FUSED} layers")
    draft_vocab_size = fields.get("draft_vocab_size") or config.vocab_size
    if draft_vocab_size > config.vocab_size:
        raise SpecquantError(
            f"{file}: draft_vocab_size is {draft_vocab_size}, and vocab_size {config.vocab_size}: a draft's vocabulary "
            "is a part of the model's"
        )
    return Eagle3Config(
        config,
        draft_vocab_size,
        fields.get("target_hidden_size") or config.hidden_size,
        None if layers is None else tuple(layers),
        bool(fields.get("norm_before_residual")),
        bool(fields.get(ROTATED)),
    )


def _require(fields: dict[str, Any], name: str, values: tuple[Any, ...], file: Path) -> None:
    """Raises SpecquantError where a field has another value than those with which a head computes what ours does."""
    if fields.get(name) not in values:
        raise SpecquantError(
            f"{file}: {name} is {shown(fields.get(name))}; of EAGLE-3 heads, only those with {shown(values[0])} are "
            "supported"
        )


class Eagle3Head(DraftHead):
    """EAGLE-3's head: a layer that reads the embedding beside what it knows, and predicts no feature.

    What it knows of a position is at first what `fc` makes of the features of three layers; behind that it is the
    output of its own layer. The layer's qkv_proj reads the norm of the embedding of the next token, and beside it the
    norm of that. Logits come from the output's norm, by an LM head of its own over its own vocabulary.

    Attributes:
        d2t: As published, int64 [draft_vocab_size]: how far the number of each drafted token is above its row; None
            once it is in `vocabulary`.
        t2d: As published, bool [vocab_size]: which of its model's tokens it drafts; None once it was compared.
    """

    d2t: torch.Tensor | None
    t2d: torch.Tensor | None

    def __init__(
        self,
        config: Eagle3Config,
        embed_tokens: nn.Embedding,
        feature_layers: tuple[int, ...],
        scheme: str | Scheme = "fp16",
        context_length: int | None = None,
    ):
        scheme = get_scheme(scheme) if isinstance(scheme, str) else scheme
        hidden, epsilon = config.layer.hidden_size, config.layer.rms_norm_eps
        super().__init__(
            config.layer,
            embed_tokens,
            nn.Linear(hidden, config.draft_vocab_size, bias=False),
            nn.Linear(len(feature_layers) * config.target_hidden_size, hidden, bias=False),
            LlamaLayer(config.layer, scheme, inputs=2 * hidden),  # its input norm is the embedding's
            context_length,
        )
        self.feature_layers, self.norm_before_residual = feature_layers, config.norm_before_residual
        self.hidden_norm, self.norm = RMSNorm(hidden, epsilon), RMSNorm(hidden, epsilon)
        for name in ("d2t", "t2d"):
            self.register_buffer(name, None)
        self.requires_grad_(False)

    @torch.inference_mode()
    def known(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc(features)

    @torch.inference_mode()
    def forward(
        self, tokens: torch.Tensor, known: torch.Tensor, positions: torch.Tensor, cache, mask: torch.Tensor
    ) -> torch.Tensor:
        normed = self.hidden_norm(known)
        read = torch.cat((self.layer.input_norm(self.embed_tokens(tokens)), normed), dim=-1)
        x = normed if self.norm_before_residual else known
        x, delta = self.layer(x, read, positions, self.rotary, cache, mask)
        return x + delta

    @torch.inference_mode()
    def logits(self, outputs: torch.Tensor) -> torch.Tensor:
        return super().logits(self.norm(outputs))

    def take_maps(self, path: str | Path) -> None:
        """Turn the published maps into `vocabulary`, ascending, with the LM head's rows in its order.

        Raises SpecquantError where they name tokens that the model's vocabulary does not have, one twice, or not the
        same tokens.
        """
        if self.d2t is not None:
            drafted = self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)
            size, known = self.config.vocab_size, drafted.unique()
            if len(known) < len(drafted) or known[0] < 0 or known[-1] >= size:
                raise SpecquantError(
                    f"{path}: d2t does not give each of {len(drafted)} drafted tokens a number of its own in a "
                    f"vocabulary of {size}: copy it again"
                )
            if self.t2d is not None and not torch.equal(self.t2d.nonzero()[:, 0], known):
                raise SpecquantError(f"{path}: d2t and t2d do not name the same tokens: copy it again")
            self.vocabulary, order = drafted.sort()
            self.lm_head.weight = nn.Parameter(self.lm_head.weight[order], requires_grad=False)
        self.d2t = self.t2d = None
