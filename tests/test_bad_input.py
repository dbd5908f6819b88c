"""Bad input at the command line: one line that says what is wrong and where, status 2, and nothing written."""

import json
import os
import shutil
from itertools import chain

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from specquant import files
from specquant.cli import main
from specquant.models.config import SIZES
from specquant.study import batch
from tests.commands import is_option, leaves
from tests.family import TEXT
from tests.study.conftest import Clone

LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 32, "long_factor": [1.0] * 32}
NEEDS = {"intermediate": "vanilla", "eagle-target": "eagle2", "eagle-intermediate": "hierarchical"}


@pytest.fixture
def family(small_models, tmp_path):
    """A family of models to damage."""
    shutil.copytree(small_models, tmp_path / "family")
    shutil.copyfile(small_models / "target/config.json", tmp_path / "family/intact.json")
    yield tmp_path / "family"
    shutil.rmtree(tmp_path / "family")


@pytest.fixture
def refused(capfd, tmp_path):
    """Run a command that must be refused; returns its one line. Also what libraries print would be seen."""

    def refused(*arguments):
        before = sorted(tmp_path.rglob("*"))
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        output = capfd.readouterr()
        assert (status, output.out) == (2, "")
        assert output.err.startswith("specquant: ")
        assert output.err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return output.err

    return refused


def generate(model, *options):
    return ("generate", "--model", model, "--prompt", "1 plus 1 makes", "--max-new-tokens", 4, *options)


def change_config(directory, **fields):
    """Set fields of config.json; None removes one."""
    file = directory / "config.json"
    config = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def change_tensors(directory, file="model.safetensors", **tensors):
    """Set tensors of a file, `__` standing for a dot; None removes one."""
    file = directory / file
    changed = load_file(file) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, file)


def test_the_undamaged_family_works(family, capfd):
    for method in ("autoregressive", *NEEDS.values()):
        assert main([str(argument) for argument in generate(family / "target", "--method", method, "--json")]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 1 + len(NEEDS)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--scheme", "w3a16"], "unknown scheme 'w3a16': choose one of fp16, w8a8"),
        (["--scheme", "w4a16-g128-rot"], "make it once by `specquant quantize"),
        (["--method", "medusa"], "unknown method 'medusa': choose one of autoregressive"),
        (["--method", "medusa"], "suffix-eagle2, or auto"),
        (["--calibration", "some.csv"], "--calibration is for --method auto"),
        *(
            (
                ["--method", method, f"--{option}", "adaptive"],
                f"--{option} adaptive does nothing for {method}: choose one of ",
            )
            for method, option in (
                ("autoregressive", "draft-size"),
                ("vanilla", "draft-size"),
                ("suffix", "inner-draft-size"),
                ("hierarchical", "draft-size"),
                ("eagle2", "inner-draft-size"),
                ("eagle2", "min-draft-length"),
            )
        ),
        (["--method", "auto", "--draft-size", "adaptive"], "--method auto chooses how to draft itself"),
        (["--method", "auto", "--prompt", ""], "the prompt is empty"),
        (["--method", "auto", "--intermediate", "nowhere"], "nowhere is not a model directory"),
        (["--method", "auto", "--calibration", "none.csv"], "there is no calibration at"),
        (
            ["--model", "nowhere"],
            "nowhere is not a model directory: nothing is there; name a directory that has a config.json",
        ),
        *((["--method", method, f"--{name}", "nowhere"], "nowhere is not a mo") for name, method in NEEDS.items()),
        (["--prompt", ""], "the prompt is empty: give at least one character"),
        (["--prompt", "<|begin|>"], "the prompt is empty"),
        (["--prompt", "1 plus " * 200], "the context is 128: there is no room for a new token; shorten the prompt"),
        (["--max-new-tokens", "0"], "the maximum of new tokens is 0; it must be at least 1"),
        (["--max-new-tokens", "-1"], "the maximum of new tokens is -1"),
        (["--temperature", "-0.5"], "a finite temperature above 0, not -0.5: 0 means greedy decoding"),
        (["--temperature", "nan"], "a finite temperature above 0, not nan"),
        (["--top-p", "0"], "top-p is the probability of the nucleus, above 0 and at most 1, not 0.0"),
        (["--top-p", "1.1", "--temperature", "1"], "top-p is the probability of the nucleus"),
        (["--seed", str(2**64)], "the seed 18446744073709551616 does not fit into 64 bits"),
        (["--stop", ""], "a stop string is empty"),
        (["--stop", "caf\udce9"], "a stop string is not valid text"),
        (["--prompt", "caf\udce9"], "the prompt is not valid text: its character 4 is "),
        (["--temperature", "inf"], "a finite temperature above 0, not inf"),
        (["--top-p", "nan"], "top-p is the probability of the nucleus, above 0 and at most 1, not nan"),
        (["--seed", str(2**70)], "the seed 1180591620717411303424 does not fit into 64 bits"),
        (["--context-length", "0"], "the context length is 0; it must be at least 1"),
        (["--max-new-tokens", str(10**30)], "it must be at most 1000000000"),
        (["--device", "nonsense"], "there is no device 'nonsense' here"),
        # Options that decoding one by one does not use.
        (["--head-scheme", "nonsense"], "unknown scheme 'nonsense': choose one of fp16, w8a8"),
        (["--head-scheme", "w4a8-qqq"], "w4a8-qqq rotates a whole model: give the EAGLE head another scheme"),
        (["--head-vocabulary", "0"], "the number of tokens that an EAGLE head knows is 0; it must be at least 1"),
        (["--head-vocabulary", "271"], "a vocabulary of 270 has no 271 most frequent tokens: choose fewer"),
        (["--head-text", "nowhere.txt"], "cannot read the text to count tokens in, nowhere.txt"),
        (["--head-text", "x" * 300], "File name too long"),
        *(([f"--{name}", "nowhere"], "nowhere is not a model directory") for name in NEEDS),
    ],
)
def test_options(small_models, refused, options, says):
    assert says in refused(*generate(small_models / "target", *options))


