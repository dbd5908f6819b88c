"""How much memory there is, so that what does not fit can be refused before it is made."""

import resource

import psutil
import torch

from specquant.errors import SpecquantError


class NotEnoughMemory(SpecquantError):
    """A model, or its cache, needs more memory than its device has free."""


def free_bytes(device: torch.device | str) -> int | None:
    """Memory that can still be had on a device; None for one without memory (meta).

    On a CPU not more than a limit on this process's addresses (`ulimit -v`) leaves.
    """
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        return None
    available, (limit, _) = psutil.virtual_memory().available, resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return available
    return max(0, min(available, limit - psutil.Process().memory_info().vms))


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
