"""Which device a computation runs on."""

import torch

from specquant.errors import SpecquantError


def choose_device(device: str | None) -> str:
    """A device by its name, the GPU if there is one by default. Raises SpecquantError for one that is not here."""
    has_gpu = torch.cuda.is_available()
    device = device or ("cuda" if has_gpu else "cpu")
    if device not in ("cpu", "cuda") or (device == "cuda" and not has_gpu):
        raise SpecquantError(f"there is no device {device!r} here: leave it out for the best there is")
    return device