def test_calibrations(small_models, family, refused, tmp_path):
    """Of models that are not there, that do not fit each other, or that leave no room; nothing is written."""
    out = ("--out", tmp_path / "new/calibration.csv")
    assert "nowhere is not a model directory" in refused("calibrate", "--model", "nowhere", *out)
    says = "calibration needs prompts with room for 20 tokens behind them"
    assert says in refused("calibrate", "--model", small_models / "target", "--context-length", 24, *out)
    change_config(family / "eagle-intermediate", vocab_size=269)
    assert "has vocab_size 269, and its model 270" in refused("calibrate", "--model", family / "target", *out)


@pytest.mark.parametrize("name", ["target", *NEEDS])
def test_missing_extra_and_misshapen_tensors(family, refused, name):
    directory = family / name
    command = generate(family / "target", "--method", NEEDS.get(name, "autoregressive"))
    tensors = load_file(directory / "model.safetensors")
    for tensor in tensors:
        save_file({other: tensors[other] for other in tensors if other != tensor}, directory / "model.safetensors")
        line = refused(*command)
        assert f"{directory} is incomplete: it has no tensor" in line
        assert tensor in line
        save_file(tensors | {tensor: torch.zeros(2, 3, 5).half()}, directory / "model.safetensors")
        assert str(directory) in (line := refused(*command))
        assert "(2, 3, 5)" in line
    save_file(tensors | {"layers.7.norm.bias": torch.zeros(2)}, directory / "model.safetensors")
    assert f"{directory} has a tensor that config.json does not call for: layers.7.norm.bias" in refused(*command)


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.ones(256, dtype=torch.int32), "norm.weight holds torch.int32 where torch.float32 belongs"),
        (torch.full((256,), torch.nan), "norm.weight holds infinities or NaN in torch.float32"),
    ],
)
def test_tensors_of_a_wrong_type_or_without_meaning(family, refused, tensor, says):
    change_tensors(family / "target", model__norm__weight=tensor)
    assert says in refused(*generate(family / "target"))


def test_weights_that_fp16_cannot_hold(family, refused):
    change_tensors(family / "target", model__embed_tokens__weight=torch.full((270, 256), 1e6))
    assert "embed_tokens.weight holds infinities or NaN in torch.float16" in refused(*generate(family / "target"))


@pytest.mark.parametrize("name", ["target", *NEEDS])
@pytest.mark.parametrize("keep", [0, 5, 100, 100_000], ids=lambda keep: f"{keep} bytes")
def test_torn_weights(family, refused, name, keep):
    file = family / name / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    line = refused(*generate(family / "target", "--method", NEEDS.get(name, "autoregressive")))
    assert f"{file} is damaged or not a safetensors file" in line
    assert "copy it again" in line


@pytest.mark.parametrize("name", ["target", *NEEDS])
def test_missing_files(family, refused, name):
    command = generate(family / "target", "--method", NEEDS.get(name, "autoregressive"))
    (family / name / "model.safetensors").unlink()
    assert f"{family / name} has no weights: no *.safetensors file is in it" in refused(*command)
    (family / name / "config.json").unlink()
    assert f"{family / name} is not a model directory: it has no config.json" in refused(*command)


def test_what_is_where_a_model_should_be_is_told(tmp_path, refused):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("gone")
    found = {"folder": "it has no config.json", "file": "it is a file", "link": "nothing is there"}
    for name, told in {**found, "gone": "nothing is there"}.items():
        says = f"{tmp_path / name} is not a model directory: {told}; name a directory that has a config.json"
        assert says in refused(*generate(tmp_path / name))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not JSON"),
        (b'{"model_type": "lla', "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[]", "is no JSON object: copy it again"),
        (b"null", "is no JSON object: copy it again"),
        (b"{}", "model_type is None; this package computes llama, mistral, qwen2, qwen3"),
        (b'{"model_type": "gpt2"}', "model_type is 'gpt2'; this package computes llama, mistral, qwen2, qwen3"),
        (b'{"model_type": "llama"}', "vocab_size is missing; give the number above 0"),
    ],
)
def test_a_config_that_is_none(family, refused, content, says):
    file = family / "target/config.json"
    file.write_bytes(content)
    assert f"{file}" in (line := refused(*generate(family / "target")))
    assert says in line


