"""What does not fit into the memory is refused before it is made."""

import pytest
import torch
from transformers import LlamaConfig

from specquant.cli import main
from specquant.errors import SpecquantError
from specquant.models import cache, loading
from specquant.models.llama import Llama
from specquant.models.loading import load_model, require_memory, weight_bytes
from specquant.models.memory import free_bytes

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
