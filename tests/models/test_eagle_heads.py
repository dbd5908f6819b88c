"""EAGLE heads in the forms that SafeAILab publishes, and as SpecMQuant converts them for rotated models."""

import json
import pickle
from copy import copy

import pytest
import torch
from safetensors.torch import load_file

from specquant.cli import main
from specquant.decoding import EagleDrafter, Greedy, Speculator
from specquant.errors import SpecquantError
from specquant.models.checkpoint import Checkpoint
from specquant.models.export import convert_head
from specquant.models.loading import load_eagle_head, load_model
from specquant.models.quantize import quantize_model

TOKENS = torch.arange(20) * 3


@pytest.fixture(scope="module")
def model(small_models):
    return load_model(small_models / "target")


@pytest.fixture(scope="module")
def tensors(small_models):
    return load_file(small_models / "eagle-target/model.safetensors")


@pytest.fixture
def write(small_models, write_head):
    """Writes a head's directory with these fields beside its own."""
    own = json.loads((small_models / "eagle-target/config.json").read_text())
    return lambda tensors, pickled=False, **fields: write_head(tensors, own | fields, pickled)


def predicted(head, tokens=TOKENS, seed=0):
    """What a head makes of random features."""
    features = torch.randn(len(tokens), head.config.hidden_size, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
    return head.logits(head(tokens, features, torch.arange(len(tokens)), head.new_cache(32), mask))


@pytest.mark.parametrize("prefix", ["", "module.", "model.ea_layer."])
@pytest.mark.parametrize("pickled", [False, True])
def test_both_files_and_any_prefix_load_alike(model, small_models, tensors, write, prefix, pickled):
    directory = write({prefix + name: tensor for name, tensor in tensors.items()}, pickled)
    expected = predicted(load_eagle_head(small_models / "eagle-target", model))
    assert torch.equal(predicted(load_eagle_head(directory, model)), expected)


def test_the_old_format_of_torch_files(model, small_models, tensors, write):
    directory = write(tensors, pickled=True)
    torch.save(tensors, directory / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    expected = predicted(load_eagle_head(small_models / "eagle-target", model))
    assert torch.equal(predicted(load_eagle_head(directory, model)), expected)


def test_with_and_without_a_bias_as_the_configuration_says(model, tensors, write):
    """SafeAILab's rule: there is one, unless "bias" is false."""
    without = {name: tensor for name, tensor in tensors.items() if name != "fc.bias"}
    head = load_eagle_head(write(without, bias=False), model)
    assert head.fc.bias is None
    zeros = load_eagle_head(write(without | {"fc.bias": torch.zeros(256).half()}), model)
    assert torch.equal(predicted(head), predicted(zeros))
    ones = load_eagle_head(write(without | {"fc.bias": torch.ones(256).half()}, bias=True), model)
    assert not torch.equal(predicted(ones), predicted(zeros))
    with pytest.raises(SpecquantError, match=r"does not call for: fc\.bias"):
        load_eagle_head(write(tensors, bias=False), model)
    with pytest.raises(SpecquantError, match=r"is incomplete: it has no tensor fc\.bias"):
        load_eagle_head(write(without), model)


def test_biases_of_queries_keys_and_values_as_the_configuration_says(model, tensors, write):
    sizes = {"q": 256, "k": 64, "v": 64}
    biases = {f"layers.0.self_attn.{name}_proj.bias": torch.randn(size).half() for name, size in sizes.items()}
    with pytest.raises(SpecquantError, match=r"does not call for: layers.0.self_attn.k_proj.bias"):
        load_eagle_head(write(tensors | biases), model)
    head = load_eagle_head(write(tensors | biases, qkv_bias=True), model)
    assert torch.equal(head.layer.qkv_proj.bias, torch.cat(list(biases.values())))
    assert head.layer.o_proj.bias is None


def test_the_layer_is_a_llama_layer_for_a_model_of_another_family(model, small_models, tensors, write):
    expected = predicted(load_eagle_head(small_models / "eagle-target", model))
    for family in ("qwen2", "qwen3", "mixtral"):
        assert torch.equal(predicted(load_eagle_head(write(tensors, model_type=family), model)), expected)


def test_an_embedding_of_its_own_is_shared_where_it_is_the_models(model, tensors, write):
    copy = model.embed_tokens.weight.half().clone()
    head = load_eagle_head(write(tensors | {"embed_tokens.weight": copy}), model)
    assert head.embed_tokens is model.embed_tokens
    head = load_eagle_head(write(tensors | {"embed_tokens.weight": copy + 1}), model)
    assert torch.equal(head.embed_tokens.weight, (copy + 1).float())
    assert head.lm_head is model.lm_head


def test_its_context_is_its_models(small_models, tensors, write):
    """Published heads say 2048 for models of 8192: positions are rotations, of which there is no end."""
    directory = write(tensors, max_position_embeddings=16)
    model = load_model(small_models / "target", context_length=64)
    assert Speculator(model, EagleDrafter(load_eagle_head(directory, model), 8, 2, 4)).context_length == 64


def test_eagle_3_heads_are_recognized(model, tensors, write):
    says = "holds an EAGLE-3 head, which the method eagle3 drafts with: give an EAGLE or EAGLE-2 head"
    with pytest.raises(SpecquantError, match=says):
        load_eagle_head(write(tensors, draft_vocab_size=32000), model)
    names = {name.replace("layers.0.", "midlayer."): tensor for name, tensor in tensors.items()}
    with pytest.raises(SpecquantError, match=says):
        load_eagle_head(write(names, pickled=True), model)


class Hostile:
    """Unpickled by anything that trusts the file, it writes one."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("writer", [torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))])
def test_pickled_code_is_never_run(model, tensors, write, tmp_path, writer):
    directory = write(tensors, pickled=True)
    writer({"fc.weight": Hostile(tmp_path / "owned")}, directory / "pytorch_model.bin")
    with pytest.raises(SpecquantError, match="or holds more than tensors, which this package never runs"):
        load_eagle_head(directory, model)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [[1, 2], {"fc.weight": "text"}, {3: torch.zeros(2)}])
def test_a_pickle_of_something_else_is_refused(model, tensors, write, content):
    with pytest.raises(SpecquantError, match="is no state dict"):
        load_eagle_head(write(content, pickled=True), model)


@pytest.mark.parametrize("keep", [0, 10, 1000, -100])
def test_a_torn_pickle_is_refused(model, tensors, write, keep):
    file = write(tensors, pickled=True) / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(SpecquantError, match=r"pytorch_model\.bin is damaged") as error:
        load_eagle_head(file.parent, model)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def rotated(small_models, tmp_path_factory):
    path = tmp_path_factory.mktemp("rotated") / "target"
    quantize_model(small_models / "target", "w4a16-g128-rot", path, method="round-to-nearest", progress=False)
    model = load_model(path)
    model.directory = path
    return model


def converted(tensors, model, rotated):
    """A head as SpecMQuant converts it: with the ends from before the rotation, and what undoes it."""
    return tensors | {
        "embed_tokens.weight": model.embed_tokens.weight.half().clone(),
        "lm_head.weight": model.lm_head.weight.half().clone(),
        "rms_norm_rotation.weight": rotated.feature_map.t().half().contiguous(),
    }


def test_a_head_for_a_rotated_model_published_or_converted(model, rotated, small_models, tensors, write):
    published = load_eagle_head(small_models / "eagle-target", rotated)
    assert torch.equal(published.feature_map, rotated.feature_map)
    assert (predicted(published) - predicted(load_eagle_head(small_models / "eagle-target", model))).abs().max() < 1e-2

    head = load_eagle_head(write(converted(tensors, model, rotated), pickled=True), rotated)
    assert torch.equal(head.lm_head.weight, model.lm_head.weight)
    assert torch.equal(head.embed_tokens.weight, model.embed_tokens.weight)
    assert (head.feature_map - rotated.feature_map).abs().max() < 1e-3
    drafts = []
    for one in (published, head):
        drafter = EagleDrafter(one, 8, 3, 4)
        speculator = Speculator(rotated, drafter)
        speculator.prefill(TOKENS.tolist(), Greedy())
        drafts.append(drafter.propose(4).tokens.tolist())
    assert drafts[0] == drafts[1]


def test_a_converted_head_knows_the_rotation_of_a_model_that_does_not(model, rotated, tensors, write):
    rotated_by_others = copy(rotated)
    rotated_by_others._buffers = rotated._buffers | {"feature_map": None}
    head = load_eagle_head(write(converted(tensors, model, rotated)), rotated_by_others)
    assert (head.feature_map - rotated.feature_map).abs().max() < 1e-3


def test_a_head_for_another_rotation_is_refused(model, rotated, tensors, write):
    other = converted(tensors, model, rotated)
    other["rms_norm_rotation.weight"] = torch.eye(256).half()
    with pytest.raises(SpecquantError, match="was converted for another rotation than its model's"):
        load_eagle_head(write(other), rotated)


@pytest.mark.parametrize("pickled", [True, False])
def test_a_head_that_we_convert_serves_a_rotated_model_that_does_not_say_so(
    model, rotated, tensors, write, tmp_path, pickled
):
    published = write(tensors, pickled=pickled)
    convert_head(published, rotated.directory, tmp_path / "ours")
    expected = load_eagle_head(published, rotated)
    rotated_by_others = copy(rotated)
    rotated_by_others._buffers = rotated._buffers | {"feature_map": None}
    for target in (rotated, rotated_by_others):
        head = load_eagle_head(tmp_path / "ours", target)
        assert (head.feature_map - rotated.feature_map).abs().max() < 1e-3
        assert (predicted(head) - predicted(expected)).abs().max() < 1e-2
    ends = Checkpoint(tmp_path / "ours")
    assert (ends.read("embed_tokens.weight") - model.embed_tokens.weight).abs().max() < 1e-3
    assert set(ends.shapes) == set(converted(tensors, model, rotated))


def test_what_needs_no_conversion_is_not_converted(model, rotated, small_models, tensors, write, tmp_path):
    out = tmp_path / "out"
    head = small_models / "eagle-target"
    with pytest.raises(SpecquantError, match="was not rotated by us: its EAGLE head needs no conversion"):
        convert_head(head, small_models / "target", out)
    with pytest.raises(SpecquantError, match="has hidden_size 128, and its model 256"):
        convert_head(small_models / "eagle-intermediate", rotated.directory, out)
    with pytest.raises(SpecquantError, match="has been converted already: give the published one"):
        convert_head(write(converted(tensors, model, rotated)), rotated.directory, out)
    with pytest.raises(SpecquantError, match="exists and is not empty"):
        convert_head(head, rotated.directory, head)
    assert not out.exists()


def test_the_command_converts_a_head(rotated, small_models, tmp_path):
    command = ["convert-head", small_models / "eagle-target", "--model", rotated.directory, "--out", tmp_path / "out"]
    assert main([str(part) for part in command]) == 0
    assert load_eagle_head(tmp_path / "out", rotated)
