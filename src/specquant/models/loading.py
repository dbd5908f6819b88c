"""Models from directories: Hugging Face layout with fp16 or bf16 weights, what `specquant quantize` writes, and what
other tools have quantized (`models.formats`)."""

import os
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from specquant.errors import SpecquantError
from specquant.models.cache import KVCache
from specquant.models.checkpoint import lender_of, open_checkpoint
from specquant.models.config import MOST_OF_A_REASON, load_config
from specquant.models.config import context_length as usable_context
from specquant.models.device import default_dtype
from specquant.models.eagle import EagleHead, most_frequent, shrink_head
from specquant.models.eagle3 import Eagle3Config, Eagle3Head, is_eagle3, load_eagle3_config
from specquant.models.fields import shown
from specquant.models.formats import FormatWeights, find_format
from specquant.models.formats.common import Format
from specquant.models.graphs import GraphedLlama
from specquant.models.hub import HEAD_FILES, SMALL_FILES, locate
from specquant.models.llama import Llama, check_widths, set_compute_dtype
from specquant.models.memory import NotEnoughMemory, free_bytes, gigabytes
from specquant.models.panics import panics_as_errors
from specquant.models.texts import tokens_of
from specquant.models.transforms import original_ends, reading_rotated, rotation_of
from specquant.models.weights import (
    EAGLE_3_REFUSED,
    Eagle3Weights,
    EagleWeights,
    HuggingFaceWeights,
    Weights,
    check_sizes,
    fill,
    ties_ends,
)
from specquant.quant import SCHEMES, PackedLinear, Scheme, empty_linear, get_scheme

