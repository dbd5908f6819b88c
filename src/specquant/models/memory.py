"""How much memory there is, so that what does not fit can be refused before it is made."""

import os
from pathlib import Path

import torch


def free_bytes(device: torch.device | str) -> int | None:
    """Bytes that can be allocated on a device; None where the system does not say."""
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        return None
    information = Path("/proc/meminfo")
    if information.is_file():  # counts what the file cache would give back
        for line in information.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
