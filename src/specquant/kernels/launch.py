"""Triton where it is there. Kernels run on NVIDIA GPUs, and in tests without one in Triton's interpreter on the CPU.

Kernel files begin with `from __future__ import annotations`, so that `tl.constexpr` needs no Triton to import.
"""

from __future__ import annotations

from functools import cache

import torch

try:
    import triton
    import triton.language as tl
    from triton import jit
except ImportError:  # macOS: there the references run
    triton = tl = None

    def jit(function=None, **_):
        return function or jit


__all__ = [
    "arrival_counters",
    "jit",
    "multiprocessors",
    "on_gpu",
    "overlapping",
    "shared_memory_bytes",
    "tl",
    "triton",
    "wait_for_previous",
]

MOST_COUNTERS = 4096


def on_gpu(x: torch.Tensor) -> bool:
    """Whether an operation on x runs its Triton kernel. If not, it runs its reference."""
    return x.is_cuda and triton is not None and x.dtype != torch.float64


@cache
def multiprocessors(device: torch.device) -> int:
    """How many blocks of a kernel run side by side at the least; the interpreter has one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@cache
def shared_memory_bytes(device: torch.device) -> int:
    """The most shared memory that one block can take; the interpreter has none."""
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin if device.type == "cuda" else 0


@cache
def arrival_counters(device: torch.device) -> torch.Tensor:
    """int32 [4096] zeros, by which a kernel's blocks find out which of them comes last and joins what all have done.

    Whoever counts here sets the counter back to 0. Kernels that run at the same time must not share them: all launches
    go through one stream.
    """
    return torch.zeros(MOST_COUNTERS, dtype=torch.int32, device=device)


@cache
def overlapping(device: torch.device) -> dict[str, bool]:
    """Options of a launch whose kernel begins with `wait_for_previous`: from Hopper on, it is launched while the kernel
    before it still runs (programmatic dependent launch), so that its start costs less time."""
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"OVERLAPPING": True, "launch_pdl": True} if able else {"OVERLAPPING": False}


@jit
def wait_for_previous(OVERLAPPING: tl.constexpr):
    """Wait until the previous kernel has ended, and what it wrote can be read; then let the next one be launched."""
    if OVERLAPPING:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
