"""Triton where it is there. Kernels run on NVIDIA GPUs, and in tests without one in Triton's interpreter on the CPU.

Kernel files begin with `from __future__ import annotations`, so that `tl.constexpr` needs no Triton to import.
"""

import torch

try:
    import triton
    import triton.language as tl
    from triton import jit
except ImportError:  # macOS: there the references run
    triton = tl = None

    def jit(function):
        return function


__all__ = ["jit", "multiprocessors", "on_gpu", "tl", "triton"]


def on_gpu(x: torch.Tensor) -> bool:
    """Whether an operation on x runs its Triton kernel; otherwise it runs its reference."""
    return x.is_cuda and triton is not None


def multiprocessors(device: torch.device) -> int:
    """How many blocks of a kernel run side by side at the least; the interpreter has one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
