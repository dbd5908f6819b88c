"""How much memory there is, so that what does not fit can be refused before it is made."""

import psutil
import torch

from specquant.errors import SpecquantError


class NotEnoughMemory(SpecquantError):
    """A model, or its cache, needs more memory than its device has free."""


def free_bytes(device: torch.device | str) -> int | None:
    """Memory that can still be had on a device; None for one without memory (meta)."""
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available if device.type == "cpu" else None


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