@pytest.mark.parametrize("field", SIZES)
def test_a_config_without_a_size(family, refused, field):
    """transformers would take the first Llama's: at worst, a wrong result without a word."""
    for value, says in ((None, "is missing"), (0, "is 0"), (-4, "is -4"), ("big", "is 'big'")):
        change_config(family / "target", **{field: value})
        assert f"config.json: {field} {says}; give the number above 0" in refused(*generate(family / "target"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"hidden_size": 255}, "hidden size (255) is not a multiple of the number of attention heads (4)"),
        ({"num_hidden_layers": 1}, "has a tensor that config.json does not call for: model.layers.1"),
        ({"num_key_value_heads": 2}, "k_proj.weight has shape (64, 256) where config.json asks for (128, 256)"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported yet, only 'silu'"),
        ({"attention_bias": True}, "it has no tensor model.layers.0.self_attn.q_proj.bias"),
        ({"model_type": "qwen2"}, "it has no tensor model.layers.0.self_attn.q_proj.bias"),
        ({"model_type": "qwen3"}, "it has no tensor model.layers.0.self_attn.q_norm.weight"),
        ({"eos_token_id": [1, 270]}, "eos_token_id is 270, which is no token of a vocabulary of 270"),
        ({"rope_parameters": {"rope_type": "linear"}}, "is not a valid llama configuration: Missing required"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "two"}}, "factor is 'two'; it must be a number above 0"),
        ({"rope_parameters": {"rope_type": "warp"}}, "rope scaling 'warp' is not one that transformers has: default"),
        ({"rope_parameters": [1]}, "is not a valid llama configuration"),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "factor is -1; it must be a number above 0"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor is not"),
        (
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1], "long_factor": [1]}},
            "short_factor has 1 numbers; head_dim asks for 32",
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "big"}}, "rope_theta is 'big'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config: bits is missing; what can be loaded"),
        ({"quantization_config": "int4"}, "quantization_config in config.json is no JSON object"),
        ({"quantization_config": {"quant_method": "specquant"}}, "names the scheme None, which this version does not"),
        ({"quantization_config": {"quant_method": "specquant", "scheme": "w8a8"}}, "it has no tensor embed_tokens"),
    ],
)
def test_a_config_that_does_not_fit(family, refused, fields, says):
    change_config(family / "target", **fields)
    assert says in (line := refused(*generate(family / "target")))
    assert str(family / "target") in line


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps is inf"),
        ({"rms_norm_eps": 1e-300}, "rms_norm_eps is 1e-300"),
        ({"rms_norm_eps": True}, "rms_norm_eps is True"),
        ({"rope_theta": float("inf"), "rope_parameters": None}, "rope_theta is inf; it must be a number above 0"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": float("inf")}}, "rope_theta is inf"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e-300}}, "rope_theta is 1e-300"),
        ({"rope_parameters": {"rope_type": ["default"]}}, "rope scaling ['default'] is not one that transformers has"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": float("nan")}}, "factor is nan"),
        (
            {"rope_parameters": LONGROPE | {"original_max_position_embeddings": 1}},
            "give no rotary frequencies",
        ),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"),
        ({"num_attention_heads": 1e30}, "num_attention_heads is 1e+30"),
        ({"hidden_size": 10**30}, "hidden_size is 1000000000000000000000000000000"),
        ({"vocab_size": [270]}, "vocab_size is [270]"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0; it must be a whole number, 1 to"),
        ({"num_key_value_heads": -1}, "num_key_value_heads is -1"),
        ({"num_key_value_heads": "one"}, "num_key_value_heads is 'one'"),
        ({"head_dim": 0}, "head_dim is 0"),
        ({"head_dim": 63}, "head_dim is 63; it must be an even number"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; it must be true or false"),
        ({"attention_bias": 1}, "attention_bias is 1; it must be true or false"),
        ({"hidden_act": ["silu"]}, "hidden_act is ['silu']; it must be a text"),
        ({"sliding_window": "all"}, "sliding_window is 'all'"),
        ({"layer_types": 5}, "layer_types is 5"),
        ({"eos_token_id": True}, "is not a valid llama configuration"),
        ({"model_type": ["llama"]}, "model_type is ['llama']; this package computes"),
        ({"quantization_config": {"quant_method": ["gptq"]}}, "quant_method is ['gptq']"),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": 3}},
            "config_groups has not one",
        ),
    ],
)
def test_fields_of_a_wrong_type_or_out_of_reach(family, refused, fields, says):
    change_config(family / "target", **fields)
    assert says in (line := refused(*generate(family / "target")))
    assert str(family / "target") in line
    change_config(family / "eagle-target", **fields)
    change_config(family / "target", **json.loads((family / "intact.json").read_text()))
    if "quantization_config" not in fields and "model_type" not in fields:  # a head's are not looked at
        assert str(family / "eagle-target") in refused(*generate(family / "target", "--method", "eagle2"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"eos_token_id": {"a": 1}}, "eos_token_id is {'a': 1}, which is no token"),
        ({"eos_token_id": [[1]]}, "eos_token_id is [1], which is no token"),
        ({"eos_token_id": [None]}, "eos_token_id is None, which is no token"),
        ({"eos_token_id": 1e30}, "eos_token_id is 1e+30, which is no token"),
        ({"eos_token_id": True}, "eos_token_id is True, which is no token"),
        ({"eos_token_id": "x" * 10_000}, "eos_token_id is 'xxxx"),
    ],
)
def test_a_generation_config_of_wrong_types(family, refused, fields, says):
    (family / "target/generation_config.json").write_text(json.dumps(fields))
    assert f"generation_config.json: {says}" in (line := refused(*generate(family / "target")))
    assert len(line) < 1000


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
def test_json_that_is_nested_too_deeply(family, refused, name):
    if "index" in name:
        (family / "target/model.safetensors").rename(family / "target/model-00001-of-00001.safetensors")
    (family / "target" / name).write_text('{"a": ' * 100_000 + "1" + "}" * 100_000)
    assert f"{name} is nested too deeply" in refused(*generate(family / "target"))


