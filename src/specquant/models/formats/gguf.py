"""GGUF files, as llama.cpp writes and reads them: one file with sizes, tokenizer, chat template and weights.

A file is turned once into a model directory in the user's cache: config.json, the tokenizer's files, and `gguf.json`,
which says where each tensor lies in the file. The weights stay in the file. So all that reads model directories reads
GGUF files, too.

Facts are from the gguf library, llama.cpp's converter (convert_hf_to_gguf.py) and its vocabulary (llama-vocab.cpp):

* Files of Llama and Mistral have the rows of q and k of each head reordered, pair by pair, for another rotation.
* `rope_freqs.weight` holds what each rotary frequency is divided by (Llama 3.1).
* Without `output.weight` the LM head is the embedding.
* Tokens have types: 3 are control tokens, 4 are added ones; neither is ever cut.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quant_shape_to_byte_shape
from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.integrations.ggml import convert_gguf_tokenizer

from specquant.errors import SpecquantError
from specquant.files import cache_folder, written_whole
from specquant.models.checkpoint import GGUF_INDEX, Checkpoint
from specquant.models.config import MOST_OF_A_REASON, load_config
from specquant.models.fields import COUNT, FLAG, TEXT, Kind, list_of, number, read_json, shown, whole
from specquant.models.names import no_gguf
from specquant.models.panics import panics_as_errors

VERSION = 1  # of the directories that are made of files
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # -> model_type; Mistral's files say llama
REORDERED = ("llama",)  # architectures whose files have the rows of q and k in another order
TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
ENDS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FACTORS = "rope_freqs.weight"
NORMAL_TOKEN, CONTROL_TOKEN, ADDED_TOKEN = 1, 3, 4
# How texts are cut before pairs are merged: tokenizer.ggml.pre by what transformers' converter of that name makes of
# it, and what is to be changed in it. llama.cpp adds a begin token to texts for Llama 3 where the file does not say.
LLAMA_3_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
GPT_2, SINGLE_DIGITS, LLAMA_3, QWEN_2 = "gpt-2", "single digits", "llama 3", "qwen 2"
CUTTING = {
    **dict.fromkeys(("default", "gpt-2"), GPT_2),
    **dict.fromkeys(("smollm", "starcoder", "refact"), SINGLE_DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), LLAMA_3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), QWEN_2),
}


def gguf_directory(file: str | Path) -> Path:
    """The model directory of a GGUF file, in the user's cache: made at the first call, and anew when the file changes.

    Args:
        file: The path of the file.

    Returns:
        The directory: config.json, the tokenizer's files if the file has a tokenizer, and `gguf.json`.

    Raises:
        SpecquantError: The file is not there, damaged, or of a model or a type of numbers that cannot be read; or the
            cache cannot be written.
    """
    file = Path(file)
    try:
        state = file.stat()
        if not file.is_file():
            raise SpecquantError(f"{file} is no file: give a GGUF file or a model directory")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise no_gguf(file, reason) from None
    key = json.dumps([str(file.resolve()), state.st_size, state.st_mtime_ns, VERSION])
    name = f"{file.stem[:80]}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    directory = cache_folder() / "gguf" / name
    if not directory.is_dir():
        contents = GGUFFile(file)
        try:
            with written_whole(directory) as unfinished:
                contents.write(unfinished)
        except SpecquantError:
            if not directory.is_dir():  # else another process was faster
                raise
    return directory


class GGUFFile:
    """A file's metadata and its tensors' places. Raises SpecquantError where it is damaged or cannot be read here."""

    def __init__(self, file: Path):
        self.file = file
        try:
            reader = _Reader(file)
            self.fields = {name: field.contents() for name, field in reader.fields.items()}
            self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        except SpecquantError:
            raise
        except Exception as error:  # damage comes to light as one of many types
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:MOST_OF_A_REASON]
            raise SpecquantError(f"{file} is damaged or not a GGUF file ({reason}): copy it again") from None
        if reader.byte_order != "I":
            raise SpecquantError(f"{file} was written for machines of another byte order: convert the model again")
        if self.field("split.count", whole(0), 1) > 1:
            raise SpecquantError(
                f"{file} is one of {self.fields['split.count']} parts of a model: join them by llama-gguf-split --merge"
            )
        self.architecture = self.field("general.architecture", TEXT)
        if self.architecture not in ARCHITECTURES:
            found, known = shown(self.architecture), ", ".join(ARCHITECTURES)
            raise SpecquantError(f"{file}: general.architecture is {found}; what can be read is {known} (with Mistral)")
        if self.size("expert_count", whole(0), 0):
            raise SpecquantError(f"{file} holds a mixture of experts, which is not supported yet: give a dense model")
        for name, tensor in self.tensors.items():
            if tensor.tensor_type.name not in TYPES:
                raise SpecquantError(
                    f"{file}: {name} is stored as {tensor.tensor_type.name}; what can be read is {', '.join(TYPES)}"
                )

    def field(self, name: str, kind: Kind, default: Any = None) -> Any:
        """A field of the metadata. Raises SpecquantError where it is not of its kind, or missing without a default."""
        value = self.fields.get(name, default)
        if value is None:
            raise SpecquantError(f"{self.file}: {name} is missing: copy it again, or convert the model again")
        if name in self.fields and not kind.fits(value):
            raise SpecquantError(f"{self.file}: {name} is {shown(value)}; it must be {kind.words}")
        return value

    def size(self, name: str, kind: Kind = COUNT, default: Any = None) -> Any:
        """A field of the architecture's own."""
        return self.field(f"{self.architecture}.{name}", kind, default)

    def write(self, directory: Path) -> None:
        """Write the model directory of this file. Raises SpecquantError as `load_config` does, naming the file."""
        (directory / "config.json").write_text(json.dumps(self.config(), indent=2) + "\n")
        try:
            load_config(directory)
        except SpecquantError as error:
            raise SpecquantError(str(error).replace(str(directory / "config.json"), str(self.file))) from None
        if "tokenizer.ggml.model" in self.fields:
            self.tokenizer().save_pretrained(directory)
        (directory / GGUF_INDEX).write_text(json.dumps(self.index()) + "\n")

    def config(self) -> dict[str, Any]:
        """What config.json says of the model."""
        heads, hidden = self.size("attention.head_count"), self.size("embedding_length")
        head_dim = self.size("attention.key_length", COUNT, hidden // heads)
        for name in ("attention.value_length", "rope.dimension_count"):
            if self.size(name, COUNT, head_dim) != head_dim:
                raise SpecquantError(
                    f"{self.file}: {self.architecture}.{name} is {self.size(name)}, and heads have {head_dim} "
                    "dimensions: only heads that are rotated whole are supported"
                )
        window = self.size("attention.sliding_window", whole(0), 0)
        model_type = "mistral" if self.architecture == "llama" and window else ARCHITECTURES[self.architecture]
        config = {
            "model_type": model_type,
            "architectures": [f"{model_type.title()}ForCausalLM"],
            "dtype": "float16",
            "vocab_size": self.shape("token_embd.weight")[0],
            "hidden_size": hidden,
            "intermediate_size": self.size("feed_forward_length"),
            "num_hidden_layers": self.size("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.size("attention.head_count_kv", COUNT, heads),
            "head_dim": head_dim,
            "max_position_embeddings": self.size("context_length"),
            "rms_norm_eps": self.size("attention.layer_norm_rms_epsilon", number(1e-15, 1)),
            "tie_word_embeddings": "output.weight" not in self.tensors,
            "rope_parameters": self.rope(head_dim),
        }
        if window:
            config |= {"sliding_window": window}
            if self.architecture != "llama":
                config |= {"use_sliding_window": True, "max_window_layers": 0}
        if model_type in ("llama", "qwen3"):
            config["attention_bias"] = "blk.0.attn_q.bias" in self.tensors
        if model_type == "llama":
            config["mlp_bias"] = "blk.0.ffn_gate.bias" in self.tensors
        return config | self.special_tokens()

    def rope(self, head_dim: int) -> dict[str, Any]:
        """config.json's rope_parameters."""
        rope: dict[str, Any] = {"rope_theta": self.size("rope.freq_base", number(1, 1e18), 10000.0)}
        kind = self.size("rope.scaling.type", TEXT, "none")
        factor = self.size("rope.scaling.factor", number(0, 1e12), self.size("rope.scale_linear", number(0, 1e12), 1.0))
        original = self.size("rope.scaling.original_context_length", COUNT, self.size("context_length"))
        if ROPE_FACTORS in self.tensors:  # one for each frequency: LongRoPE with one and the same list of factors
            factors = self.read(ROPE_FACTORS).tolist()
            whole_context = {"original_max_position_embeddings": self.size("context_length"), "attention_factor": 1.0}
            return rope | {"rope_type": "longrope", "short_factor": factors, "long_factor": factors} | whole_context
        if kind == "yarn":
            names = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
            rope |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
            for theirs, ours in names.items():
                if f"{self.architecture}.rope.scaling.{theirs}" in self.fields:
                    rope[ours] = self.size(f"rope.scaling.{theirs}", number(1e-9, 1e12))
            return rope
        if kind not in ("none", "linear"):
            raise SpecquantError(
                f"{self.file}: {self.architecture}.rope.scaling.type is {shown(kind)}; what can be read is none, "
                "linear and yarn"
            )
        return rope | ({"rope_type": "linear", "factor": factor} if factor not in (0, 1) else {"rope_type": "default"})

    def special_tokens(self) -> dict[str, Any]:
        """config.json's begin and end tokens; a chat's end of turn is one of the latter."""
        begin, ends = self.token("bos"), [self.token(name) for name in ("eos", "eot", "eom")]
        ends = list(dict.fromkeys(token for token in ends if token is not None))
        return {"bos_token_id": begin, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}

    def token(self, name: str) -> int | None:
        """The number of a special token, if there is one: bos, eos, eot, eom, unknown or padding."""
        key, count = f"tokenizer.ggml.{name}_token_id", self.shape("token_embd.weight")[0]
        return self.field(key, whole(0, count - 1)) if key in self.fields else None

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The file's tokenizer and chat template, converted by transformers, but for what it does not look at: how a
        model cuts texts, its added tokens, its begin token and its end token."""
        tokens = self.field("tokenizer.ggml.tokens", list_of(TEXT))
        if len(tokens) > self.shape("token_embd.weight")[0]:
            raise SpecquantError(f"{self.file}: it has {len(tokens)} tokens, and fewer rows in token_embd.weight")
        fast = self._converted(tokens)
        special = {name: self.token(name) for name in ("bos", "eos", "unknown", "padding")}
        special = {name: None if number is None else tokens[number] for name, number in special.items()}
        return PreTrainedTokenizerFast(
            tokenizer_object=fast,
            bos_token=special["bos"],
            eos_token=special["eos"],
            unk_token=special["unknown"],
            pad_token=special["padding"],
            clean_up_tokenization_spaces=False,
            model_max_length=self.size("context_length"),
            chat_template=self.field("tokenizer.chat_template", TEXT, "") or None,
        )

    def _converted(self, tokens: list[str]) -> Tokenizer:
        kind = self.field("tokenizer.ggml.model", TEXT)
        if kind not in ("gpt2", "llama"):
            raise SpecquantError(f"{self.file}: tokenizer.ggml.model is {shown(kind)}; what can be read is gpt2, llama")
        cut = self._cutting() if kind == "gpt2" else ""
        types = self.field("tokenizer.ggml.token_type", list_of(whole(0, 9)), [NORMAL_TOKEN] * len(tokens))
        parts = {
            "tokenizer_type": kind,
            "tokens": tokens,
            "token_type": types,
            "bos_token_id": self.token("bos"),
            "eos_token_id": self.token("eos"),
            "unk_token_id": self.token("unknown"),
            "add_prefix_space": self.field("tokenizer.ggml.add_space_prefix", FLAG, kind == "llama"),
        }
        if kind == "gpt2":
            parts["merges"] = self.field("tokenizer.ggml.merges", list_of(TEXT))
        else:
            parts["scores"] = self.field("tokenizer.ggml.scores", list_of(Kind("a number", _is_number)))
            parts["merges"] = _merges(tokens, parts["scores"])
        lengths = {name: len(parts[name]) for name in ("token_type", "scores") if name in parts}
        if any(length != len(tokens) for length in lengths.values()):
            raise SpecquantError(f"{self.file}: it has {len(tokens)} tokens, and {lengths} of them: copy it again")
        try:
            with panics_as_errors():
                fast, _ = convert_gguf_tokenizer({"": "llama", QWEN_2: "qwen2"}.get(cut, "gpt2"), parts)
                _cut_as(fast, cut)
                for wanted, special in ((CONTROL_TOKEN, True), (ADDED_TOKEN, False)):
                    added = [token for token, of in zip(tokens, types, strict=True) if of == wanted]
                    fast.add_tokens([AddedToken(token, normalized=False, special=special) for token in added])
        except Exception as error:  # of transformers and tokenizers, by several types
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:MOST_OF_A_REASON]
            raise SpecquantError(f"the tokenizer in {self.file} is damaged ({reason}): copy it again") from None
        begin = self.token("bos")
        if begin is not None and self.field("tokenizer.ggml.add_bos_token", FLAG, cut in ("", LLAMA_3)):
            one = [(tokens[begin], begin)]
            fast.post_processor = processors.TemplateProcessing(single=[tokens[begin], "$A"], special_tokens=one)
        return fast

    def _cutting(self) -> str:
        pre = self.field("tokenizer.ggml.pre", TEXT, "default")
        if pre not in CUTTING:
            raise SpecquantError(
                f"{self.file}: tokenizer.ggml.pre is {shown(pre)}; what can be read is {', '.join(CUTTING)}"
            )
        return CUTTING[pre]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, outputs first. Raises SpecquantError where the file does not have it."""
        if name not in self.tensors:
            raise SpecquantError(f"{self.file} is incomplete: it has no tensor {name}")
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def read(self, name: str) -> np.ndarray:
        """The numbers of a tensor, float32."""
        return dequantize(self.tensors[name].data, self.tensors[name].tensor_type).astype(np.float32)

    def index(self) -> dict[str, Any]:
        """What `gguf.json` says: which file, and of each tensor, by its name in transformers, where and what it is."""
        places = {}
        for name, tensor in self.tensors.items():
            if name == ROPE_FACTORS:  # is in config.json
                continue
            places[_name_in_transformers(name)] = {
                "type": tensor.tensor_type.name,
                "shape": self.shape(name),
                "offset": int(tensor.data_offset),
                "bytes": int(tensor.n_bytes),
                "reordered_heads": self._reordered_heads(name),
            }
        state = self.file.stat()
        which = {"file": str(self.file.resolve()), "bytes": state.st_size, "modified_ns": state.st_mtime_ns}
        return which | {"tensors": places}

    def _reordered_heads(self, name: str) -> int:
        """How many heads of this tensor have their rows in another order than in transformers."""
        if self.architecture not in REORDERED or not re.fullmatch(r"blk\.\d+\.attn_[qk]\.(weight|bias)", name):
            return 0
        heads = self.size("attention.head_count")
        return heads if ".attn_q." in name else self.size("attention.head_count_kv", COUNT, heads)


class GGUFCheckpoint(Checkpoint):
    """The tensors of a directory that `gguf_directory` made, under their names in transformers, dequantized as they are
    read. `path` is the GGUF file."""

    def __init__(self, directory: str | Path):
        index = read_json(Path(directory) / GGUF_INDEX)
        self.path = Path(index["file"])
        self._places: Mapping[str, Mapping[str, Any]] = index["tensors"]
        self.shapes = {name: tuple(place["shape"]) for name, place in self._places.items()}

    def read(self, name: str, device: torch.device | str = "cpu") -> torch.Tensor:
        place = self._places[name]
        kind, shape = GGMLQuantizationType[place["type"]], self.shapes[name]
        try:
            stored = np.memmap(self.path, np.uint8, "r", place["offset"], (place["bytes"],))
        except (OSError, ValueError) as error:
            raise SpecquantError(f"{self.path} has changed or cannot be read ({error}): copy it again") from None
        if kind == GGMLQuantizationType.F16:
            numbers = stored.view(np.float16).reshape(shape)
        else:
            numbers = dequantize(stored.reshape(quant_shape_to_byte_shape(shape, kind)), kind).reshape(shape)
        if heads := place["reordered_heads"]:  # [heads, pairs, 2, ...] -> the first of all pairs, then the second
            numbers = numbers.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
        return torch.from_numpy(np.array(numbers)).to(device)


class _Reader(GGUFReader):
    """The library's reader, which reads on behind the end of a file that is cut off: with a long array, for years."""

    def _get(self, offset, dtype, count=1, *arguments, **keywords):
        values = super()._get(offset, dtype, count, *arguments, **keywords)
        if len(values) != int(count):
            raise ValueError(f"it ends at byte {len(self.data)}, before what it says is in it")
        return values


def _name_in_transformers(name: str) -> str:
    """Of a tensor with that name in GGUF; of an unknown one, its own."""
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if layer and layer[2] in LAYER_PARTS:
        return f"model.layers.{layer[1]}.{LAYER_PARTS[layer[2]]}.{layer[3]}"
    return ENDS.get(name, name)


def _merges(tokens: list[str], scores: list[float]) -> list[str]:
    """The pairs of tokens that make another, best first, as transformers finds them; it takes minutes for that, because
    it looks tokens up in a list."""
    found, score_of = [], dict(zip(tokens, scores, strict=False))
    for token, score in score_of.items():
        pairs = ((token[:i], token[i:]) for i in range(1, len(token)))
        known = [pair for pair in pairs if pair[0] in score_of and pair[1] in score_of]
        known.sort(key=lambda pair: (score_of[pair[0]], score_of[pair[1]]), reverse=True)
        found += [(score, " ".join(pair)) for pair in known if " " not in token]
    return [pair for _, pair in sorted(found, key=lambda entry: entry[0], reverse=True)]


def _cut_as(fast: Tokenizer, cutting: str) -> None:
    """Have a tokenizer that cuts texts as GPT-2's does cut them as another model's does."""
    if cutting == SINGLE_DIGITS:
        pieces = [pre_tokenizers.Digits(individual_digits=True), fast.pre_tokenizer]
        fast.pre_tokenizer = pre_tokenizers.Sequence(pieces)
    if cutting == LLAMA_3:
        split = pre_tokenizers.Split(Regex(LLAMA_3_PIECES), "isolated")
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        fast.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
        fast.model.ignore_merges = True  # a piece that is a token is that token


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
