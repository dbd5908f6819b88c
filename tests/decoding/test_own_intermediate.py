"""The same model in fewer bits as the intermediate model: by composition, lossless, and what it shares."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from specquant.cli import main
from specquant.decoding import Greedy, Sampling, Speculator
from specquant.decoding.models import Models
from specquant.errors import SpecquantError
from specquant.models.companions import directories_beside
from specquant.models.loading import load_tokenizer
from specquant.models.quantize import quantize_model
from specquant.models.transforms import rotation_of
from tests.decoding.conftest import decode_with_lengths, random_model, taken, tokens_of

PROMPT = [3, 14, 15, 9, 26, 5]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def family(small_models, own, **options):
    heads = {"eagle_target": small_models / "eagle-target", "eagle3_target": small_models / "eagle3-target"}
    return Models(small_models / "target", intermediate=f"self:{own}", dtype=torch.float64, **heads | options)


@pytest.mark.parametrize(
    ("target", "scheme"), [(None, "w4a16-g128"), (None, "w4a8-qqq"), ("w8a8", "w4a16-g128"), (None, "w8a8")]
)
def test_it_drafts_for_itself_and_no_token_differs(small_models, target, scheme):
    models = family(small_models, scheme, scheme=target)
    prompt = load_tokenizer(small_models / "target")("7 plus 5 makes")["input_ids"]
    expected, _ = decode_with_lengths(models.speculator("autoregressive"), prompt, 24)
    for method in ("vanilla", "hierarchical", "hierarchical-eagle3", "hierarchical-suffix"):
        speculator = models.speculator(method)
        tokens, lengths = decode_with_lengths(speculator, prompt, 24)
        assert tokens == expected
        assert speculator.drafter.model is models.intermediate
        assert sum(lengths) / len(lengths) > 1.5, method  # it agrees with itself, though its weights are random
    assert isinstance(speculator, Speculator)
    assert models.target.scheme.name == (target or "fp16")
    assert models.intermediate.scheme.name == scheme


def test_what_is_the_same_in_both_is_there_once(small_models, own_cache):
    models = family(small_models, "w4a16-g128")
    assert models.intermediate.embed_tokens is models.target.embed_tokens
    assert models.intermediate.lm_head is models.target.lm_head
    rotated = family(small_models, "w4a8-qqq")
    assert rotated.intermediate.embed_tokens is not rotated.target.embed_tokens
    rotation, _ = rotation_of(rotated.intermediate)
    assert rotation.shape == (256, 256)
    kept = {path.name.split("-calibrated")[0] for path in (own_cache / "specquant/targets").iterdir()}
    assert kept == {"w4a16-g128", "w4a8-qqq"}  # made once
    before = {path: path.stat().st_mtime_ns for path in own_cache.rglob("*.safetensors")}
    assert family(small_models, "w4a8-qqq").intermediate.scheme.name == "w4a8-qqq"
    assert {path: path.stat().st_mtime_ns for path in own_cache.rglob("*.safetensors")} == before


def test_it_drafts_by_the_targets_heads(small_models):
    models = family(small_models, "w4a16-g128")
    head = models.speculator("hierarchical").drafter.drafter.head
    own = models.speculator("eagle2").drafter.head
    assert torch.equal(head.fc.weight, own.fc.weight)
    assert head.embed_tokens is own.embed_tokens
    with pytest.raises(SpecquantError, match="has hidden_size 128, and its model 256"):
        family(small_models, "w4a16-g128", eagle_intermediate=small_models / "eagle-intermediate").speculator(
            "hierarchical"
        )


def test_the_command_takes_it_with_the_heads_beside_the_target(small_models, capsys):
    command = ["generate", "--model", str(small_models / "target"), "--prompt", "7 plus 5 makes", "--json"]
    command += ["--max-new-tokens", "12", "--dtype", "float64"]
    told = []
    for options in ([], ["--method", "hierarchical", "--intermediate", "self:w4a16-g128"]):
        assert main([*command, *options]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[1]["token_ids"] == told[0]["token_ids"]
    assert max(told[1]["accepted_lengths"]) > 1
    assert main([*command, "--method", "vanilla", "--intermediate", "self:fp16"]) == 2
    assert "self:fp16 has no fewer bits than the target in fp16" in capsys.readouterr().err


def test_its_heads_lie_where_the_targets_do():
    beside = directories_beside(Path("models/target"))
    own = directories_beside(Path("models/target"), "self:w4a16-g128")
    assert own == directories_beside(Path("models/target"), Path("self:w4a16-g128"))
    for head in ("eagle", "eagle3"):
        assert own[f"{head}_intermediate"] == own[f"{head}_target"] == beside[f"{head}_target"]
        assert beside[f"{head}_intermediate"].name == f"{head}-intermediate"


def test_what_is_no_cheaper_or_has_no_fp16_weights_is_refused(small_models, tmp_path, monkeypatch):
    def load(*_, **__):
        raise AssertionError("loaded before it was checked")

    monkeypatch.setattr("specquant.decoding.models.load_model", load)
    for scheme, of_target, says in (
        ("w4a17", None, "unknown scheme 'w4a17'"),
        ("fp16", None, "the intermediate model self:fp16 has no fewer bits than the target in fp16: it would cost"),
        ("w8a8", "w8a8", "self:w8a8 has no fewer bits than the target in w8a8"),
        ("", None, "unknown scheme ''"),
    ):
        with pytest.raises(SpecquantError, match=says):
            family(small_models, scheme, scheme=of_target).speculator("vanilla")
    copy = tmp_path / "quantized"
    quantize_model(small_models / "target", "w8a8", copy, method="round-to-nearest", progress=False)
    with pytest.raises(SpecquantError, match=r"is made of fp16 weights, and .*quantized is quantized already"):
        Models(copy, intermediate="self:w4a16-g128").speculator("vanilla")
    narrow = shutil.copytree(small_models / "target", tmp_path / "narrow")
    fields = json.loads((narrow / "config.json").read_text()) | {"intermediate_size": 130}
    (narrow / "config.json").write_text(json.dumps(fields))
    with pytest.raises(SpecquantError, match=r"2 \* intermediate_size 260 is not a multiple of"):
        Models(narrow, intermediate="self:w4a8-qqq").speculator("vanilla")


@pytest.mark.parametrize("rule", [Greedy, partial(Sampling, 1.0, seed=3)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("scale", [1.0, 0.2], ids=["itself", "another"])
def test_a_copy_may_read_the_targets_cache(rule, scale):
    """No token differs, whether the copy agrees or not, and the target's keys and values stay those that it computes
    alone. The copy runs neither the prompt nor a confirmed token again."""
    model, copy = random_model(), random_model()
    for layer in copy.layers:
        layer.down_proj.weight.mul_(scale)
    runs, run = [], copy.run
    copy.run = lambda tokens, *args: runs.append(len(tokens)) or run(tokens, *args)
    alone = Speculator(model)
    expected = taken(alone, PROMPT, 40, rule())
    drafter = Speculator(copy, min_draft_length=4, reads_cache=True)
    shared = Speculator(model, drafter)
    steps = taken(shared, PROMPT, 40, rule())
    if rule is Greedy:
        assert tokens_of(steps) == tokens_of(expected)
        length = alone.cache.length
        for ours, theirs in ((shared.cache.keys, alone.cache.keys), (shared.cache.values, alone.cache.values)):
            torch.testing.assert_close(ours[:, :, :length], theirs[:, :, :length], rtol=1e-9, atol=1e-9)
    assert drafter.cache.keys is shared.cache.keys
    assert drafter.cache.length == shared.cache.length == len(shared.tokens) - 1
    assert set(runs) == {1}
    lengths = [len(step.path) for step in steps[1:-2]]
    assert (min(lengths) == 4) is (scale == 1.0)


def test_the_commands_share_a_cache_where_that_can_be(small_models, capsys):
    command = ["generate", "--model", str(small_models / "target"), "--prompt", "7 plus 5 makes", "--json"]
    command += ["--max-new-tokens", "12", "--dtype", "float64"]
    own = ["--intermediate", "self:w4a16-g128", "--share-cache"]
    told = []
    for options in (["--method", "autoregressive"], ["--method", "vanilla", *own]):
        assert main([*command, *options]) == 0
        told.append(json.loads(capsys.readouterr().out)["text"])
    assert told[0] == told[1]
    for wrong, says in (
        (["--method", "hierarchical", *own], "hierarchical has no use for a shared cache"),
        (["--method", "vanilla", "--share-cache"], "needs an intermediate model that is the target in fewer bits"),
        (["--method", "vanilla", "--intermediate", "self:w4a8-qqq", "--share-cache"], "scaled for 8-bit activations"),
    ):
        assert main([*command, *wrong]) == 2
        assert says in capsys.readouterr().err
