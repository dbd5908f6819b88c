"""Keeping the accepted path of a draft in the key-value cache, all layers in one launch."""

from __future__ import annotations

import torch

from specquant.kernels.launch import jit, on_gpu, tl, triton


def keep_path(keys: torch.Tensor, values: torch.Tensor, length: int | torch.Tensor, path: torch.Tensor) -> None:
    """Move the slots length + path to length, length + 1, ..., in place.

    keys, values: [layers, kv_heads, capacity, head_dim], contiguous. path: int64 [n], ascending; entries of -1 at its
    end name nothing. length may be a device tensor of one integer.
    """
    (keep_path_triton if on_gpu(keys) else keep_path_reference)(keys, values, length, path)


def keep_path_reference(
    keys: torch.Tensor, values: torch.Tensor, length: int | torch.Tensor, path: torch.Tensor
) -> None:
    """What `keep_path` does, by torch."""
    length = int(length)
    source = length + path[path >= 0]
    target = slice(length, length + len(source))
    keys[:, :, target] = keys[:, :, source]
    values[:, :, target] = values[:, :, source]


def keep_path_triton(keys: torch.Tensor, values: torch.Tensor, length: int | torch.Tensor, path: torch.Tensor) -> None:
    """`keep_path` by one launch: a block for each layer and head, which reads its whole path before it writes."""
    if not (keys.is_contiguous() and values.is_contiguous()):
        raise ValueError("the cache must be contiguous")
    layers, kv_heads, capacity, head_dim = keys.shape
    _keep_path_kernel[(layers * kv_heads,)](
        keys,
        values,
        length,
        path.contiguous(),
        len(path),
        capacity,
        LENGTH_ON_DEVICE=isinstance(length, torch.Tensor),
        HEAD_DIM=head_dim,
        PATH=triton.next_power_of_2(max(len(path), 1)),
        num_warps=4,
    )


@jit(do_not_specialize=["length", "n", "capacity"])
def _keep_path_kernel(
    keys,
    values,
    length,
    path,
    n,
    capacity,
    LENGTH_ON_DEVICE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PATH: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64) * capacity
    first = head + (tl.load(length) if LENGTH_ON_DEVICE else length)
    place = tl.arange(0, PATH)
    row = tl.load(path + place, mask=place < n, other=-1)
    moves = (row > place)[:, None]  # a row that stays needs no copy
    source = (first + row)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    target = (first + place)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    key, value = tl.load(keys + source, mask=moves, other=0.0), tl.load(values + source, mask=moves, other=0.0)
    tl.debug_barrier()
    tl.store(keys + target, key, mask=moves)
    tl.store(values + target, value, mask=moves)
