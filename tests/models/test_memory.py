"""What does not fit into the memory is refused before it is made."""

import json
import resource
import shutil
import subprocess
import sys

import psutil
import pytest
import torch
from transformers import LlamaConfig

from specquant.cli import main
from specquant.errors import SpecquantError
from specquant.models import cache, llama, loading
from specquant.models.llama import Llama, LlamaLayer, RotaryEmbedding
from specquant.models.loading import load_model, require_memory, weight_bytes
from specquant.models.memory import NotEnoughMemory, free_bytes

LLAMA_3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}


@pytest.fixture
def free(monkeypatch):
    """Sets how many bytes are free."""

    def free(count):
        for module in (cache, loading):
            monkeypatch.setattr(module, "free_bytes", lambda device: count)

    return free


def test_a_cpu_says_what_is_free():
    assert 1e7 < free_bytes("cpu") < 1e14
    assert free_bytes("meta") is None


def test_the_numbers_of_a_large_model_and_a_long_context(free):
    with torch.device("meta"):
        model = Llama(LlamaConfig(**LLAMA_3_8B), "fp16", 131072)
    free(20e9)
    says = (
        r"8B needs 16.1 GB for its weights in fp16 and 17.2 GB for a context of 131072 positions in float16, and cuda "
        r"has 20 GB free: give a context length \(--context-length\) of at most 29\d\d\d"
    )
    with pytest.raises(SpecquantError, match=says):
        require_memory(model, torch.float16, "cuda", "8B")
    free(16e9)
    with pytest.raises(SpecquantError, match=r"16 GB free: choose a scheme of fewer bits, a smaller dtype or another"):
        require_memory(model, torch.float16, "cuda", "8B")
    free(34e9)
    require_memory(model, torch.float16, "cuda", "8B")
    with pytest.raises(SpecquantError, match=r"34.4 GB for a context of 131072 positions in float32"):
        require_memory(model, torch.float32, "cuda", "8B")
    free(None)
    require_memory(model, torch.float32, "cuda", "8B")


@pytest.mark.parametrize("scheme", ["fp16", "w4a16-g128"])
def test_the_weights_bytes_are_those_that_a_loaded_model_takes(small_models, scheme):
    model = load_model(small_models / "target", scheme, torch.float64)
    model.prefill(torch.arange(5), model.new_cache(8))  # makes the unpacked copies
    tensors = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    copies = sum(part._operand.nbytes for part in model.modules() if getattr(part, "_operand", None) is not None)
    norms = sum(norm.weight.nbytes for name, norm in model.named_modules() if name.endswith("norm"))
    with torch.device("meta"):
        skeleton = Llama(model.config, scheme)
    assert weight_bytes(skeleton, torch.float64, "cpu") == sum(tensors.values()) + copies - norms
    assert weight_bytes(skeleton, torch.float64, "cuda") == sum(tensors.values()) - norms


@pytest.mark.bits
def test_a_context_length_bounds_cache_and_tables(small_models):
    model = load_model(small_models / "target", context_length=32)
    assert model.context_length == 32
    assert model.rotary.cosines.shape == (32, 64)
    whole = load_model(small_models / "target")
    tokens = torch.arange(32)
    assert torch.equal(model.prefill(tokens, model.new_cache(32)), whole.prefill(tokens, whole.new_cache(32)))


def test_a_cache_that_does_not_fit_is_refused(free):
    config = LlamaConfig(**LLAMA_3_8B | {"num_hidden_layers": 1})
    free(1e6)
    says = r"a cache of 4096 positions needs 0.0336 GB, and cpu has 0.001 GB free: give a smaller context length"
    with pytest.raises(SpecquantError, match=says):
        cache.KVCache(config, 4096, torch.float32, "cpu")


def test_generate_with_a_context_length(small_models, free, capsys):
    command = ["generate", "--model", str(small_models / "target"), "--prompt", "1 plus 1 makes", "--device", "cpu"]
    assert main([*command, "--context-length", "40", "--method", "hierarchical", "--json"]) == 0
    assert '"stopped_by": "context"' in capsys.readouterr().out
    free(100_000)
    assert main(command) == 2
    line = capsys.readouterr().err
    assert "for a context of 128 positions in float32, and cpu has 0.0001 GB free" in line
    assert line.count("\n") == 1
    assert main([*command, "--context-length", "129"]) == 2
    assert "made for 128 positions, and a context length of 129 was asked for" in capsys.readouterr().err
    assert main([*command[:-1], "toaster"]) == 2
    assert "there is no device 'toaster' here" in capsys.readouterr().err


def damaged_copy(small_models, tmp_path, **fields):
    directory = shutil.copytree(small_models / "target", tmp_path / "model", dirs_exist_ok=True)
    config = json.loads((small_models / "target/config.json").read_text()) | fields
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_a_context_of_millions_is_refused_before_its_tables_are_made(small_models, tmp_path, monkeypatch):
    directory = damaged_copy(small_models, tmp_path, max_position_embeddings=2**31 - 1)
    monkeypatch.setattr(RotaryEmbedding, "make_tables", lambda self: pytest.fail("tables were made"))
    with pytest.raises(NotEnoughMemory, match=r"for a context of 2147483647 positions .* \(--context-length\) of at"):
        load_model(directory)
    monkeypatch.undo()
    assert load_model(directory, context_length=32).rotary.cosines.shape == (32, 64)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_hidden_layers": 2**30},
        {"head_dim": 2**14},
        {"hidden_size": 2**30},
        {"intermediate_size": 2**31 - 1},
        {"vocab_size": 2**31 - 1},
        {"num_attention_heads": 2**20, "hidden_size": 2**20},
    ],
)
def test_sizes_far_beyond_the_files_are_refused_before_a_layer_is_made(small_models, tmp_path, monkeypatch, fields):
    directory = damaged_copy(small_models, tmp_path, **fields)
    monkeypatch.setattr(LlamaLayer, "__init__", lambda *_: pytest.fail("a layer was made"))
    with pytest.raises(
        SpecquantError, match=r"is incomplete: its 20 tensors hold 594688 numbers, and config\.json asks for"
    ):
        load_model(directory)


def test_rotary_tables_are_the_same_in_any_pieces(monkeypatch):
    config = LlamaConfig(**LLAMA_3_8B)
    whole = RotaryEmbedding(config, 100)
    monkeypatch.setattr(llama, "TABLE_CHUNK", 32)
    pieces = RotaryEmbedding(config, 100)
    assert torch.equal(whole.cosines, pieces.cosines)
    assert torch.equal(whole.sines, pieces.sines)
    with torch.device("meta"):
        skeleton = RotaryEmbedding(config, 100)
    assert skeleton.cosines.is_meta
    skeleton.to(torch.float16).make_tables()
    assert torch.equal(skeleton.sines, whole.sines.half())


LIMITED = """
import resource, sys
from specquant.cli import main
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not limit addresses")
def test_a_limit_on_addresses_is_a_memory_that_is_full(small_models):
    """As `ulimit -v` sets it."""
    command = ["generate", "--model", str(small_models / "target"), "--prompt", "1 plus 1", "--device", "cpu"]
    done = subprocess.run([sys.executable, "-c", LIMITED, "300000000", *command], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "specquant: there is not enough memory: give it more, or choose a smaller model\n"


def test_free_memory_is_what_a_limit_leaves(monkeypatch):
    used = psutil.Process().memory_info().vms
    monkeypatch.setattr(resource, "getrlimit", lambda _: (used + 5_000_000, resource.RLIM_INFINITY))
    assert free_bytes("cpu") <= 5_000_000
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1, 1))
    assert free_bytes("cpu") == 0
