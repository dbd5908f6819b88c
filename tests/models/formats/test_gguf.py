"""GGUF files: logits and tokens are those of transformers for the same model or the same file; damage is a sentence."""

import json
import os
import shutil
from contextlib import suppress

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from specquant.cli import main
from specquant.decoding import checked_prompt, generation
from specquant.errors import SpecquantError
from specquant.models.formats.gguf import CUTTING, TYPES, gguf_directory
from specquant.models.loading import load_model, load_tokenizer
from specquant.models.synthetic import synthetic_config
from specquant.models.targets import _digest
from tests.family import write_random
from tests.models.formats.gguf_files import BEGIN, END, PLACE, _add, train, write_gguf
from tests.models.test_families import LLAMA_3, config_of, expected_logits, logits_of, rope

TOKENS = torch.arange(70) * 7 % 270
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=24)
MODELS = {
    "llama-2": config_of(LlamaConfig, num_key_value_heads=2),
    "llama-3.1": config_of(LlamaConfig, rope_parameters=LLAMA_3),
    "llama with tied ends": config_of(LlamaConfig, tie_word_embeddings=True, num_attention_heads=4),
    "llama with biases": config_of(LlamaConfig, attention_bias=True, mlp_bias=True),
    "linear": config_of(LlamaConfig, rope_parameters=rope("linear", factor=2.5)),
    "mistral": config_of(MistralConfig, sliding_window=None),
    "mistral with a window": config_of(MistralConfig, sliding_window=72),
    "qwen2": config_of(Qwen2Config, tie_word_embeddings=True),
    "qwen2.5 with yarn": config_of(Qwen2Config, rope_parameters=YARN),
    "qwen3": config_of(Qwen3Config, num_attention_heads=4, num_key_value_heads=2),
}
TEXTS = (
    "12 plus 1999 makes 2011.",
    "It's  a test:\n\n   x_1 = 31415926 # déjà vu, 日本 🎉\r\n",
    f"a{BEGIN}b{END} {PLACE}c <| {PLACE}",
    "",
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of each test's own."""
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path / "specquant"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Writes a model of MODELS once, as transformers does, in half precision, and reads it in float32."""
    root = tmp_path_factory.mktemp("published")

    def read(name):
        if not (root / name).exists():
            write_random(MODELS[name], root / name)
        return root / name, AutoModelForCausalLM.from_pretrained(root / name, dtype=torch.float32)

    return read


@pytest.fixture
def small(published, tmp_path):
    """A small Llama with its tokenizer, as a GGUF file; changes: as for `write_gguf`."""

    def write(kind="F16", pre="gpt-2", **changes):
        _, model = published("llama-2")
        return write_gguf(model, tmp_path / f"small-{pre}.gguf", kind, train(pre, 270), pre, **changes)

    return write


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_model_that_the_file_was_made_of(published, tmp_path, name):
    directory, model = published(name)
    file = write_gguf(model, tmp_path / "model.gguf")
    expected = expected_logits(directory, TOKENS)
    assert expected.abs().max() > 1
    assert (logits_of(load_model(file, dtype=torch.float32), TOKENS) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("kind", TYPES)
def test_logits_are_those_of_transformers_reading_of_the_same_file(tmp_path, kind):
    config = config_of(LlamaConfig, hidden_size=256, num_attention_heads=4, num_key_value_heads=2)
    write_random(config, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    file = write_gguf(model, tmp_path / f"{kind}.gguf", kind, train(vocabulary=270))
    logits = logits_of(load_model(file, dtype=torch.float32), TOKENS)
    assert logits.abs().max() > 1
    assert (logits - transformers_logits(file, TOKENS)).abs().max() < 1e-4


@torch.inference_mode()
def transformers_logits(file, tokens):
    """Of the file as transformers reads it, its weights rounded to half precision, in which models are stored here."""
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    weights = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)["tensors"]
    missing = model.load_state_dict({name: tensor.half().float() for name, tensor in weights.items()}, strict=False)
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) <= {"lm_head.weight"}
    model.tie_weights()
    return model(tokens[None]).logits[0]


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_the_tokenizer_is_the_one_that_the_file_was_made_of(small, pre, begins):
    theirs = train(pre, 270, begins)
    ours = load_tokenizer(small(pre=pre, tokenizer__ggml__add_bos_token=begins))
    for text in TEXTS:
        tokens = theirs(text)["input_ids"]
        assert ours(text)["input_ids"] == tokens, text
        assert ours.decode(tokens) == theirs.decode(tokens), text
    assert (ours.bos_token, ours.eos_token) == (BEGIN, END)
    assert ours.all_special_tokens.count(PLACE) == 0


def test_llama_3_begins_texts_where_the_file_does_not_say(small):
    assert load_tokenizer(small(pre="llama-bpe"))("a")["input_ids"][0] == 0
    assert load_tokenizer(small(pre="smollm"))("a")["input_ids"][0] != 0


def test_a_sentencepiece_tokenizer_is_that_of_transformers(published, tmp_path):
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcde", "ab", "▁ab", "cde"]
    pieces += [f"<pad{i}>" for i in range(270 - len(pieces))]
    types = [2, 3, 3, *[6] * 256, *[1] * (270 - 259)]
    fields = {
        "tokenizer__ggml__model": "llama",
        "tokenizer__ggml__tokens": pieces,
        "tokenizer__ggml__scores": [-float(number) for number in range(270)],
        "tokenizer__ggml__token_type": types,
        "tokenizer__ggml__bos_token_id": 1,
        "tokenizer__ggml__eos_token_id": 2,
        "tokenizer__ggml__unknown_token_id": 0,
    }
    file = write_gguf(published("llama-2")[1], tmp_path / "pieces.gguf", **fields)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name), load_tokenizer(file)
    for text in ("ab abcde  cde", "déjà ab", "a</s>b"):
        tokens = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours(text)["input_ids"] == [1, *tokens]
        assert ours.decode(tokens) == theirs.decode(tokens)
    assert ours.decode(ours("ab abcde  cde")["input_ids"], skip_special_tokens=True) == "ab abcde  cde"
    assert (ours.bos_token, ours.eos_token, ours.unk_token) == ("<s>", "</s>", "<unk>")


def test_end_tokens_are_the_files_and_a_turns_end_is_one(small):
    """transformers takes the begin token for the end token where the tokenizer is Llama's."""
    file = small(tokenizer__ggml__eot_token_id=2)
    assert load_model(file).config.eos_token_id == [1, 2]
    assert load_model(small()).config.eos_token_id == 1
    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert theirs.eos_token == BEGIN


def test_every_command_takes_a_file_where_it_takes_a_directory(small, tmp_path, capsys):
    file, out = small(), tmp_path / "out"
    text = tmp_path / "calibration.txt"
    text.write_text("12 plus 1999 makes 2011. " * 90)
    assert main(["generate", "--model", str(file), "--prompt", "12 plus", "--max-new-tokens", "4", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["token_ids"]) == 4
    quantize = ["quantize", str(file), "--scheme", "w4a16-g128", "--calibration-text", str(text), "--device", "cpu"]
    assert main([*quantize, "--out", str(out)]) == 0
    assert load_model(out).scheme.name == "w4a16-g128"
    assert load_tokenizer(out)(TEXTS[0])["input_ids"] == load_tokenizer(file)(TEXTS[0])["input_ids"]
    assert load_tokenizer(out).chat_template == load_tokenizer(file).chat_template
    assert main(["export", str(out), "--format", "compressed-tensors", "--out", str(tmp_path / "exported")]) == 0
    assert load_model(tmp_path / "exported").scheme.name == "w4a16-g128"
    capsys.readouterr()
    assert main(["export", str(file), "--format", "gptq", "--out", str(tmp_path / "refused")]) == 2
    assert "is not quantized by us" in capsys.readouterr().err


def test_chat_puts_the_prompt_into_the_files_template_with_one_begin_token(small, monkeypatch, capsys):
    """Whether the tokenizer begins texts itself or not; without a template it is refused."""
    seen = []
    monkeypatch.setattr(generation, "checked_prompt", lambda *given: seen.append(checked_prompt(*given)) or seen[-1])
    for begins in (False, True):
        file = small(tokenizer__ggml__add_bos_token=begins, pre="llama-bpe")
        os.utime(file, ns=(begins, begins))
        command = ["generate", "--model", str(file), "--max-new-tokens", "2", "--prompt", "12 plus"]
        assert main([*command, "--chat"]) == 0
        tokenizer = load_tokenizer(file)
        assert tokenizer.decode(seen[-1]) == f"{BEGIN}user: 12 plus{END}assistant: "
        assert seen[-1].count(0) == 1
        assert main([*command, "--chat", "--system", "be 1"]) == 0
        assert tokenizer.decode(seen[-1]) == f"{BEGIN}system: be 1{END}user: 12 plus{END}assistant: "
        assert main(command) == 0
        assert tokenizer.decode(seen[-1]) == BEGIN * begins + "12 plus"
    capsys.readouterr()
    assert main([*command, "--system", "be 1"]) == 2
    assert "--system is for --chat" in capsys.readouterr().err
    command[2] = str(small(tokenizer__chat_template=None))
    assert main([*command, "--chat"]) == 2
    assert "has no chat template: leave out --chat" in capsys.readouterr().err


def test_a_file_can_be_rounded_and_draft_for_another(small, capsys):
    file = small()
    same = ["--intermediate", str(file), "--method", "vanilla", "--scheme", "w4a16-g128", "--dtype", "float64"]
    assert main(["generate", "--model", str(file), "--prompt", "12 plus", "--max-new-tokens", "9", *same]) == 0
    drafted = capsys.readouterr().out
    assert main(["generate", "--model", str(file), "--prompt", "12 plus", "--max-new-tokens", "9", *same[4:]]) == 0
    assert capsys.readouterr().out == drafted


def test_the_directory_is_made_once_and_anew_for_a_changed_file(small, published, cache):
    file = small()
    directory = gguf_directory(file)
    stamp = (directory / "config.json").stat().st_mtime_ns
    assert gguf_directory(file) == directory
    assert (directory / "config.json").stat().st_mtime_ns == stamp
    assert directory.parent == cache / "gguf"
    digest = _digest(directory, directory / "config.json")
    file = small(llama__context_length=64)
    os.utime(file, ns=(1, 1))
    assert _digest(gguf_directory(file), directory / "config.json") != digest
    assert gguf_directory(file) != directory
    assert load_model(file).context_length == synthetic_config(file).max_position_embeddings == 64


def test_a_file_that_went_away_is_a_sentence(small):
    file = small()
    kept = shutil.copytree(gguf_directory(file), file.parent / "kept")
    file.unlink()
    with pytest.raises(SpecquantError, match=r"small-gpt-2\.gguf has changed or cannot be read"):
        load_model(kept)
    with pytest.raises(SpecquantError, match=r"cannot read .*small-gpt-2\.gguf \(No such file or directory\)"):
        load_model(file)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"general__architecture": "gemma2"}, "general.architecture is 'gemma2'; what can be read is llama, qwen2"),
        ({"llama__block_count": None}, "llama.block_count is missing"),
        ({"llama__block_count": "2"}, "llama.block_count is '2'; it must be a whole number"),
        ({"llama__block_count": 3}, "it has no tensor model.layers.2"),
        ({"llama__attention__head_count": 3}, "heads have 64 dimensions|is not a multiple|config.json asks for"),
        ({"llama__attention__value_length": 32}, "llama.attention.value_length is 32, and heads have 64"),
        ({"llama__rope__dimension_count": 32}, "llama.rope.dimension_count is 32, and heads have 64"),
        ({"llama__rope__scaling__type": "su"}, "llama.rope.scaling.type is 'su'"),
        ({"llama__expert_count": 8}, "mixture of experts"),
        ({"split__count": 3}, "is one of 3 parts"),
        ({"tokenizer__ggml__pre": "tekken"}, "tokenizer.ggml.pre is 'tekken'; what can be read is default"),
        ({"tokenizer__ggml__model": "rwkv"}, "tokenizer.ggml.model is 'rwkv'"),
        ({"tokenizer__ggml__merges": None}, "tokenizer.ggml.merges is missing"),
        ({"tokenizer__ggml__merges": ["a", "b c d"]}, "the tokenizer in .* is damaged"),
        ({"tokenizer__ggml__token_type": [1, 2]}, "it has 270 tokens, and"),
        ({"tokenizer__ggml__tokens": ["a"] * 271}, "it has 271 tokens, and fewer rows"),
        ({"tokenizer__ggml__eos_token_id": 270}, "tokenizer.ggml.eos_token_id is 270; it must be"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_that_names_the_file(small, cache, changes, match):
    file = small(**changes)
    with pytest.raises(SpecquantError, match=match) as error:
        load_model(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(cache.rglob("*.tmp"))


def test_a_type_that_is_not_read_is_named(published, tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    _add(writer, "llama.block_count", 1)
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((2, 54), np.uint8), raw_dtype=gguf.GGMLQuantizationType.TQ1_0)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with pytest.raises(SpecquantError, match=r"blk\.0\.ffn_up\.weight is stored as TQ1_0; what can be read is F32"):
        gguf_directory(tmp_path / "x.gguf")


def test_files_that_are_cut_off_are_refused(small):
    file = small()
    content = file.read_bytes()
    for length in (0, 3, 8, 20, 100, 1000, 6000, len(content) // 2, len(content) - 40):
        file.write_bytes(content[:length])
        with pytest.raises(SpecquantError, match=r"is damaged or not a GGUF file|is missing"):
            load_model(file)


def test_a_length_that_no_file_has_is_refused_at_once(small):
    file = small()
    content = file.read_bytes()
    at = content.index(b"tokenizer.ggml.token_type") + len(b"tokenizer.ggml.token_type") + 8
    file.write_bytes(content[:at] + (2**61).to_bytes(8, "little") + content[at + 8 :])
    with pytest.raises(SpecquantError, match="is damaged or not a GGUF file"):
        load_model(file)


def test_damaged_bytes_are_refused_or_read_as_other_numbers(small):
    """Whichever byte of the metadata it is: never another error than ours."""
    file = small()
    content = bytearray(file.read_bytes())
    random = np.random.default_rng(0)
    for at in random.integers(0, 2500, 60):
        damaged = content.copy()
        damaged[at] ^= 1 << int(random.integers(8))
        file.write_bytes(damaged)
        os.utime(file, ns=(int(at), int(at)))
        with suppress(SpecquantError):
            load_tokenizer(file)
            load_model(file)


def test_known_ways_of_cutting_are_all_tested():
    assert {CUTTING[pre] for pre in ("gpt-2", "smollm", "llama-bpe", "qwen2")} == set(CUTTING.values())
