"""EAGLE-3 heads: against a reference written for this test, in both formats, rotated, and what is refused."""

import json
import math
from copy import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from specquant.errors import SpecquantError
from specquant.models.eagle3 import ROTATED, load_eagle3_config
from specquant.models.export import convert_head
from specquant.models.llama import causal_mask
from specquant.models.loading import load_eagle3_head, load_model
from specquant.models.quantize import quantize_model
from tests.family import eagle3_tensors

TOKENS = [7 * n % 270 for n in range(1, 13)]
LAYERS = (0, 1, 2)  # of the two that the small target has


@pytest.fixture(scope="module")
def model(small_models):
    return load_model(small_models / "target", dtype=torch.float64)


@pytest.fixture(scope="module")
def tensors(small_models):
    return load_file(small_models / "eagle3-target/model.safetensors")


@pytest.fixture(scope="module")
def fields(small_models):
    return json.loads((small_models / "eagle3-target/config.json").read_text())


@pytest.fixture
def write(fields, write_head):
    """Writes a head's directory with these fields, but for those that are `...`."""

    def write(tensors, pickled=False, config=None, **changed):
        told = {name: value for name, value in ((config or fields) | changed).items() if value is not ...}
        return write_head(tensors, told, pickled)

    return write


def in_speculators_form(tensors, fields, norm_before_residual, embedding):
    """The same head as vLLM's speculators write it: other names, an embedding, and a nested configuration."""
    renamed = {name.replace("midlayer.", "layers.0."): tensor for name, tensor in tensors.items()}
    config = {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.2.0",
        "draft_vocab_size": fields["draft_vocab_size"],
        "norm_before_residual": norm_before_residual,
        "target_hidden_size": None,
        "eagle_aux_hidden_state_layer_ids": fields["eagle_aux_hidden_state_layer_ids"],
        "transformer_layer_config": {
            name: value for name, value in fields.items() if "draft_vocab" not in name and "eagle" not in name
        },
    }
    return renamed | {"embed_tokens.weight": embedding}, config