def test_names_and_folders_that_cannot_be_read(family, refused):
    assert "File name too long" in refused(*generate("x" * 300))
    (family / "loop").symlink_to(family / "loop")
    assert f"cannot read {family / 'loop'} (Too many levels of symbolic links)" in refused(*generate(family / "loop"))
    assert "File name too long" in refused(
        *generate(family / "target", "--method", "eagle2", "--eagle-target", "x" * 300)
    )
    assert "File name too long" in refused("quantize", "x" * 300, "--scheme", "w8a8", "--out", family / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_is_closed(family, refused):
    (family / "target").chmod(0)
    try:
        assert f"cannot read {family / 'target'} (Permission denied)" in refused(*generate(family / "target"))
    finally:
        (family / "target").chmod(0o755)


def test_a_width_that_a_scheme_does_not_have(family, refused, tmp_path):
    """It names the field of config.json, and points to nothing that would be refused, too."""
    target = family / "target"
    config = LlamaConfig(**json.loads((target / "config.json").read_text()) | {"hidden_size": 92, "head_dim": 64})
    LlamaForCausalLM(config).half().save_pretrained(target)
    for scheme, reason in (
        ("w4a16-g128", "hidden_size 92 is not a multiple of 16"),
        ("w4a16-g128-rot", "hidden_size 92 cannot be rotated"),
        ("w4a8-qqq", "hidden_size 92 cannot be rotated"),
    ):
        says = f"{target} does not fit {scheme}: {reason}"
        out = tmp_path / "out"
        for line in (
            refused(*generate(target, "--scheme", scheme)),
            refused("quantize", target, "--scheme", scheme, "--quantizer", "round-to-nearest", "--out", out),
        ):
            assert says in line
            assert line.endswith("; schemes that it fits: fp16, w8a8, fp8\n")


def test_companions_that_do_not_fit(family, refused):
    """Another vocabulary or hidden size, a model for a head, a head for a model."""
    target = family / "target"
    command = generate(target, "--method", "eagle2", "--eagle-target")
    assert "has hidden_size 128, and its model 256" in refused(*command, family / "eagle-intermediate")
    assert f"{target} is no EAGLE head: it has 2 layers" in refused(*command, target)
    change_config(family / "eagle-target", vocab_size=269)
    assert "has vocab_size 269, and its model 270" in refused(*command, family / "eagle-target")

    command = generate(target, "--method", "vanilla", "--intermediate")
    assert "is incomplete: it has no tensor" in refused(*command, family / "eagle-intermediate")
    embedding = load_file(family / "intermediate/model.safetensors")["model.embed_tokens.weight"]
    change_config(family / "intermediate", vocab_size=269)
    change_tensors(family / "intermediate", model__embed_tokens__weight=embedding[:269].clone())
    says = "the drafter's vocabulary has 269 entries and its target's 270: use a drafter with the target's tokenizer"
    assert says in refused(*command, family / "intermediate")


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"model": {"type": "WordLevel", "vocab": {}, "unk_token": "[UNK]"}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}},
        {"added_tokens": [{"id": -1, "content": "x"}]},
        {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}},
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "none", "type_id": 0}}],
                "pair": [],
                "special_tokens": {},
            }
        },
        {"model": []},
    ],
)
def test_tokenizers_that_end_in_a_panic_or_only_when_used(family, refused, change):
    file = family / "target/tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert f"the tokenizer in {family / 'target'} is damaged" in refused(*generate(family / "target"))


@pytest.mark.parametrize(
    "change",
    [
        {"model_max_length": "x"},
        {"bos_token": 5},
        {"added_tokens_decoder": [1]},
        {"chat_template": {"a": 1}, "eos_token": []},
    ],
)
def test_a_tokenizer_config_of_wrong_types(family, refused, change):
    file = family / "target/tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert f"the tokenizer in {family / 'target'}" in refused(*generate(family / "target"))


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_tokenizers(family, refused, file):
    for damaged in (b"", b'{"version": ', b"[]", b"\xff\xfe"):
        (family / "target" / file).write_bytes(damaged)
        line = refused(*generate(family / "target"))
        assert f"the tokenizer in {family / 'target'} is damaged" in line
        assert "copy its files again" in line


def test_code_that_comes_with_a_model_is_never_run(family, capfd, monkeypatch):
    """Neither its tokenizer's nor its model's; and nobody is asked whether to trust it."""
    target = family / "target"
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    (target / "evil.py").write_text(f"open({str(family / 'owned')!r}, 'w')\nclass Evil: pass\n")
    map_to_code = {"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}
    for file, fields in (("config.json", {}), ("tokenizer_config.json", {"tokenizer_class": "Evil"})):
        content = json.loads((target / file).read_text()) | {"auto_map": map_to_code} | fields
        (target / file).write_text(json.dumps(content))
        main([str(argument) for argument in generate(target)])
        assert "Traceback" not in capfd.readouterr().err
        assert not (family / "owned").exists()


def test_a_missing_tokenizer_and_one_of_another_model(family, refused):
    embedding = load_file(family / "target/model.safetensors")["model.embed_tokens.weight"]
    change_config(family / "target", vocab_size=20)
    change_tensors(family / "target", model__embed_tokens__weight=embedding[:20].clone())
    assert "use the tokenizer that the model was trained with" in refused(*generate(family / "target"))
    (family / "target/tokenizer.json").unlink()
    assert f"{family / 'target'} has no tokenizer.json" in refused(*generate(family / "target"))


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def test_quantize_into_a_folder_that_cannot_be_written(small_models, refused, text, tmp_path):
    def command(out):
        return "quantize", small_models / "target", "--scheme", "w8a8", "--calibration-text", text, "--out", out

    (tmp_path / "full/file").mkdir(parents=True)
    assert f"{text} exists and is not empty: choose another output directory" in refused(*command(text))
    assert f"cannot write to {text}" in refused(*command(text / "out"))
    assert f"{tmp_path / 'full'} exists and is not empty" in refused(*command(tmp_path / "full"))


def test_quantize_what_cannot_be_quantized(family, refused, text, tmp_path):
    """With its folder to be made: a refused model leaves no folder behind."""

    def command(model, scheme="w8a8", calibration=text, *options):
        out = tmp_path / "new/folder/out"
        return "quantize", model, "--scheme", scheme, "--calibration-text", calibration, "--out", out, *options

    target = family / "target"
    assert "unknown scheme 'w3'" in refused(*command(target, "w3"))
    magic = refused(*command(target, "w8a8", text, "--quantizer", "magic"))
    assert "--quantizer is 'magic': choose one of calibrated, round-to-nearest" in magic
    assert "nowhere is not a model directory" in refused(*command("nowhere"))
    assert "cannot read calibration text nowhere.txt" in refused(*command(target, calibration="nowhere.txt"))
    text.write_text("1 plus 1")
    assert "tokens: give one of 32 or more" in refused(*command(target))
    assert "is incomplete: it has no tensor" in refused(*command(family / "eagle-target"))
    change_tensors(target, model__norm__weight=None)
    assert f"{target} is incomplete: it has no tensor model.norm.weight" in refused(*command(target))
    (target / "model.safetensors").write_bytes(b"torn")
    assert "is damaged or not a safetensors file" in refused(*command(target))


def test_a_quantized_model_with_damaged_codes(family, refused, tmp_path, capfd):
    model, out = family / "intermediate", family / "quantized"
    options = ["--scheme", "w8a8", "--quantizer", "round-to-nearest"]
    assert main(["quantize", str(model), *options, "--out", str(out)]) == 0
    assert f"{out} is already quantized to w8a8" in refused(
        "quantize", out, "--scheme", "w8a8", "--out", tmp_path / "again"
    )
    assert f"{out} is stored in w8a8, not in fp16" in refused(*generate(out, "--scheme", "fp16"))
    shard = "model-00001-of-00002.safetensors"
    codes = load_file(out / shard)["layers.0.o_proj.codes"]
    for damaged, says in ((codes.float(), "holds torch.float32"), (codes[1:].clone(), "has shape (127, 128)")):
        change_tensors(out, shard, layers__0__o_proj__codes=damaged)
        assert f"{out}: layers.0.o_proj.codes {says}" in refused(*generate(out))


def test_a_model_whose_w4a8_fp8_codes_an_earlier_version_stored(family, refused):
    model, out = family / "intermediate", family / "quantized"
    options = ["--scheme", "w4a8-fp8-g128", "--quantizer", "round-to-nearest"]
    assert main(["quantize", str(model), *options, "--out", str(out)]) == 0
    for shard in out.glob("*.safetensors"):
        tensors = load_file(shard)
        save_file({name.replace("signed_codes", "codes"): tensor for name, tensor in tensors.items()}, shard)
    (index,) = out.glob("*.index.json")
    index.write_text(index.read_text().replace("signed_codes", "codes"))
    assert f"{out} is incomplete: it has no tensor layers.0.qkv_proj.signed_codes" in refused(*generate(out))


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A small clone for `study` and `figures` to run in."""
    made = Clone(tmp_path / "clone")
    made.notebook("00_first", "print(draft_size)")
    made.results.mkdir()
    shutil.copytree(files.project_root() / "data/published", made.root / "data/published")
    monkeypatch.setattr(files, "project_root", lambda: made.root)
    monkeypatch.setattr(batch, "project_root", lambda: made.root)
    return made


@pytest.mark.parametrize(
    ("profile", "says"),
    [
        ("draft_sise: 4", "no notebook has a parameter 'draft_sise'; did you mean 'draft_size'?"),
        ("draft_size: many", "draft_size is 'many'; give a value of the type int"),
        ("draft_size: [1, 2", "tiny.yaml is not valid YAML"),
        ("- draft_size", "tiny.yaml must hold lines of the form `parameter: value`"),
    ],
)
def test_study_with_a_bad_profile(clone, refused, profile, says):
    clone.profile("tiny", profile)
    assert says in (line := refused("study", "--results", clone.results))
    assert "notebooks/profiles/tiny.yaml" in line


def test_study_with_unknown_names_and_an_unwritable_folder(clone, refused):
    assert "unknown profile 'huge': notebooks/profiles/ has tiny" in refused("study", "--profile", "huge")
    assert "there is no notebook '07_magic': choose from 00_first" in refused("study", "--only", "07_magic")
    file = clone.root / "src/code.py"
    assert f"cannot write {file}" in refused("study", "--results", file)
    assert clone.runs() == []


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[:-20], "speedups.csv breaks off in its last line"),
        (lambda text: text.replace("2.78", "fast"), 'speedups.csv, line 2: "fast" in column value where a number'),
        (lambda text: text.replace("gpu", "device", 1), "speedups.csv lacks the column gpu"),
    ],
)
def test_figures_from_a_damaged_table(clone, refused, damage, says):
    table = clone.root / "data/published/speedups.csv"
    table.write_text(damage(table.read_text()))
    assert says in (line := refused("figures"))
    assert str(table) in line


def test_figures_into_a_folder_that_cannot_be_written(clone, refused):
    (clone.root / "figures").write_text("in the way")
    assert f"cannot write {clone.root / 'figures'}" in refused("figures")


def test_figures_without_a_table(clone, refused):
    shutil.rmtree(clone.root / "data/published")
    assert "there is no table to draw from" in refused("figures")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--model", "llama-9"], "llama-9 is neither a model directory nor one of llama-3-8b, llama-3-70b"),
        (["--model", "llama-3-8b", "--weights", "trained"], "is a name, without weights: give a model directory"),
        (["--model", "llama-3-8b", "--schemes", "w3"], "unknown scheme 'w3'"),
        (["--model", "llama-3-8b", "--draft-sizes", "1,x"], "--draft-sizes is '1,x': give whole numbers above 0"),
        (["--model", "llama-3-8b", "--contexts", "0"], "--contexts is '0': give whole numbers above 0"),
        (["--model", "llama-3-8b", "--repeats", "0"], "0 repeats give no median"),
        (["--model", "llama-3-8b", "--device", "tpu"], "there is no device 'tpu' here"),
    ],
)
def test_verify_cost_of_what_is_not_there_is_refused(refused, tmp_path, options, match):
    assert match in refused("bench", "verify-cost", "--out", tmp_path / "out", *options)


def commands_with(option):
    """The command lines, with whatever they need, of all commands that have an option."""
    for words, arguments in leaves():
        if option in [argument.name for argument in arguments]:
            needs = [argument for argument in arguments if argument.required and argument.name != option]
            values = [(argument.get_choices() or ["nowhere"])[0] for argument in needs]
            command = [
                [argument.name, value] if is_option(argument) else [value]
                for argument, value in zip(needs, values, strict=True)
            ]
            yield [*words, *chain.from_iterable(command)]


OUT_COMMANDS = list(commands_with("--out"))


@pytest.mark.parametrize("command", OUT_COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_where_output_goes_is_checked_before_anything_is_done(refused, tmp_path, command):
    """Every name in the command line is wrong, too, and is not looked at before."""
    file, loop = tmp_path / "file", tmp_path / "loop"
    file.touch()
    loop.symlink_to(loop)
    for out, reason in (
        (file / "out/of/it", "Not a directory"),
        (loop / "out", "Too many levels of symbolic links"),
        (tmp_path / ("n" * 256), "File name too long"),
        (tmp_path / "new" / ("\u00e9" * 128) / "out", "File name too long"),
    ):
        line = refused(*command, "--out", out)
        assert "cannot write to " in line
        assert reason in line


def test_all_commands_that_write_are_among_them():
    assert len(OUT_COMMANDS) > 12
    assert ["calibrate", "--model", "nowhere"] in OUT_COMMANDS
    assert ["bench", "verify-cost", "--model", "nowhere"] in OUT_COMMANDS


@pytest.mark.parametrize("command", list(commands_with("--device")), ids=lambda command: " ".join(command[:2]))
def test_a_device_that_is_not_there(refused, tmp_path, small_models, monkeypatch, command):
    command = [str(small_models / "target") if word == "nowhere" else word for word in command]
    for name, value in (("--benchmark", "gsm8k"), ("--scheme", "w8a8")):
        if name in command:
            command[command.index(name) + 1] = value
    out = [] if command[0] == "generate" else ["--out", tmp_path / "out"]
    line = refused(*command, *out, "--device", "nonsense")
    if command[0] != "train-tiny" and command[1] != "tasks":
        assert "there is no device 'nonsense' here" in line


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["calibrate", "--model", "x", "--prompts-per-task", "0"], "prompts of each task is 0; it must be at least 1"),
        (["calibrate", "--model", "x", "--rows", "-1"], "the number of plans to show is -1; it must be at least 1"),
        (["bench", "drafting", "--repeats", "0"], "0 repeats give no median"),
        (["bench", "drafting", "--confirmed-rows", "0"], "a draft begins with is 0; it must be at least 1"),
        (["bench", "kernels", "--tune", "nan"], "--tune is nan: give seconds, from 0 to 86400"),
        (["bench", "profile", "--model", "x", "--context", "0"], "tokens in the cache is 0; it must be at least 1"),
        (["bench", "replay", "--model", "llama-3-8b", "--accepted-length", "nan"], "the accepted length is nan"),
        (["bench", "replay", "--model", "llama-3-8b", "--head-scheme", "nonsense"], "unknown scheme 'nonsense'"),
        (
            ["bench", "planted", "--model", "llama-3-8b", "--error-rate", "nan"],
            "the error rate is nan: give a probability",
        ),
        (["bench", "planted", "--model", "llama-3-8b", "--methods", "vanilla"], "it needs an intermediate model"),
        (["bench", "planted", "--model", "x", "--weights", "synthetic"], "x is neither a model directory nor one of"),
        (["bench", "trees", "--max-new-tokens", "0"], "the maximum of new tokens is 0"),
        (["bench", "verify-cost", "--model", "x", "--seed", str(2**70)], "does not fit into 64 bits"),
        (["bench", "tasks", "--model", "x", "--benchmark", "x", "--limit", "0"], "the limit is 0; it must be"),
        (["bench", "tasks", "--model", "x", "--benchmark", "gsm8k", "--methods", "eagle2,medusa"], "method 'medusa'"),
        (["plan", "--intermediate", "llama-3-8b", "--agreement", "nan"], "agreement is nan: it is a probability"),
        (["plan", "--traced-scheme", "fp16"], "--traced-scheme chooses of traces: give some"),
        (
            ["bench", "replay", "--model", "llama-3-8b", "--methods", "suffix"],
            "--methods and --traced-scheme choose of",
        ),
        (["plan", "--rows", "0"], "the number of plans to show is 0"),
        (["train-tiny", "--corpora", "x", "--budget", "nan"], "a budget of nan trains nothing"),
    ],
)
def test_numbers_and_names_that_no_command_can_use(refused, tmp_path, command, says):
    assert says in refused(*command, *([] if command[0] == "plan" else ["--out", tmp_path / "out"]))


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["bad"], "there is no command 'bad': choose one of study, plan,"),
        (["generat"], "there is no command 'generat': did you mean generate?"),
        (["bench", "cost"], "there is no command 'cost': choose one of acceptance, adaptive,"),
        ([], "give a command: study, plan,"),
        (["bench"], "give a command: acceptance, adaptive,"),
        (["generate", "--prompt", "x"], "--model is missing: specquant generate --help tells what it is"),
        (["quantize", "x", "--out", "y"], "--scheme is missing: specquant quantize --help tells"),
        (["generate", "--model", "x", "--prompt"], "--prompt has no value: give one, as in --prompt=VALUE"),
        (["generate", "--model", "x", "--prompt", "-x"], "--prompt has no value: give one, as in --prompt=VALUE"),
        (["generate", "--sed", "1"], "there is no option '--sed': did you mean --seed?"),
        (["generate", "--max-new", "4"], "there is no option '--max-new': did you mean --max-new-tokens?"),
        (["study", "--unknown"], "there is no option '--unknown': specquant study --help lists what there is"),
        (["bench", "trees", "more"], "'more' belongs to no option: specquant bench trees --help lists what there is"),
        (["bench", "trees", "--max-new-tokens", "2.5"], "--max-new-tokens is '2.5': give a whole number"),
        (["bench", "trees", "--max-new-tokens=--"], "--max-new-tokens is '--': give a whole number"),
        (["bench", "kernels", "--tune", "long"], "--tune is 'long': give a number"),
        (["bench", "kernels", "--row-invariant=maybe"], "--row-invariant is 'maybe': give yes or no"),
        (["bench", "throughput", "--dtype", "int8"], "--dtype is 'int8': choose one of float16, bfloat16, float32"),
        (["bench", "verify-cost", "--model", "x", "--draft-sizes", "1,"], "--draft-sizes is '1,': give whole numbers"),
        (["bench", "verify-cost", "--model", "x", "--contexts", "9" * 5000], "'...'9999999999': give whole numbers"),
        (["bench", "trees", "--max-new-tokens", "9" * 5000], "'...'9999999999': give a whole number"),
        (["bench", "settling", "--idle-ms", "1,x"], "--idle-ms is 'x': give a number"),
        (["bench", "settling", "--idle-ms", "1,-1"], "idle_ms is -1.0: give at least 0 and at most 60000"),
        (["bench", "settling", "--blocks", "2"], "there is no option '--blocks'"),
        (["bench", "drafting", "--warm-up-ms", "inf"], "warm_up_ms is inf: give at least 0"),
        (["bench", "kernels", "--device", "cpu", "--rest-over-run", "nan"], "rest_over_run is nan: give at least 0"),
        (["bench", "kernels", "--device", "cpu", "--delay-ms", "-1"], "delay_ms is -1.0: give at least 0"),
        (["bench", "replay", "--model", "llama-3-8b", "--tree", "24"], "tree is (24,): give nodes and iterations"),
        (["bench", "replay", "--model", "llama-3-8b", "--hierarchical-length", "nan"], "hierarchical length is nan"),
        (["bench", "verify-cost", "--model", "llama-3-8b", "--threads", "9999"], "threads is 9999: give 1 to 1024"),
        (["bench", "tasks", "--model", "x", "--benchmark", "gsm8k", "--top-k", "0"], "--top-k is 0; it must be at"),
        (["plan", "--intermediate", ""], "no pass of '' in w4a16-g128 behind 512 tokens was measured"),
        (["plan", "--traces", ""], "--traces is '': give a path, such as . for this folder"),
        (["bench", "replay", "--model", "llama-3-8b", "--planned", ""], "--planned is '': give a path"),
        (["record", "--card", "h200", "--out", ""], "--out is '': give a path"),
        (["quantize", "", "--scheme", "w8a8", "--out", "x"], "MODEL is '': give a path"),
        (["generate", "--model", "x", "--prompt", "x", "--intermediate", ""], "--intermediate is '': give a path"),
        (["train-tiny", "--corpora", "", "--out", "x"], "--corpora is '': give a path"),
    ],
)
def test_a_wrong_command_line(refused, command, says):
    """One sentence that names the option, the value and what to do."""
    assert says in refused(*command)


@pytest.mark.parametrize("words", [["study", "--only=--"], ["plan", "--scheme=--"]])
def test_two_dashes_are_a_value_like_others(refused, words):
    assert "--" in refused(*words)


def test_train_tiny_on_a_device_that_is_not_there(refused, tmp_path):
    for device in ("nonsense", "meta", "cpu:7", "cuda:99"):
        line = refused("train-tiny", "--corpora", tmp_path, "--out", tmp_path / "out", "--device", device)
        assert f"there is no device '{device}' here" in line


def test_paths_that_cannot_be_read(small_models, refused, tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in (loop, tmp_path / ("n" * 300), loop / "x"):
        refused(*generate(path))
        refused(*generate(small_models / "target", "--method", "auto", "--calibration", path))
        refused(*generate(small_models / "target", "--head-vocabulary", 9, "--head-text", path))
        refused(
            "quantize", small_models / "target", "--scheme", "w8a8", "--out", tmp_path / "o", "--calibration-text", path
        )
        refused("data", "fetch", "gsm8k", "--data-dir", path / "x")
        refused("plan", "--recorded", path)
        refused("plan", "--trees", path)
        refused("train-tiny", "--corpora", path, "--out", tmp_path / "out")
        benchmark = ("--benchmark", "gsm8k", "--data-dir", path, "--out", tmp_path / "out")
        refused("bench", "tasks", "--model", small_models / "target", *benchmark)
        refused("bench", "trees", "--models-dir", path, "--out", tmp_path / "out")


def test_other_files_than_tables_are_told_by_every_command_that_takes_one(refused, tmp_path):
    """Under any name: also a table of something else."""
    (tmp_path / "mine.md").write_text("# Mine\n\nwords\n")
    shutil.copyfile(files.project_root() / "data/recorded/cpu/heads.csv", tmp_path / "other.csv")
    measured = ("--model", "llama-3-8b", "--intermediate", "llama-3-8b", "--out", tmp_path / "out", "--device", "cpu")
    for option, command in (
        ("--trees", ["plan"]),
        ("--traces", ["plan"]),
        ("--trees", ["bench", "replay", *measured]),
        ("--traces", ["bench", "replay", *measured]),
        ("--trees", ["bench", "planted", *measured]),
    ):
        said = refused(*command, option, tmp_path / "mine.md")
        assert f"mine.md is no table of {option[2:]}, for its first line has none of its columns: name a" in said
        assert "other.csv lacks the columns model, " in refused(*command, option, tmp_path / "other.csv")
