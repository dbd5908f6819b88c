"""Quantized copies are made once, and anew when what decides about them changed."""

import hashlib
import json
import shutil

import pytest
import torch

from specquant.errors import SpecquantError
from specquant.models import targets
from specquant.models.loading import load_model
from specquant.models.quantize import FORMAT
from specquant.models.targets import quantized_target
from specquant.quant import SCHEMES, get_scheme, quantize_linear


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
        quantized_target(small_models / "target", "w4a16-g128", tmp_path / "kept", calibration=text)
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


def test_what_cannot_be_quantized_leaves_nothing(small_models, tmp_path):
    with pytest.raises(SpecquantError, match="is incomplete"):
        quantized_target(small_models / "eagle-target", "w8a8", tmp_path / "kept", "round-to-nearest")
    with pytest.raises(SpecquantError, match="unknown scheme 'w3'"):
        quantized_target(small_models / "target", "w3", tmp_path / "kept")
    assert not list(tmp_path.iterdir())


def test_another_format_gives_another_copy(small_models, tmp_path, quantized, monkeypatch):
    copies = []
    for number in (FORMAT, FORMAT + 1):
        monkeypatch.setattr(targets, "FORMAT", number)
        copies.append(quantized_target(small_models / "target", "w8a8", tmp_path / "kept", "round-to-nearest"))
    assert len(set(copies)) == len(quantized) == 2


def test_codes_of_a_format_stay_as_they_are():
    """Where this fails and the codes were meant to change: raise `FORMAT`, for kept copies hold the old ones."""
    weight = torch.arange(256 * 384, dtype=torch.int64).mul(7919).remainder(1009).sub(504).view(256, 384) / 8192
    digest = hashlib.sha256()
    for name in SCHEMES:
        packed = quantize_linear(get_scheme(name), weight.clone())
        for key, tensor in sorted(packed.state_dict().items()):
            digest.update(f"{name} {key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    assert (FORMAT, digest.hexdigest()[:16]) == (1, "c9f6af8d2519a0b6")
