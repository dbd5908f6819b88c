"""Quantized copies are made once, and anew when what decides about them changed."""

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file

from specquant.errors import SpecquantError
from specquant.models import targets
from specquant.models.loading import load_model
from specquant.models.targets import quantized_target


@pytest.fixture
def quantized(monkeypatch):
    """The schemes that were quantized to, one for each time."""
    done, quantize_model = [], targets.quantize_model

    def quantize(model_dir, scheme, out_dir, *rest, **options):
        done.append(scheme)
        quantize_model(model_dir, scheme, out_dir, *rest, **options)

    monkeypatch.setattr(targets, "quantize_model", quantize)
    return done


def test_fp16_is_the_target_itself(small_models, tmp_path):
    assert quantized_target(small_models / "target", "fp16", tmp_path) == small_models / "target"
    assert not list(tmp_path.iterdir())


def test_of_several_who_want_a_copy_at_once_one_makes_it(small_models, tmp_path, quantized, monkeypatch):
    quantize_model, several = targets.quantize_model, threading.Barrier(3)

    def slowly(*arguments, **options):
        time.sleep(0.5)
        quantize_model(*arguments, **options)

    def want():
        several.wait()
        return quantized_target(small_models / "target", "w8a8", tmp_path / "kept", "round-to-nearest")

    monkeypatch.setattr(targets, "quantize_model", slowly)
    with ThreadPoolExecutor(3) as pool:
        (copy,) = {each.result() for each in [pool.submit(want) for _ in range(3)]}
    assert quantized == ["w8a8"]
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [copy.name]


def test_a_copy_is_made_once_for_each_scheme_and_method(small_models, tmp_path, quantized):
    def path(scheme, method="round-to-nearest"):
        return quantized_target(small_models / "target", scheme, tmp_path, method)

    copy = path("w8a8")
    assert copy.parent == tmp_path
    assert load_model(copy).scheme.name == "w8a8"
    assert path("w8a8") == copy
    assert path("w4a16-g128") != copy
    assert path("w8a8", "calibrated") != copy
    assert quantized == ["w8a8", "w4a16-g128", "w8a8"]


def test_another_text_gives_another_copy(small_models, tmp_path, quantized):
    (tmp_path / "text.txt").write_text("1 plus 2 makes 3. " * 40)
    copies = [
        quantized_target(small_models / "target", "w4a16-g128", tmp_path / "kept", calibration_text=text)
        for text in ("data/tiny/calibration.txt", tmp_path / "text.txt")
    ]
    assert len(set(copies)) == len(quantized) == 2
    records = [json.loads((copy / "config.json").read_text())["quantization_config"] for copy in copies]
    assert [record["calibration"]["text"] for record in records] == ["calibration.txt", "text.txt"]


def test_another_model_gets_another_copy(small_models, tmp_path, quantized):
    model = shutil.copytree(small_models / "target", tmp_path / "target")
    copies = [quantized_target(model, "w8a8", tmp_path / "kept", "round-to-nearest")]
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    copies.append(quantized_target(model, "w8a8", tmp_path / "kept", "round-to-nearest"))
    assert len(set(copies)) == len(quantized) == 2


@pytest.mark.parametrize("file", ["tokenizer_config.json", "pytorch_model.bin", "../lender/model.safetensors"])
def test_whatever_is_in_a_copy_or_decides_about_it_tells_models_apart(small_models, tmp_path, quantized, file):
    """Also what is pickled, the tokenizer, and the embedding and LM head of another model."""
    model = shutil.copytree(small_models / "target", tmp_path / "target")
    if file.endswith(".bin"):
        torch.save(load_file(model / "model.safetensors"), model / file)
        (model / "model.safetensors").unlink()
    elif "lender" in file:
        shutil.copytree(model, tmp_path / "lender")
        fields = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(fields | {"ends_of": "../lender"}))
        borrowed = {name: t for name, t in load_file(model / "model.safetensors").items() if "embed" not in name}
        save_file(borrowed, model / "model.safetensors", {"format": "pt"})
    copies = [quantized_target(model, "w8a8", tmp_path / "kept", "round-to-nearest") for _ in range(2)]
    if file.endswith(".json"):
        fields = json.loads((model / file).read_text())
        (model / file).write_text(json.dumps(fields | {"chat_template": "{{ messages }}"}))
    elif file.endswith(".bin"):
        weights = torch.load(model / file, weights_only=True)
        torch.save({name: 2 * tensor for name, tensor in weights.items()}, model / file)
    else:
        weights = load_file(model / file)
        save_file({name: 2 * tensor for name, tensor in weights.items()}, model / file, {"format": "pt"})
    copies.append(quantized_target(model, "w8a8", tmp_path / "kept", "round-to-nearest"))
    assert copies[0] == copies[1] != copies[2]
    assert len(quantized) == 2


def test_a_later_format_gets_another_copy(small_models, tmp_path, quantized, monkeypatch):
    """And nothing else of the code does: a copy of 70B takes hours to make."""
    for version in (1, 1, 2):
        monkeypatch.setattr(targets, "FORMAT_VERSION", version)
        quantized_target(small_models / "target", "w8a8", tmp_path, "round-to-nearest")
    assert len(quantized) == 2


def test_what_cannot_be_quantized_leaves_nothing(small_models, tmp_path):
    with pytest.raises(SpecquantError, match="is incomplete"):
        quantized_target(small_models / "eagle-target", "w8a8", tmp_path / "kept", "round-to-nearest")
    with pytest.raises(SpecquantError, match="unknown scheme 'w3'"):
        quantized_target(small_models / "target", "w3", tmp_path / "kept")
    assert not list(tmp_path.iterdir())
