"""Damaged configurations: whatever stands in one of their fields, a model loads, or one sentence says what is wrong."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specquant.errors import SpecquantError
from specquant.models.export import export_model
from specquant.models.loading import load_eagle_head, load_model, load_tokenizer
from specquant.models.quantize import quantize_model

# Fields that a file may lack, so that damage reaches them, too.
UNWRITTEN = {
    "config.json": [
        "rope_scaling",
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "sliding_window",
        "layer_types",
        "quantization_config",
        "compression_config",
        "bias",
        "qkv_bias",
        "draft_vocab_size",
    ],
    "generation_config.json": ["eos_token_id"],
    "tokenizer_config.json": ["chat_template", "extra_special_tokens", "added_tokens_decoder", "auto_map"],
}
ROPES = [
    {"rope_type": kind, "rope_theta": 1e4, **fields}
    for kind, fields in (
        ("linear", {"factor": 2.0}),
        ("yarn", {"factor": 4.0, "original_max_position_embeddings": 32}),
        ("longrope", {"short_factor": [1.0] * 32, "long_factor": [2.0] * 32, "original_max_position_embeddings": 64}),
        ("llama3", {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    )
]
NUMBERS = [0, -1, 1, 2, 3, 7, 2**31, 2**63, 10**30, 0.0, -0.0, 0.5, 1e-300, 1e30, -1e30, float("inf"), float("nan")]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.sampled_from(["", "x", "re:(", "0", "float16", "a\nb", "\ud800", "x" * 5000]),
    st.sampled_from([[], {}, [[]], [None], {"": None}, {"a": {"b": [1]}}, [1] * 40, ["x", 1], *ROPES]),
    st.recursive(
        st.none() | st.integers(-2, 300) | st.text("ab\n", max_size=2), lambda inner: st.lists(inner, max_size=3)
    ),
)
ONE_PLACE = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


def places(fields, prefix=()):
    """Every place in nested objects, as the keys that lead there."""
    for name, value in fields.items():
        yield (*prefix, name)
        if isinstance(value, dict):
            yield from places(value, (*prefix, name))


def damage(file: Path, fields: dict, data, others: dict | None = None) -> None:
    """Write a file with other values, or none, in one or two places of `fields`; what else it holds are `others`."""
    damaged = json.loads(json.dumps(fields))
    known = [*places(fields), *((name,) for name in UNWRITTEN[file.name] if others is None)]
    for place in data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=2), label="places"):
        section = damaged
        for key in place[:-1]:
            section = section.get(key) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            continue
        if data.draw(st.integers(0, 4), label="removed if 0"):
            section[place[-1]] = copy.deepcopy(data.draw(VALUES, label="value"))
        else:
            section.pop(place[-1], None)
    file.write_text(json.dumps((others or {}) | damaged))


def told_or_done(load, directory: Path) -> None:
    """It loads, or what is wrong is one sentence that says where."""
    sentence = ""
    try:
        load()
    except SpecquantError as error:
        sentence = str(error)
    if sentence:
        assert "\n" not in sentence
        assert str(directory) in sentence
        assert len(sentence) < 1500
        assert sentence.encode().decode() == sentence


@pytest.fixture(scope="module")
def models(small_models, tmp_path_factory):
    """The small family, and its target in formats of ours and of others."""
    root = shutil.copytree(small_models, tmp_path_factory.mktemp("damaged") / "family")
    (root / "target/generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": [1, 2]}))
    for scheme in ("w4a16-g128", "w8a8"):
        quantize_model(root / "target", scheme, root / scheme, method="round-to-nearest", progress=False)
        export_model(root / scheme, "compressed-tensors", root / f"compressed-{scheme}")
    export_model(root / "w4a16-g128", "gptq", root / "gptq")
    return root


@pytest.fixture
def written(models):
    """A model's file and what it holds; restored after the test."""
    kept = {}

    def open_file(name):
        file = models / name
        return file, json.loads(kept.setdefault(file, file.read_bytes()))

    yield open_file
    for file, content in kept.items():
        file.write_bytes(content)


def run(directory):
    model = load_model(directory)
    tokens = torch.arange(3) % model.config.vocab_size
    assert model.prefill(tokens, model.new_cache(3)).shape == (3, model.config.hidden_size)


@settings(max_examples=120, **ONE_PLACE)
@given(data=st.data())
def test_config(written, data):
    file, fields = written("target/config.json")
    fields["rope_parameters"] = data.draw(st.sampled_from([fields["rope_parameters"], *ROPES]), label="rope")
    damage(file, fields, data)
    told_or_done(lambda: run(file.parent), file.parent)


@settings(max_examples=30, **ONE_PLACE)
@given(data=st.data())
def test_generation_config(written, data):
    file, fields = written("target/generation_config.json")
    damage(file, fields, data)
    told_or_done(lambda: load_model(file.parent), file.parent)


@settings(max_examples=60, **ONE_PLACE)
@given(data=st.data())
def test_tokenizer_config(written, data):
    file, fields = written("target/tokenizer_config.json")
    damage(file, fields, data)
    told_or_done(lambda: load_tokenizer(file.parent)("1 plus 1 makes 2", verbose=False), file.parent)


@settings(max_examples=160, **ONE_PLACE)
@given(data=st.data(), name=st.sampled_from(["w4a16-g128", "w8a8", "compressed-w4a16-g128", "compressed-w8a8", "gptq"]))
def test_quantization_config(written, data, name):
    file, fields = written(f"{name}/config.json")
    damage(file, {"quantization_config": fields["quantization_config"]}, data, fields)
    told_or_done(lambda: run(file.parent), file.parent)


@settings(max_examples=80, **ONE_PLACE)
@given(data=st.data())
def test_config_of_an_eagle_head(models, written, data):
    file, fields = written("eagle-target/config.json")
    model = load_model(models / "target")
    damage(file, fields, data)
    told_or_done(lambda: load_eagle_head(file.parent, model), file.parent)
