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
    from triton.tools.tensor_descriptor import TensorDescriptor

    constexpr = tl.constexpr
except ImportError:  # macOS: there the references run
    triton = tl = TensorDescriptor = None
    constexpr = str  # what kernels hold outside of themselves is text

    def jit(function=None, **_):
        return function or jit


__all__ = [
    "TensorDescriptor",
    "arrival_counters",
    "constexpr",
    "jit",
    "multiprocessors",
    "on_gpu",
    "overlapping",
    "prefetch",
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
def arrival_counters(device: torch.device) -> torch.Tensor:
    """int32 [4096] zeros, by which a kernel's blocks find out which of them comes last and joins what all have done.

    Whoever counts here sets the counter back to 0. Kernels that run at the same time must not share them: all launches
    go through one stream.
    """
    return torch.zeros(MOST_COUNTERS, dtype=torch.int32, device=device)


@cache
def overlapping(device: torch.device, next_early: bool = False) -> dict[str, int]:
    """Options of a launch whose kernel begins with `wait_for_previous`: from Hopper on, it is launched while the kernel
    before it still runs (programmatic dependent launch), so that its start costs less time.

    next_early: the next kernel, or one soon after, begins with weights while it waits: OVERLAPPING is then 2.
    """
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"OVERLAPPING": 2 if next_early else 1, "launch_pdl": True} if able else {"OVERLAPPING": 0}


@jit
def wait_for_previous(OVERLAPPING: tl.constexpr, next_at_once=True):
    """Wait until the previous kernel has ended, so that what it wrote can be read.

    next_at_once: let the next kernel be launched then; else it is launched when this one has ended. Kernels of few
    blocks ask for it. Beside many blocks, those of the next kernel take whatever room there is and are not spread
    evenly over the card: that costs a linear product more than the launch does. Where OVERLAPPING is 2, it is launched
    before that, as soon as all blocks of this kernel have begun: it waits for this one, and so for the previous one.
    """
    if OVERLAPPING == 2:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    elif OVERLAPPING:
        tl.extra.cuda.gdc_wait()
        if next_at_once:
            tl.extra.cuda.gdc_launch_dependents()


@jit
def prefetch(address, size):
    """Ask for `size` bytes, a multiple of 16 and not 0, from the pointer on to be brought into the L2 cache: on Hopper
    and later. It may be done before `wait_for_previous`, for what lies in this cache is never stale."""
    tl.inline_asm_elementwise(
        """{
        .reg .pred first; .reg .u32 thread;
        mov.u32 thread, %tid.x; setp.eq.u32 first, thread, 0;
        @first cp.async.bulk.prefetch.L2.global [$1], $2;
        mov.u32 $0, 0;
        }""",
        "=r,l,r", [address.to(tl.int64), size], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip
