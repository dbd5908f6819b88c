"""A family of models: checked before it is loaded, studied in the schemes that its target can have and that fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from specquant.benchmarks.prompts import read_prompts
from specquant.decoding.drafters import PAPER_METHODS
from specquant.errors import SpecquantError
from specquant.files import project_root
from specquant.measure import family as module
from specquant.measure.family import Family
from specquant.measure.passes import prepare_passes
from specquant.measure.throughput import decode_prompts
from specquant.models import loading
from specquant.models.cache import KVCache
from specquant.models.config import load_config
from specquant.models.llama import Llama
from specquant.models.loading import weight_bytes
from specquant.models.quantize import quantize_model
from specquant.quant import scheme_names

TINY = project_root() / "data/tiny"


@pytest.fixture
def paths(small_models):
    return {
        name: str(small_models / name.replace("_", "-"))
        for name in ("target", "eagle_target", "intermediate", "eagle_intermediate")
    }


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    def load(*_, **__):
        raise AssertionError("loaded before the family was checked")

    for name in ("load_model", "load_eagle_head"):
        monkeypatch.setattr(f"specquant.decoding.models.{name}", load)


@pytest.mark.parametrize("name", ["target", "eagle_target", "intermediate", "eagle_intermediate"])
def test_each_missing_model_is_named(paths, tmp_path, nothing_is_loaded, name):
    with pytest.raises(SpecquantError, match=f"{tmp_path}/nowhere is not a model directory"):
        Family(**paths | {name: str(tmp_path / "nowhere")})


def test_models_that_do_not_fit_together_are_refused(paths, nothing_is_loaded):
    swapped = {"eagle_target": paths["eagle_intermediate"], "eagle_intermediate": paths["eagle_target"]}
    with pytest.raises(SpecquantError, match="has hidden_size 128, and its model 256"):
        Family(**paths | swapped)
    with pytest.raises(SpecquantError, match="unknown dtype 'float17'"):
        Family(**paths, dtype="float17")
    if not torch.cuda.is_available():
        with pytest.raises(SpecquantError, match="there is no device 'cuda' here"):
            Family(**paths, device="cuda")


def test_only_the_models_that_ship_are_those_of_the_findings(paths):
    assert Family("data/tiny/target").shipped
    assert Family(str(TINY / "target")).shipped
    assert not Family(paths["target"]).shipped


def test_schemes_begin_with_what_the_others_are_compared_with(paths):
    family = Family(paths["target"])
    assert family.schemes("w8a8,w4a8-qoq") == ["fp16", "w8a8", "w4a8-qoq"]
    assert len(family.schemes("all")) == 8


def test_methods_are_those_whose_models_are_named(paths, capsys):
    assert Family(**paths).methods() == list(PAPER_METHODS)
    assert capsys.readouterr().out == ""
    assert Family(**paths | {"intermediate": ""}).methods() == ["autoregressive", "eagle2"]
    assert capsys.readouterr().out.splitlines() == [
        "vanilla is left out: no intermediate is named",
        "hierarchical is left out: no intermediate is named",
    ]
    assert Family(paths["target"]).methods(["autoregressive", "eagle2"]) == ["autoregressive"]
    assert capsys.readouterr().out == "eagle2 is left out: no eagle_target is named\n"


def test_a_quantized_target_has_its_own_scheme_alone(paths, tmp_path):
    quantize_model(paths["target"], "w8a8", tmp_path / "w8a8", method="round-to-nearest", progress=False)
    family = Family(str(tmp_path / "w8a8"), keep_in=str(tmp_path / "kept"))
    assert family.schemes("all") == family.schemes("w4a16-g128,w8a8") == ["w8a8"]
    assert family.models("w8a8").target.scheme.name == "w8a8"
    assert not (tmp_path / "kept").exists()
    with pytest.raises(SpecquantError, match="is stored in w8a8, not in fp16,w4a8-qqq: ask for that, or all"):
        family.schemes("fp16,w4a8-qqq")
    with pytest.raises(SpecquantError, match="is stored in w8a8, not in w4a16-g128"):
        family.models("w4a16-g128")


def test_schemes_that_do_not_fit_are_left_out_with_a_sentence(paths, monkeypatch, capsys):
    config = load_config(paths["target"])
    with torch.device("meta"):
        model = Llama(config, "w8a8")
    needed = weight_bytes(model, torch.float16, "cuda") + 128 * KVCache.bytes_per_position(config, torch.float16)
    monkeypatch.setattr(module, "choose_device", lambda name: name)
    monkeypatch.setattr(loading, "free_bytes", lambda _: needed)
    family = Family(paths["target"], dtype="float16", device="cuda")
    assert family.schemes("w8a8,w4a16-g128") == ["w8a8", "w4a16-g128"]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"fp16 is left out: {paths['target']} needs ")
    monkeypatch.setattr(loading, "free_bytes", lambda _: 0)
    with pytest.raises(SpecquantError, match="does not fit cuda in any scheme of all"):
        family.schemes("all")


def test_target_and_intermediate_run_in_the_context_of_the_shorter(paths, tmp_path, monkeypatch):
    longer = shutil.copytree(paths["target"], tmp_path / "longer")
    config = json.loads((longer / "config.json").read_text()) | {"max_position_embeddings": 256}
    (longer / "config.json").write_text(json.dumps(config))
    assert Family(str(longer)).models("fp16").target.context_length == 256
    assert Family(**paths | {"target": str(longer)}).models("fp16").target.context_length == 128
    monkeypatch.setattr(module, "MOST_POSITIONS", 100)
    assert Family(str(longer)).models("fp16").target.context_length == 100


@pytest.mark.gpu
def test_a_family_is_studied_on_a_gpu(tmp_path):
    """Quantized, timed and decoded there, in fp16, as the notebooks do it."""
    paths = [str(TINY / name) for name in ("target", "eagle-target", "intermediate", "eagle-intermediate")]
    family = Family(*paths, keep_in=str(tmp_path), dtype="float16", device="cuda")
    prompts = read_prompts("data/prompts/prompts.jsonl", 1)[:2]
    for scheme in family.schemes("w8a8,w4a16-g128,w4a8-qoq"):
        passes = prepare_passes(family.models(scheme).target, [1, 8], context_length=64)
        assert all(run().isfinite().all() for run in passes.values())
        rows = decode_prompts(
            family.models(scheme), family.tokenizer, prompts, PAPER_METHODS, "tiny", max_new_tokens=24
        )
        lengths = rows.groupby("method").accepted_length.mean()
        assert (lengths.drop("autoregressive") > 2).all()


@pytest.fixture
def narrow(paths, tmp_path):
    """A target whose widths 4-bit matrices cannot have."""
    directory = shutil.copytree(paths["target"], tmp_path / "narrow")
    config = json.loads((directory / "config.json").read_text()) | {"intermediate_size": 196}
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


def test_all_schemes_are_those_that_the_target_can_have(narrow, capsys):
    assert Family(narrow).schemes("all") == ["fp16", "w8a8"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" is left out: ")[0] for line in lines] == [
        name for name in scheme_names("all") if name not in ("fp16", "w8a8")
    ]
    assert all("392" in line for line in lines)


def test_a_named_scheme_that_the_target_cannot_have_is_refused(narrow, paths, tmp_path):
    with pytest.raises(SpecquantError, match="392"):
        Family(narrow).schemes("w8a8,w4a16-g128")
    config = json.loads((Path(paths["target"]) / "config.json").read_text())
    fields = {"hidden_size": 2752, "num_attention_heads": 43}  # 43 * 2^6: a multiple of 16, but without a rotation
    shutil.copytree(paths["target"], tmp_path / "unrotated")
    (tmp_path / "unrotated/config.json").write_text(json.dumps(config | fields))
    family = Family(str(tmp_path / "unrotated"))
    assert family.schemes("all") == ["fp16", "w8a8", "w4a16-g128"]
    with pytest.raises(SpecquantError, match="a hidden size of 2752 has no Hadamard"):
        family.schemes("w4a8-qqq")
