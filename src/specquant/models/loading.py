"""Models from directories: Hugging Face layout with fp16 or bf16 weights, what `specquant quantize` writes, and what
other tools have quantized (`models.formats`)."""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from specquant.errors import SpecquantError
from specquant.models.checkpoint import open_checkpoint
from specquant.models.config import context_length as usable_context
from specquant.models.config import load_config
from specquant.models.eagle import EagleHead
from specquant.models.formats import FormatWeights, find_format
from specquant.models.llama import Llama, set_compute_dtype
from specquant.models.transforms import original_ends
from specquant.models.weights import EAGLE_3_REFUSED, EagleWeights, HuggingFaceWeights, Weights, fill
from specquant.quant import SCHEMES, get_scheme


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a model directory. Raises SpecquantError where there is none, or a damaged one."""
    if not (Path(path) / "tokenizer.json").is_file():
        raise SpecquantError(f"{path} has no tokenizer.json: give a model directory with its tokenizer")
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # each part of a tokenizer's files has its own exception types
        reason = f"{type(error).__name__}: {error}"
        raise SpecquantError(f"the tokenizer in {path} is damaged ({reason}): copy its files again") from None


def stored_scheme(config: PreTrainedConfig, path: str | Path) -> str:
    """The scheme in which the directory `path`, whose configuration this is, stores its weights."""
    format = find_format(config, open_checkpoint(path))
    if format is not None:
        return format.scheme
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return "fp16"
    if quantization.get("scheme") not in list(SCHEMES):
        raise SpecquantError(
            f"{path}: config.json names the scheme {quantization.get('scheme')!r}, which this version does not know: "
            "quantize the fp16 model again"
        )
    return quantization["scheme"]


def load_model(
    path: str | Path,
    scheme: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    context_length: int | None = None,
) -> Llama:
    """The model in a directory, computing in `dtype`, read onto the device tensor by tensor.

    scheme: None for the one that the weights are stored in. For fp16 or bf16 weights any scheme that does not rotate:
    each matrix is then quantized by round-to-nearest when it is read (`specquant quantize` calibrates, and rotates).
    context_length: positions to make room for; None for all that the model was made for. Raises SpecquantError where a
    file is missing or damaged, a tensor is missing, unknown, of the wrong shape or type, the weights are already stored
    in another scheme, or the context is longer than the model's.
    """
    config = load_config(path)
    length = usable_context(config, context_length, path)
    stored = stored_scheme(config, path)
    wanted = get_scheme(scheme or stored)
    if stored != "fp16" and wanted.name != stored:
        raise SpecquantError(f"{path} is stored in {stored}, not in {wanted.name}: quantize the fp16 model instead")
    if stored == "fp16" and wanted.rotated:
        raise SpecquantError(
            f"{wanted.name} rotates the whole model: make it once by `specquant quantize {path} --scheme {wanted.name} "
            "--out DIR` and load DIR"
        )
    checkpoint = open_checkpoint(path)
    format = find_format(config, checkpoint)
    with torch.device("meta"):
        model = Llama(config, wanted, length)
        if wanted.rotated and format is None:
            model.feature_map = torch.empty(config.hidden_size, config.hidden_size)
    if format is not None:
        weights = FormatWeights(checkpoint, config, format)
    else:
        weights = (HuggingFaceWeights if stored == "fp16" else Weights)(checkpoint, config, wanted)
    fill(model, weights, device)
    return set_compute_dtype(model, dtype).to(device)


def load_eagle_head(path: str | Path, model: Llama) -> EagleHead:
    """The EAGLE head in a directory, for a model, computing in the model's dtype on its device.

    Embedding and LM head are the head's own, where it has them, else the model's: of a rotated model, those from before
    its rotation, and the head's `feature_map` undoes the rotation of features. Raises SpecquantError as `load_model`
    does, and where the head is an EAGLE-3 head, its sizes are not the model's, or it was converted for another rotation
    than the model's.
    """
    config = load_head_config(path)
    check_head(config, model.config, path)
    weights = EagleWeights(open_checkpoint(path), config, get_scheme("fp16"))
    own = {name: f"{name}.weight" in weights for name in ("embed_tokens", "lm_head")}
    own_map = "feature_map" in weights
    shared = (model.embed_tokens, model.lm_head)
    if model.feature_map is not None and not all(own.values()):
        shared = original_ends(model)
    vocabulary, hidden = config.vocab_size, config.hidden_size
    with torch.device("meta"):
        head = EagleHead(
            config,
            nn.Embedding(vocabulary, hidden, dtype=torch.float16) if own["embed_tokens"] else shared[0],
            nn.Linear(hidden, vocabulary, bias=False, dtype=torch.float16) if own["lm_head"] else shared[1],
            context_length=model.context_length,
        )
        if own_map:
            head.feature_map = torch.empty(hidden, hidden)
    fill(head, weights, model.device)
    if own_map:
        head.feature_map = head.feature_map.t().contiguous()
        if model.feature_map is not None and not _close(head.feature_map, model.feature_map):
            raise SpecquantError(f"the EAGLE head in {path} was converted for another rotation than its model's")
    else:
        head.feature_map = model.feature_map
    head = set_compute_dtype(head, model.dtype).to(model.device)
    if own["embed_tokens"] and torch.equal(head.embed_tokens.weight, model.embed_tokens.weight):
        head.embed_tokens = model.embed_tokens  # published heads hold a copy of it
    return head


def load_head_config(path: str | Path) -> PreTrainedConfig:
    """The configuration of the EAGLE head in a directory. Raises SpecquantError where it is none of EAGLE 1 or 2."""
    config = load_config(path, family="llama")  # a head's layer is Llama's, whatever its model is
    if hasattr(config, "draft_vocab_size"):
        raise SpecquantError(f"{path} holds an EAGLE-3 head, {EAGLE_3_REFUSED}")
    if config.num_hidden_layers != 1:
        raise SpecquantError(f"{path} is no EAGLE head: it has {config.num_hidden_layers} layers instead of one")
    return config


def check_head(config: PreTrainedConfig, model_config: PreTrainedConfig, path: str | Path) -> None:
    """Raises SpecquantError where the head in `path` does not fit a model of that configuration."""
    for field in ("hidden_size", "vocab_size"):
        ours, theirs = getattr(config, field), getattr(model_config, field)
        if ours != theirs:
            raise SpecquantError(
                f"the EAGLE head in {path} has {field} {ours}, and its model {theirs}: they do not fit"
            )


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two matrices are the same up to rounding to fp16."""
    return bool((a.float() - b.float()).norm() < 1e-2 * b.float().norm())
