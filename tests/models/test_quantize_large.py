"""Quantizing a model of many layers: one of them in memory at a time, and taken up again after an interruption."""

import os
import resource
import signal
import subprocess
import sys
import time
import weakref

import pytest
import torch
from transformers import LlamaConfig

from specquant.errors import SpecquantError
from specquant.models import quantize
from specquant.models.config import load_config
from specquant.models.llama import Llama
from specquant.models.loading import load_model
from specquant.models.memory import NotEnoughMemory
from specquant.models.quantize import quantization_bytes, quantize_model
from specquant.models.synthetic import synthetic_config
from specquant.models.weights import HuggingFaceWeights
from specquant.quant import get_scheme
from specquant.training.tokenizer import train_tokenizer
from tests.family import TEXT, write_random

LAYERS = 5
SCHEMES = ("w8a8", "w4a16-g128", "w4a8-qoq")  # smoothed; by GPTQ; rotated, smoothed and by GPTQ


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Five layers in several shards, and a calibration text beside them."""
    path = tmp_path_factory.mktemp("source")
    tokenizer = train_tokenizer([TEXT], 270, 64)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        vocab_size=270,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
    )
    write_random(config, path, max_shard_size="300KB")
    tokenizer.save_pretrained(path)
    (path / "text.txt").write_text(TEXT)
    assert len(list(path.glob("*.safetensors"))) > 2
    return path


def quantized(source, out, scheme="w4a8-qoq", **options):
    quantize_model(source, scheme, out, source / "text.txt", progress=False, **options)
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("method", ["calibrated", "round-to-nearest"])
def test_one_layer_is_in_memory_at_a_time(source, tmp_path, monkeypatch, scheme, method):
    """Counted in the matrices that live, as they were read and as they become."""
    layers, living, counts = [], {}, []
    read, pack = HuggingFaceWeights.linear, quantize.quantize_linear

    def watched(linear):
        living[weakref.ref(linear)] = layers[-1]
        counts.append(len({layer for reference, layer in living.items() if reference() is not None}))
        return linear

    def reading(self, name, empty, device):
        layers.append(int(name.split(".")[1]))
        return watched(read(self, name, empty, device))

    monkeypatch.setattr(HuggingFaceWeights, "linear", reading)
    monkeypatch.setattr(quantize, "quantize_linear", lambda *arguments: watched(pack(*arguments)))
    quantized(source, tmp_path / "out", scheme, method=method)
    assert layers == [layer for layer in range(LAYERS) for _ in range(4)]
    assert counts == [1] * 2 * 4 * LAYERS


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("method", ["calibrated", "round-to-nearest"])
def test_after_an_interruption_finished_layers_are_not_done_again(source, tmp_path, monkeypatch, scheme, method):
    expected = quantized(source, tmp_path / "whole", scheme, method=method)
    original, done = quantize.quantize_layer, []

    def interrupted(model, layer, *rest):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(layer.index)
        return original(model, layer, *rest)

    monkeypatch.setattr(quantize, "quantize_layer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantized(source, tmp_path / "out", scheme, method=method)
    unfinished = tmp_path / ".out.unfinished"
    stamps = {path.name: path.stat().st_mtime_ns for path in unfinished.glob("*.safetensors")}
    assert len(stamps) == 3 + 1
    assert not (tmp_path / "out").exists()

    done.clear()
    monkeypatch.setattr(quantize, "quantize_layer", lambda *rest: done.append(rest[1].index) or original(*rest))
    assert quantized(source, tmp_path / "out", scheme, method=method) == expected
    assert done == [3, 4]
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in stamps} == stamps
    assert not unfinished.exists()
    assert load_model(tmp_path / "out").scheme.name == scheme


def test_after_a_kill_the_command_goes_on(source, tmp_path):
    expected = quantized(source, tmp_path / "whole")
    out, unfinished, go_on = tmp_path / "out", tmp_path / ".out.unfinished", tmp_path / "go_on"
    program = (
        "import pathlib, sys, time\n"
        "from specquant.models import quantize\n"
        "from specquant.cli import main\n"
        "original = quantize.quantize_layer\n"
        "def wait(model, layer, *rest):\n"
        f"    while layer.index > 1 and not pathlib.Path({str(go_on)!r}).exists(): time.sleep(0.05)\n"  # to be killed
        "    return original(model, layer, *rest)\n"
        "quantize.quantize_layer = wait\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    options = ["--scheme", "w4a8-qoq", "--calibration-text", str(source / "text.txt"), "--device", "cpu"]
    options += ["--out", str(out)]
    command = [sys.executable, "-c", program, "quantize", str(source), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    until = time.monotonic() + 120
    while not (unfinished / "model-00002-of-00006.safetensors").exists() and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    go_on.touch()
    assert not out.exists()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"{LAYERS}/{LAYERS}" in again.stderr  # the progress bar's end
    assert {path.name: path.read_bytes() for path in out.iterdir()} == expected


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scheme": "w8a8"}, r"with another scheme \(w4a8-qoq, not w8a8\)"),
        ({"method": "round-to-nearest"}, "with another method"),
    ],
)
def test_what_another_command_left_is_not_gone_on_from(source, tmp_path, monkeypatch, change, says):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(quantize, "quantize_layer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantized(source, tmp_path / "out")
    with pytest.raises(SpecquantError, match=rf"\.out\.unfinished is what an interrupted command left, {says}"):
        quantized(source, tmp_path / "out", **change)


def test_on_a_full_disk_what_is_written_stays_for_the_next_call(source, tmp_path):
    """The kernel refuses, as it does where a disk is full."""
    expected = quantized(source, tmp_path / "whole")
    sizes = {name: len(content) for name, content in expected.items()}
    layer = sizes["model-00001-of-00006.safetensors"]
    assert sizes["model-00006-of-00006.safetensors"] > layer  # of embeddings: it is the first that is written
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (layer - 1, limits[1]))
        with pytest.raises(SpecquantError, match=r"cannot write .*too large.*free space or choose another directory"):
            quantized(source, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    assert quantized(source, tmp_path / "out") == expected


def test_a_device_that_is_too_small_for_a_layer_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.setattr(quantize, "free_bytes", lambda _: 1_000_000)
    with pytest.raises(NotEnoughMemory, match=r"needs \d.* for one layer at a time, and cpu has 0\.001 GB free"):
        quantized(source, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_number_of_layers(source):
    def needed(config, scheme):
        with torch.device("meta"):
            return quantization_bytes(Llama(config, "fp16", 64), get_scheme(scheme), calibrated=True)

    config = load_config(source)
    deeper = load_config(source)
    deeper.num_hidden_layers = 50
    assert needed(config, "w4a8-qoq") == needed(deeper, "w4a8-qoq")
    # 70B on a card of 80 GB, 8B on one of 24 GB.
    assert 40e9 < needed(synthetic_config("llama-3-70b"), "w4a16-g128") < 75e9
    assert 10e9 < needed(synthetic_config("llama-3-8b"), "w4a16-g128") < 22e9


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_gpu_quantizes_as_a_cpu_does(source, tmp_path, scheme):
    """Sums in another order decide some codes."""
    for device in ("cpu", "cuda"):
        quantized(source, tmp_path / device, scheme, device=device)
    cpu, cuda = (load_model(tmp_path / device) for device in ("cpu", "cuda"))
    for first, second in zip(cpu.layers, cuda.layers, strict=True):
        same = first.down_proj.integer_codes() == second.down_proj.integer_codes()
        assert same.float().mean() > 0.99
