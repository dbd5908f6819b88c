import pytest
import torch

from specquant.kernels.rotary import rotate_and_cache_reference, rotate_and_cache_triton


def check(rows, heads, kv_heads, head_dim, first_slot, device, dtype=torch.float16, slots=None):
    """To the bit: queries, and the whole cache, whose other slots stay as they were."""
    generator = torch.Generator().manual_seed(0)
    slots = slots or first_slot + rows + 2
    qkv = torch.randn(rows, (heads + 2 * kv_heads) * head_dim, generator=generator).to(dtype).to(device)
    angles = torch.rand(50, head_dim // 2, generator=generator).mul(6).repeat(1, 2)
    positions = torch.randint(50, (rows,), generator=generator).to(device)
    cache = torch.randn(2, kv_heads, slots, head_dim, generator=generator).to(dtype).to(device)
    tables = angles.cos().to(dtype).to(device), angles.sin().to(dtype).to(device)
    expected_cache = cache.clone()
    expected = rotate_and_cache_reference(qkv, *tables, positions, *expected_cache, first_slot)
    for slot in (first_slot, torch.tensor([first_slot], device=device)):
        written = cache.clone()
        query = rotate_and_cache_triton(qkv, *tables, positions, *written, slot)
        if dtype == torch.float32:  # where a GPU may fuse a product and the sum
            torch.testing.assert_close(query, expected)
            torch.testing.assert_close(written, expected_cache)
        else:
            assert torch.equal(query, expected)
            assert torch.equal(written, expected_cache)


@pytest.mark.bits
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("rows", "heads", "kv_heads", "head_dim", "first_slot"), [(1, 8, 1, 128, 0), (3, 6, 2, 64, 5), (5, 3, 3, 64, 1)]
)
def test_rotation_and_write(rows, heads, kv_heads, head_dim, first_slot, dtype, device):
    check(rows, heads, kv_heads, head_dim, first_slot, device, dtype)


def test_nothing_is_written_behind_the_cache(device):
    memory = torch.zeros(2, 3, 4, 64, dtype=torch.float16, device=device)
    keys, values = memory[:, :2]  # two heads; what follows is not theirs
    qkv = torch.ones(3, 6 * 64, dtype=torch.float16, device=device)
    ones = torch.ones(10, 64, dtype=torch.float16, device=device)
    rotate_and_cache_triton(qkv, ones, torch.zeros_like(ones), torch.arange(3, device=device), keys, values, 2)
    assert memory[:, :2, 2:].eq(1).all()
    assert not memory[:, :2, :2].any()
    assert not memory[:, 2].any()


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 13, 64])
def test_llama_70b(rows):
    check(rows, 64, 8, 128, 4096, "cuda")
