"""The kernel whose time is the bandwidth that others are compared with must really read everything."""

import pytest
import torch

from specquant.kernels import stream
from specquant.kernels.stream import BLOCK, read_triton


@pytest.mark.parametrize("blocks", [1, 7, 40])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_the_greatest_number_is_found_wherever_it_stands(blocks, place, device, monkeypatch):
    if device == "cpu":
        monkeypatch.setattr(stream, "multiprocessors", lambda _: 2)  # 16 programs: some of them read several blocks
    x = torch.arange(blocks * BLOCK, dtype=torch.int32, device=device) % 1000 - 500
    index = {"first": 0, "middle": len(x) // 2 + 1, "last": len(x) - 1}[place]
    x[index] = 2_000_000_000
    greatest = read_triton(x)
    assert greatest.max() == 2_000_000_000
    assert (greatest == 2_000_000_000).sum() == 1  # by one program, so that no byte is read twice


def test_programs_without_a_block_say_nothing(device):
    assert not read_triton(torch.full((BLOCK,), -5, dtype=torch.int32, device=device)).any()