MOST_PADDING = 1024  # rows by which a head's vocabulary may differ from its model's: more is another vocabulary
SHORTEST_CONTEXT = 128  # positions; a shorter one is not worth advising


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory or hub id. Raises SpecquantError where there is none, or a damaged one."""
    path = locate(path, SMALL_FILES)
    if not os.path.isfile(Path(path) / "tokenizer.json"):
        path = lender_of(path) or path
    if not os.path.isfile(Path(path) / "tokenizer.json"):
        raise SpecquantError(f"{path} has no tokenizer.json: give a model directory with its tokenizer")
    try:
        with panics_as_errors():
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            tokenizer.decode(tokenizer("Some text.", verbose=False)["input_ids"])  # some damage shows only now
    except Exception as error:  # each part of a tokenizer's files has its own exception types
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:MOST_OF_A_REASON]
        raise SpecquantError(f"the tokenizer in {path} is damaged ({reason}): copy its files again") from None
    if not isinstance(tokenizer.chat_template, str | dict | None):
        raise SpecquantError(f"the tokenizer in {path} has a chat_template that is no text: copy its files again")
    return tokenizer


def stored_scheme(config: PreTrainedConfig, path: str | Path) -> str:
    """The scheme in which the directory `path`, whose configuration this is, stores its weights."""
    return _stored_scheme(config, find_format(config, open_checkpoint(path)), path)


def _stored_scheme(config: PreTrainedConfig, format: Format | None, path: str | Path) -> str:
    if format is not None:
        return format.scheme
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return "fp16"
    if quantization.get("scheme") not in list(SCHEMES):
        raise SpecquantError(
            f"{path}: config.json names the scheme {shown(quantization.get('scheme'))}, which this version does not "
            "know: quantize the fp16 model again"
        )
    return quantization["scheme"]


def load_model(
    path: str | Path,
    scheme: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    context_length: int | None = None,
) -> Llama:
    """The model of a directory or hub id (`hub.locate`), computing in `dtype`, read onto the device tensor by tensor.

    dtype: None for what the scheme asks for on the device (`device.default_dtype`).
    scheme: None for the one that the weights are stored in. For fp16 or bf16 weights any scheme that does not rotate:
    each matrix is then quantized by round-to-nearest when it is read (`specquant quantize` calibrates, and rotates).
    context_length: positions to make room for; None for all that the model was made for. Raises SpecquantError where a
    file is missing or damaged, a tensor is missing, unknown, of the wrong shape or type, the weights are already stored
    in another scheme, the context is longer than the model's, or weights and context do not fit into the memory.
    """
    path = locate(path)
    model, weights = open_model(path, scheme, context_length)
    dtype = dtype or default_dtype(device, model.scheme)
    require_memory(model, dtype, device, path)
    fill(model, weights, device)
    set_compute_dtype(model, dtype).rotary.make_tables()
    return model.to(device)


def open_model(path: str | Path, scheme: str | None = None, context_length: int | None = None) -> tuple[Llama, Weights]:
    """The model in a directory, on the meta device, and the weights to `fill` it with. Arguments and errors are those
    of `load_model`; only configuration and headers are read, and embedding and LM head where they should be one."""
    config = load_config(path)
    length = usable_context(config, context_length, path)
    checkpoint = open_checkpoint(path)
    format = find_format(config, checkpoint)
    stored = _stored_scheme(config, format, path)
    wanted = get_scheme(scheme or stored)
    if stored != "fp16" and wanted.name != stored:
        raise SpecquantError(f"{path} is stored in {stored}, not in {wanted.name}: quantize the fp16 model instead")
    check_sizes(config, checkpoint)
    check_widths(config, wanted, path, rotates=stored == "fp16" and wanted.rotated)
    if stored == "fp16" and wanted.rotated:
        raise SpecquantError(
            f"{wanted.name} rotates the whole model: make it once by `specquant quantize {path} --scheme {wanted.name} "
            "--out DIR` and load DIR"
        )
    if format is not None:
        weights = FormatWeights(checkpoint, config, format)
    else:
        weights = (HuggingFaceWeights if stored == "fp16" else Weights)(checkpoint, config, wanted)
    config.tie_word_embeddings = ties_ends(weights)
    return _skeleton(weights, wanted, length, own_map=wanted.rotated and format is None), weights


def _skeleton(weights: Weights, scheme: Scheme, context_length: int, own_map: bool) -> Llama:
    """The model on the meta device, with each matrix in the scheme that the checkpoint has it in."""
    config = weights.config
    with torch.device("meta"):
        model = Llama(config, scheme, context_length)
        if own_map:
            model.feature_map = torch.empty(config.hidden_size, config.hidden_size)
        linears = {name: part for name, part in model.named_modules() if isinstance(part, PackedLinear)}
        for name, linear in linears.items():
            kept = weights.scheme_of(name, linear)
            if kept is not weights.scheme:
                empty = empty_linear(kept, linear.out_features, linear.in_features, linear.bias is not None)
                model.set_submodule(name, empty)
    return model


def require_memory(model: Llama, dtype: torch.dtype, device: torch.device | str, path: str | Path) -> None:
    """Raises NotEnoughMemory where a device has no room for a model that computes in `dtype`, and for its context."""
    free = free_bytes(device)
    position = KVCache.bytes_per_position(model.config, dtype)
    tables = _table_bytes(model, dtype)
    weights, context = weight_bytes(model, dtype, device) - tables, model.context_length * position
    if free is None or weights + tables + context <= free:
        return
    room = (free - weights) // (position + tables // model.context_length)
    advice = (
        f"give a context length (--context-length) of at most {room}, which it has room for, or another device"
        if room >= SHORTEST_CONTEXT
        else "choose a scheme of fewer bits, a smaller dtype or another device"
    )
    raise NotEnoughMemory(
        f"{path} needs {gigabytes(weights)} for its weights in {model.scheme.name} and {gigabytes(context)} for a "
        f"context of {model.context_length} positions in {str(dtype).removeprefix('torch.')}, and {device} has "
        f"{gigabytes(free)} free: {advice}"
    )


def weight_bytes(model: Llama, dtype: torch.dtype, device: torch.device | str) -> int:
    """What a model's weights take on a device: as they are stored, and on a CPU also the unpacked copies that its
    products multiply (`PackedLinear`)."""
    unpacked = 8 if dtype == torch.float64 else 4
    linears = [part for part in model.modules() if isinstance(part, PackedLinear)]
    stored = sum(linear.nbytes for linear in linears)
    copies = sum(unpacked * linear.out_features * linear.in_features for linear in linears)
    ends = {id(part.weight): part.weight.numel() for part in (model.embed_tokens, model.lm_head)}
    on_gpu = torch.device(device).type == "cuda"
    return stored + (0 if on_gpu else copies) + dtype.itemsize * sum(ends.values()) + _table_bytes(model, dtype)


def _table_bytes(model: Llama, dtype: torch.dtype) -> int:
    """What the rotary tables of a model's context take."""
    return dtype.itemsize * (model.rotary.cosines.numel() + model.rotary.sines.numel())


