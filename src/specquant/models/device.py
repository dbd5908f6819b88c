"""Which device a computation runs on, and in which dtype models compute there."""

import os
from typing import get_args

import torch

from specquant.errors import SpecquantError
from specquant.models.options import DEVICES, DType, no_device
from specquant.quant import Scheme, get_scheme
from specquant.tables.provenance import DEVICE_OF_JOBS


def choose_device(device: str | None) -> str:
    """A device by its name, the GPU if there is one by default. Raises SpecquantError for one that is not here, or not
    where jobs do the work."""
    has_gpu = gpu_is_available()
    device = device or ("cuda" if has_gpu else "cpu")
    if device not in DEVICES or (device == "cuda" and not has_gpu):
        raise no_device(device)
    return device


def gpu_is_available() -> bool:
    """Whether there is a GPU where the work is done."""
    elsewhere = os.environ.get(DEVICE_OF_JOBS)
    return elsewhere == "cuda" if elsewhere else torch.cuda.is_available()


def default_dtype(device: torch.device | str, scheme: str | Scheme) -> torch.dtype:
    """What a model in this scheme computes in where no dtype is given: 16 bits on a GPU, float32 on a CPU, and float64
    there if the scheme rounds activations to 8 bits.

    A CPU sums a row in another order where other rows are beside it, so its last bits differ. Rounding to 8 bits then
    moves a few codes by a whole step: of a model of 30 layers in float32 about one in each pass, so that a verified
    draft would not always have the tokens of decoding one by one. In float64 that is millions of times as rare.

    Args:
        device: where the model is.
        scheme: its scheme, or the scheme's name.

    Returns:
        The dtype.

    Raises:
        SpecquantError: There is no scheme of this name.
    """
    if torch.device(device).type == "cuda":
        return torch.float16
    scheme = get_scheme(scheme) if isinstance(scheme, str) else scheme
    return torch.float64 if scheme.activation_bits == 8 else torch.float32


def named_dtype(name: str | None) -> torch.dtype | None:
    """The dtype of a name, as options give it; None for the default. Raises SpecquantError for another name."""
    if name is None:
        return None
    if name not in get_args(DType):
        raise SpecquantError(f"unknown dtype {name!r}: choose {', '.join(get_args(DType))}")
    return getattr(torch, name)


def dtype_name(dtype: torch.dtype) -> str:
    """What options and tables call a dtype."""
    return str(dtype).removeprefix("torch.")


def dtype_parameters(device: torch.device | str, given: str | None = None) -> dict[str, str]:
    """How tables, which may hold several schemes, say which dtype was given, or what is each scheme's default."""
    named = {"dtype": given or dtype_name(default_dtype(device, "fp16"))}
    if torch.device(device).type == "cuda":
        return named
    return named | {"dtype_of_8_bit_activations": given or dtype_name(default_dtype(device, "w8a8"))}
