import pytest
import torch

from specquant.kernels.compaction import keep_path_reference, keep_path_triton


def check(layers, kv_heads, capacity, head_dim, length, path, device):
    """The whole cache, to the bit."""
    cache = torch.randn(2, layers, kv_heads, capacity, head_dim, generator=torch.Generator().manual_seed(0))
    expected = cache.half().to(device)
    path = torch.tensor(path, device=device)
    for start in (length, torch.tensor(length, device=device)):
        kept = cache.half().to(device)
        keep_path_triton(*kept, start, path)
        keep_path_reference(*(again := expected.clone()), length, path)
        assert torch.equal(kept, again)


@pytest.mark.parametrize("path", [[0], [3], [0, 1, 2], [0, 2, 5, 6], [1, 2, 3, 4, 5, 6, 7], [0, 4, -1, -1], [-1]])
def test_the_path_moves_together(path, device):
    check(2, 3, 20, 64, 7, path, device)


@pytest.mark.gpu
def test_llama_70b():
    check(80, 8, 1100, 128, 1024, [0, 2, 11, 30, 44, 57], "cuda")