def load_eagle_head(
    path: str | Path, model: Llama | GraphedLlama, scheme: str | None = None, vocabulary: torch.Tensor | None = None
) -> EagleHead:
    """The EAGLE head of a directory or hub id, for a model, computing in the model's dtype on its device.

    Embedding and LM head are the head's own, where it has them, else the model's: of a rotated model, those from before
    its rotation, and the head's `feature_map` undoes the rotation of features. scheme, vocabulary: as for `shrink_head`
    (default: neither). Raises SpecquantError as `load_model` and `shrink_head` do, and where the head is an EAGLE-3
    head, its sizes are not the model's, or it was converted for another rotation than the model's.
    """
    path = locate(path, HEAD_FILES)
    config = load_head_config(path)
    check_head(config, model.config, path)
    weights = EagleWeights(open_checkpoint(path), config, get_scheme("fp16"))
    check_sizes(config, weights.checkpoint, ends=False)
    own = {name: f"{name}.weight" in weights for name in ("embed_tokens", "lm_head")}
    own_map = "feature_map" in weights
    shared = (model.embed_tokens, model.lm_head)
    if model.feature_map is not None and not all(own.values()):
        shared = original_ends(model)
    entries, hidden = config.vocab_size, config.hidden_size
    with torch.device("meta"):
        head = EagleHead(
            config,
            nn.Embedding(entries, hidden, dtype=torch.float16) if own["embed_tokens"] else shared[0],
            nn.Linear(hidden, entries, bias=False, dtype=torch.float16) if own["lm_head"] else shared[1],
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
    set_compute_dtype(head, model.dtype).rotary.make_tables()
    head = head.to(model.device)
    if own["embed_tokens"] and torch.equal(head.embed_tokens.weight, model.embed_tokens.weight):
        head.embed_tokens = model.embed_tokens  # published heads hold a copy of it
    if vocabulary is not None:
        vocabulary = vocabulary[vocabulary < head.lm_head.out_features]  # the others only pad its model's vocabulary
    return shrink_head(head, scheme, vocabulary)


def load_eagle3_head(
    path: str | Path, model: Llama | GraphedLlama, scheme: str | None = None, vocabulary: torch.Tensor | None = None
) -> Eagle3Head:
    """The EAGLE-3 head of a directory or hub id, for a model, computing in the model's dtype on its device.

    It is published in SafeAILab's format, or in that of vLLM's speculators. The embedding is the head's own, where it
    has one, else the model's: of a rotated model, the one from before its rotation. A published head reads features
    that are not rotated; for a rotated model its `fc` undoes the rotation.

    Args:
        path: A directory or a hub id.
        model: That it drafts for.
        scheme: As for `shrink_head`; so is vocabulary, of which it drafts the tokens that it knows.

    Raises:
        SpecquantError: As `load_model` and `shrink_head` do; where the head is none of EAGLE-3, or of a kind that is
            not supported; where its sizes or its layers are not the model's, or its maps of tokens do not fit.
    """
    path = locate(path, HEAD_FILES)
    config = load_eagle3_config(path)
    layers = check_eagle3_head(config, model.config, path)
    weights = Eagle3Weights(open_checkpoint(path), config.layer, get_scheme("fp16"))
    check_sizes(config.layer, weights.checkpoint, ends=False)
    head = _eagle3_skeleton(config, layers, weights, model, path)
    fill(head, weights, model.device)
    head.take_maps(path)
    _meet_rotation(head, config, model, path)
    set_compute_dtype(head, model.dtype).rotary.make_tables()
    head = head.to(model.device)
    if head.embed_tokens is not model.embed_tokens and torch.equal(head.embed_tokens.weight, model.embed_tokens.weight):
        head.embed_tokens = model.embed_tokens
    if vocabulary is not None:
        vocabulary = vocabulary[vocabulary < config.layer.vocab_size]
    return shrink_head(head, scheme, vocabulary)


def _eagle3_skeleton(
    config: Eagle3Config,
    layers: tuple[int, ...],
    weights: Eagle3Weights,
    model: Llama | GraphedLlama,
    path: str | Path,
) -> Eagle3Head:
    """The head with all that the checkpoint is to fill on the meta device. Raises SpecquantError where it would need an
    embedding that its model does not have."""
    entries, hidden = config.layer.vocab_size, config.layer.hidden_size
    own = "embed_tokens.weight" in weights
    if not own and hidden != model.config.hidden_size:
        raise SpecquantError(
            f"the EAGLE-3 head in {path} has hidden_size {hidden}, its model {model.config.hidden_size}, and no "
            "embed_tokens.weight of its own: copy it again"
        )
    shared = model.embed_tokens
    if not own and model.feature_map is not None:
        shared = original_ends(model)[0]
    with torch.device("meta"):
        embed_tokens = nn.Embedding(entries, hidden, dtype=torch.float16) if own else shared
        head = Eagle3Head(config, embed_tokens, layers, context_length=model.context_length)
        if "d2t" in weights or config.draft_vocab_size < entries:
            head.d2t = torch.empty(config.draft_vocab_size, dtype=torch.int64)
        if "t2d" in weights:
            head.t2d = torch.empty(entries, dtype=torch.bool)
    return head


def _meet_rotation(head: Eagle3Head, config: Eagle3Config, model: Llama | GraphedLlama, path: str | Path) -> None:
    """Let a published head read a rotated model's features. Raises SpecquantError where a converted head is for another
    model."""
    if config.reads_rotated_features:
        same = head.embed_tokens.weight.shape == model.embed_tokens.weight.shape and torch.equal(
            head.embed_tokens.weight.to(model.dtype), model.embed_tokens.weight
        )
        if same and model.feature_map is None:
            raise SpecquantError(f"the EAGLE-3 head in {path} was converted for a rotated model, and its model is none")
    elif model.feature_map is not None:
        rotated = reading_rotated(head.fc.weight, rotation_of(model)[0])
        head.fc.weight = nn.Parameter(rotated, requires_grad=False)


def frequent_tokens(text: str | Path, tokenizer: PreTrainedTokenizerBase, count: int, vocab_size: int) -> torch.Tensor:
    """The `count` tokens of a vocabulary that a UTF-8 text has most often, int64, ascending (`eagle.most_frequent`).

    Raises SpecquantError where the text cannot be read.
    """
    try:
        content = Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecquantError(f"cannot count tokens in {text} ({error}): give a UTF-8 text file") from None
    return most_frequent(tokens_of(content, tokenizer), count, vocab_size)


def load_head_config(path: str | Path) -> PreTrainedConfig:
    """The configuration of the EAGLE head in a directory. Raises SpecquantError where it is none of EAGLE 1 or 2."""
    if is_eagle3(path):
        raise SpecquantError(f"{path} holds an EAGLE-3 head, {EAGLE_3_REFUSED}")
    config = load_config(path, family="llama")  # a head's layer is Llama's, whatever its model is
    if config.num_hidden_layers != 1:
        raise SpecquantError(f"{path} is no EAGLE head: it has {config.num_hidden_layers} layers instead of one")
    return config


def check_head(
    config: PreTrainedConfig,
    model_config: PreTrainedConfig,
    path: str | Path,
    tokenizer: Path | None = None,
    most_padding: int = MOST_PADDING,
) -> None:
    """Raises SpecquantError where the EAGLE head in `path`, with that configuration, is not for a model with the other.

    Of its special tokens nothing is asked: it writes none of its own, and published heads name those of base models.
    Vocabularies may differ by rows at their end that stand for no token, or for added ones: by `most_padding` at most,
    for a head brings no tokenizer to compare. tokenizer: the directory of the model's, if there is one.
    """
    for field in ("hidden_size", "vocab_size"):
        ours, theirs = getattr(config, field), getattr(model_config, field)
        padded = field == "vocab_size" and abs(ours - theirs) <= most_padding
        if ours != theirs and not (padded and min(ours, theirs) >= _base_tokens(tokenizer)):
            raise SpecquantError(
                f"the EAGLE head in {path} has {field} {ours}, and its model {theirs}: they do not fit"
            )


def check_eagle3_head(
    config: Eagle3Config,
    model_config: PreTrainedConfig,
    path: str | Path,
    tokenizer: Path | None = None,
    most_padding: int = MOST_PADDING,
) -> tuple[int, ...]:
    """The layers of its model that the EAGLE-3 head in `path` reads. Raises SpecquantError where the head, with that
    configuration, is not for a model with the other; of vocabularies, as `check_head` does."""
    if config.target_hidden_size != model_config.hidden_size:
        raise SpecquantError(
            f"the EAGLE-3 head in {path} reads features of {config.target_hidden_size} numbers, and its model has "
            f"hidden_size {model_config.hidden_size}: they do not fit"
        )
    ours, theirs = config.layer.vocab_size, model_config.vocab_size
    if ours != theirs and (abs(ours - theirs) > most_padding or min(ours, theirs) < _base_tokens(tokenizer)):
        raise SpecquantError(
            f"the EAGLE-3 head in {path} has vocab_size {ours}, and its model {theirs}: they do not fit"
        )
    return config.layers_of(model_config, path)


def check_drafting_model(target: Path, drafting: Path) -> None:
    """Raises SpecquantError where the model in `drafting` does not write the tokens of the one in `target`: another
    begin token, or a tokenizer that gives a token another number. A directory without a tokenizer is believed, if both
    vocabularies have the same number of rows. Rows that only pad one of them, and added tokens that one of the two
    lacks, do not matter: such tokens are not drafted. End tokens may differ, as an instruction-tuned model's do from
    its base model's: the target decides.
    """
    config, other = load_config(target), load_config(drafting)
    begins = config.bos_token_id, other.bos_token_id
    if None not in begins and begins[0] != begins[1]:
        raise SpecquantError(
            f"texts begin with token {begins[1]} in {drafting} and with {begins[0]} in {target}: use a drafter with "
            "the target's tokenizer"
        )
    files = target / "tokenizer.json", drafting / "tokenizer.json"
    compared, common = all(file.is_file() for file in files), min(config.vocab_size, other.vocab_size)
    if compared and files[0].read_bytes() != files[1].read_bytes():
        _check_tokens(target, drafting, common)
    if config.vocab_size != other.vocab_size and not (compared and common >= _base_tokens(target)):
        raise SpecquantError(
            f"{drafting}: the drafter's vocabulary has {other.vocab_size} entries and its target's "
            f"{config.vocab_size}: use a drafter with the target's tokenizer"
        )


def _check_tokens(target: Path, drafting: Path, common: int) -> None:
    """Raises SpecquantError where two tokenizers differ in one of the first `common` tokens, other than by an added one
    that one of them lacks."""
    (tokens, added), (others, others_added) = map(_tokens, (target, drafting))
    for number in sorted(number for number in tokens.keys() | others.keys() if number < common):
        ours, theirs = tokens.get(number), others.get(number)
        lacks_added = (ours is None and number in others_added) or (theirs is None and number in added)
        if ours != theirs and not lacks_added:
            raise SpecquantError(
                f"token {number} is {theirs!r} in {drafting} and {ours!r} in {target}: use a drafter with the target's "
                "tokenizer"
            )


def _tokens(directory: Path) -> tuple[dict[int, str], set[int]]:
    """A tokenizer's tokens by their numbers, and which of them were added to its model's."""
    tokenizer = load_tokenizer(directory)
    tokens = {number: token for token, number in tokenizer.get_vocab().items()}
    return tokens, set(tokenizer.added_tokens_decoder)


def _base_tokens(directory: Path | None) -> int:
    """How many rows the tokens of a tokenizer need, those left out that were added at its end; 0 without one."""
    if directory is None or not (directory / "tokenizer.json").is_file():
        return 0
    tokens, added = _tokens(directory)
    return 1 + max(tokens.keys() - added, default=-1)


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two matrices are the same up to rounding to fp16."""
    return bool((a.float() - b.float()).norm() < 1e-2 * b.float().norm())