def test_the_pass_hands_out_what_layers_begin_with(small_models, model):
    """As transformers gives them; behind the last layer it gives only what the final norm makes of the stream."""
    theirs = AutoModelForCausalLM.from_pretrained(small_models / "target", dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(torch.tensor([TOKENS]), output_hidden_states=True).hidden_states
    features, streams = model.run_prompt(torch.tensor(TOKENS), model.new_cache(20), LAYERS)
    first, second, last = streams.split(model.config.hidden_size, dim=1)
    for ours, theirs in zip((first, second, model.norm(last), features), (*expected, expected[2]), strict=True):
        torch.testing.assert_close(ours, theirs[0], atol=1e-5, rtol=1e-5)  # their norms compute in float32
    reversed_order = model.run_prompt(torch.tensor(TOKENS), model.new_cache(20), (2, 0, 0))[1]
    assert torch.equal(reversed_order, torch.cat((last, first, first), dim=1))


def rms(x, weight, epsilon):
    return weight.double() * x / (x.square().mean() + epsilon).sqrt()


def rotated_to(vector, position, theta):
    """A head's query or key at a position (RoFormer), pair by pair."""
    half = len(vector) // 2
    turned = vector.clone()
    for i in range(half):
        angle = position * theta ** (-2 * i / len(vector))
        a, b = vector[i], vector[i + half]
        turned[i] = a * math.cos(angle) - b * math.sin(angle)
        turned[i + half] = b * math.cos(angle) + a * math.sin(angle)
    return turned


class Reference:
    """EAGLE-3's head, row by row, by its paper and the published names. One chain: a row sees all rows before it."""

    def __init__(self, tensors, config, embedding, norm_before_residual=False):
        self.t = {name.replace("midlayer.", "layer."): tensor.double() for name, tensor in tensors.items()}
        self.config, self.embedding, self.norm_first = config, embedding.double(), norm_before_residual
        self.keys, self.values = [], []

    def fused(self, streams):
        return self.t["fc.weight"] @ torch.cat(streams)

    def row(self, token, known):
        """Logits over the drafted tokens, and what is known of the next position."""
        t, config, epsilon = self.t, self.config, self.config.rms_norm_eps
        position, size = len(self.keys), config.head_dim
        normed = rms(known, t["layer.hidden_norm.weight"], epsilon)
        read = torch.cat((rms(self.embedding[token], t["layer.input_layernorm.weight"], epsilon), normed))
        query, key, value = ((t[f"layer.self_attn.{name}_proj.weight"] @ read).split(size) for name in ("q", "k", "v"))
        theta = config.rope_parameters["rope_theta"]
        self.keys.append([rotated_to(part, position, theta) for part in key])
        self.values.append(value)
        attended = []
        for number, part in enumerate(query):
            shared = number * len(key) // len(query)
            turned = rotated_to(part, position, theta)
            weights = torch.stack([turned @ keys[shared] / size**0.5 for keys in self.keys]).softmax(0)
            attended.append(sum(w * values[shared] for w, values in zip(weights, self.values, strict=True)))
        x = (normed if self.norm_first else known) + t["layer.self_attn.o_proj.weight"] @ torch.cat(attended)
        inner = rms(x, t["layer.post_attention_layernorm.weight"], epsilon)
        gate, up = (t[f"layer.mlp.{name}_proj.weight"] @ inner for name in ("gate", "up"))
        x = x + t["layer.mlp.down_proj.weight"] @ (gate * torch.sigmoid(gate) * up)
        return t["lm_head.weight"] @ rms(x, t["norm.weight"], epsilon), x


@pytest.mark.parametrize("norm_before_residual", [False, True])
@pytest.mark.parametrize("form", ["SafeAILab", "SafeAILab with an embedding", "speculators"])
def test_a_head_computes_what_the_reference_does(model, tensors, fields, write, form, norm_before_residual):
    """Behind true features, and along a chain of its own drafts."""
    own = torch.randn(270, 256, generator=torch.Generator().manual_seed(5)).half()
    embedding = model.embed_tokens.weight if form == "SafeAILab" else own
    stored, config = tensors, fields | {"norm_before_residual": norm_before_residual}
    if form == "speculators":
        stored, config = in_speculators_form(tensors, fields, norm_before_residual, own)
    elif form != "SafeAILab":
        stored = tensors | {"embed_tokens.weight": own}
    head = load_eagle3_head(write(stored, config=config), model)
    reference = Reference(tensors, model.config, embedding, norm_before_residual)

    _, streams = model.run_prompt(torch.tensor(TOKENS[:-1]), model.new_cache(20), head.feature_layers)
    cache, rows = head.new_cache(20), torch.arange(len(streams))
    known = head.known(streams)
    outputs = head(torch.tensor(TOKENS[1:]), known, rows, cache, causal_mask(len(rows), "cpu"))
    cache.length += len(rows)
    for row, token in enumerate(TOKENS[1:]):
        expected, fed_back = reference.row(token, reference.fused(list(streams[row].split(256))))
        torch.testing.assert_close(head.logits(outputs)[row], expected)
    drafted = (torch.arange(200) + tensors["d2t"]).tolist()
    for step in range(3):
        token = drafted[int(expected.argmax())]
        assert int(head.likeliest(outputs[-1:], 1)[1]) == token
        position = torch.tensor([len(rows) + step])
        outputs = head(torch.tensor([token]), outputs[-1:], position, cache, causal_mask(1, "cpu"))
        cache.length += 1
        expected, fed_back = reference.row(token, fed_back)
        torch.testing.assert_close(head.logits(outputs)[0], expected)


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
@pytest.mark.parametrize("pickled", [False, True])
def test_any_prefix_and_both_files_load_alike(small_models, model, tensors, write, prefix, pickled):
    named = {
        name if name.split(".")[0] in ("lm_head", "d2t", "t2d") else prefix + name: tensor
        for name, tensor in tensors.items()
    }
    expected = load_eagle3_head(small_models / "eagle3-target", model).state_dict()
    found = load_eagle3_head(write(named, pickled), model).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_drafted_tokens_in_any_order_are_the_same_head(model, tensors, write):
    """Rows of the LM head may stand in any order: ours stand in that of their tokens."""
    order = torch.randperm(200, generator=torch.Generator().manual_seed(3))
    drafted = (torch.arange(200) + tensors["d2t"])[order]
    shuffled = tensors | {"d2t": drafted - torch.arange(200), "lm_head.weight": tensors["lm_head.weight"][order]}
    ours, theirs = (load_eagle3_head(write(stored), model) for stored in (tensors, shuffled))
    assert torch.equal(ours.vocabulary, theirs.vocabulary)
    assert torch.equal(ours.lm_head.weight, theirs.lm_head.weight)


def test_a_head_that_drafts_every_token_needs_no_maps(model, write):
    whole = eagle3_tensors(model.config, 270)
    without = {name: tensor for name, tensor in whole.items() if name not in ("d2t", "t2d")}
    head = load_eagle3_head(write(without, draft_vocab_size=270), model)
    assert head.vocabulary is None
    assert torch.equal(load_eagle3_head(write(whole, draft_vocab_size=270), model).vocabulary, torch.arange(270))


def test_the_usual_layers_are_an_early_a_middle_and_a_late_one(model, fields, write, tensors):
    config = load_eagle3_config(write(tensors, eagle_aux_hidden_state_layer_ids=...))
    large = copy(model.config)
    for layers, expected in ((32, (2, 16, 29)), (80, (2, 40, 77)), (7, (2, 3, 4))):
        large.num_hidden_layers = layers
        assert config.layers_of(large, "head") == expected
    nested = write(
        tensors, eagle_aux_hidden_state_layer_ids=..., eagle_config={"eagle_aux_hidden_state_layer_ids": [0, 1, 1]}
    )
    assert load_eagle3_config(nested).feature_layers == (0, 1, 1)


def test_an_embedding_of_its_own_is_shared_where_it_is_the_models(model, tensors, write):
    copied = model.embed_tokens.weight.half().clone()
    head = load_eagle3_head(write(tensors | {"embed_tokens.weight": copied}), model)
    assert head.embed_tokens is model.embed_tokens


def test_cheaper_heads_know_fewer_tokens_in_fewer_bits(model, small_models, tensors):
    few = torch.arange(0, 270, 2)
    head = load_eagle3_head(small_models / "eagle3-target", model, vocabulary=few)
    drafted = torch.arange(200) + tensors["d2t"]
    kept = drafted % 2 == 0
    assert torch.equal(head.vocabulary, drafted[kept])
    assert torch.equal(head.lm_head.weight, tensors["lm_head.weight"][kept].double())
    rounded = load_eagle3_head(small_models / "eagle3-target", load_model(small_models / "target"), "w8a8")
    assert rounded.bytes_read < 0.7 * load_eagle3_head(small_models / "eagle3-target", model).bytes_read


@pytest.fixture(scope="module")
def rotated(small_models, tmp_path_factory):
    path = tmp_path_factory.mktemp("rotated") / "target"
    quantize_model(small_models / "target", "w4a16-g128-rot", path, method="round-to-nearest", progress=False)
    model = load_model(path, dtype=torch.float64)
    model.directory = path
    return model


def predicted(head, model):
    """Logits behind a model's own features."""
    _, streams = model.run_prompt(torch.tensor(TOKENS[:-1]), model.new_cache(20), head.feature_layers)
    rows = torch.arange(len(streams))
    mask = causal_mask(len(rows), "cpu")
    return head.logits(head(torch.tensor(TOKENS[1:]), head.known(streams), rows, head.new_cache(20), mask))


def test_a_head_that_we_convert_drafts_as_the_published_one(rotated, model, small_models, tensors, write, tmp_path):
    """Where the rotated model says that it is, and where it does not."""
    published = small_models / "eagle3-target"
    convert_head(published, rotated.directory, tmp_path / "ours")
    expected = predicted(load_eagle3_head(published, rotated), rotated)
    silent = copy(rotated)
    silent._buffers = rotated._buffers | {"feature_map": None}
    for target in (rotated, silent):  # the converted head is stored in fp16
        torch.testing.assert_close(
            predicted(load_eagle3_head(tmp_path / "ours", target), target), expected, atol=0.02, rtol=0
        )
    assert json.loads((tmp_path / "ours/config.json").read_text())[ROTATED] is True
    own = load_file(tmp_path / "ours/model.safetensors")["embed_tokens.weight"]
    assert (own - model.embed_tokens.weight).abs().max() < 1e-3
    # What it is for: without it, the head reads what it was not trained on.
    unconverted = load_eagle3_head(write(tensors | {"embed_tokens.weight": own}), silent)
    assert (predicted(unconverted, silent) - expected).abs().max() > 1


def test_what_needs_no_conversion_is_not_converted(rotated, small_models, tmp_path, model):
    head, out = small_models / "eagle3-target", tmp_path / "out"
    with pytest.raises(SpecquantError, match="was not rotated by us: its EAGLE head needs no conversion"):
        convert_head(head, small_models / "target", out)
    convert_head(head, rotated.directory, out)
    with pytest.raises(SpecquantError, match="has been converted already: give the published one"):
        convert_head(out, rotated.directory, tmp_path / "again")
    embedding = load_file(out / "model.safetensors") | {"embed_tokens.weight": model.embed_tokens.weight.half()}
    save_file(embedding, out / "model.safetensors")
    with pytest.raises(SpecquantError, match="was converted for a rotated model, and its model is none"):
        load_eagle3_head(out, model)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"eagle_aux_hidden_state_layer_ids": [0, 1, 3]}, r"is \[0, 1, 3\], and its model has 2 layers"),
        ({"eagle_aux_hidden_state_layer_ids": [0, 1]}, r"is \[0, 1\]; EAGLE-3 reads 3 layers"),
        ({"eagle_aux_hidden_state_layer_ids": [0, -1, 1]}, "must be a list, each of it a whole number, 0 to"),
        (
            {"eagle_aux_hidden_state_layer_ids": ...},
            "does not name eagle_aux_hidden_state_layer_ids, and of a model of 2",
        ),
        ({"draft_vocab_size": 300}, "draft_vocab_size is 300, and vocab_size 270"),
        ({"draft_vocab_size": "many"}, "draft_vocab_size is 'many'; it must be a whole number"),
        ({"draft_vocab_size": 199}, r"d2t has shape \(200,\) where config.json asks for \(199,\)"),
        ({"target_hidden_size": 128}, "reads features of 128 numbers, and its model has hidden_size 256"),
        ({"vocab_size": 3000}, "has vocab_size 3000, and its model 270: they do not fit"),
        ({"num_hidden_layers": 2}, "num_hidden_layers is 2; of EAGLE-3 heads, only those with 1 are supported"),
        ({"model_type": "qwen3"}, "model_type is 'qwen3'; of EAGLE-3 heads, only those with 'llama' are supported"),
        ({"norm_before_fc": True}, "norm_before_fc is True; of EAGLE-3 heads, only those with False are supported"),
        ({"norm_before_residual": "no"}, "norm_before_residual is 'no'; it must be"),
        ({"eagle_config": {"use_aux_hidden_state": False}}, "use_aux_hidden_state is False; of EAGLE-3 heads"),
        ({"logit_scale": 0.5}, "logit_scale is 0.5; of EAGLE-3 heads"),
        ({"hidden_size": 128}, "has hidden_size 128, its model 256, and no embed_tokens.weight of its own"),
    ],
)
def test_other_variations_are_refused_by_the_field_that_names_them(model, tensors, write, changed, says):
    if "hidden_size" in changed:
        changed = changed | {"target_hidden_size": 256}
    with pytest.raises(SpecquantError, match=says) as error:
        load_eagle3_head(write(tensors, **changed), model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"speculators_model_type": "hass"}, "speculators_model_type is 'hass'; of EAGLE-3 heads"),
        ({"norm_before_residual": ...}, "norm_before_residual is missing; it must be true or false"),
        ({"transformer_layer_config": ...}, "transformer_layer_config is missing; it must be an object"),
        ({"transformer_layer_config": 3}, "transformer_layer_config is 3; it must be an object"),
    ],
)
def test_what_the_form_of_speculators_lacks_is_named(model, tensors, fields, write, changed, says):
    stored, config = in_speculators_form(tensors, fields, True, model.embed_tokens.weight.half())
    with pytest.raises(SpecquantError, match=says):
        load_eagle3_head(write(stored, config=config, **changed), model)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ({"d2t": torch.zeros(199, dtype=torch.int64)}, r"d2t has shape \(199,\) where config.json asks for \(200,\)"),
        ({"t2d": torch.ones(200, dtype=torch.bool)}, r"t2d has shape \(200,\) where config.json asks for \(270,\)"),
        ({"t2d": torch.ones(270, dtype=torch.bool)}, "d2t and t2d do not name the same tokens"),
        ({"d2t": torch.full((200,), 80)}, "d2t does not give each of 200 drafted tokens a number of its own"),
        ({"d2t": -torch.arange(200)}, "d2t does not give each of 200 drafted tokens a number of its own"),
        ({"d2t": torch.zeros(200)}, r"d2t holds torch.float32 where torch.int64 belongs"),
        ({"d2t": None}, "is incomplete: it has no tensor d2t"),
        ({"norm.weight": None}, "is incomplete: it has no tensor norm.weight"),
        ({"input_norm.weight": torch.ones(768)}, "does not call for: input_norm.weight"),
    ],
)
def test_maps_and_tensors_that_do_not_fit_are_refused(model, tensors, write, broken, says):
    stored = {name: tensor for name, tensor in (tensors | broken).items() if tensor is not None}
    with pytest.raises(SpecquantError, match=says) as error:
        load_eagle3_head(write(stored), model)
    assert "\n" not in str(error.value)


def test_heads_of_the_other_kind_are_refused(model, small_models):
    with pytest.raises(SpecquantError, match=r"is no EAGLE-3 head: its config\.json has no draft_vocab_size"):
        load_eagle3_head(small_models / "eagle-target", model)
