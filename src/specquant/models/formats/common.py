"""What the formats share: what they make of a matrix's tensors, and how they look at fields and tensors."""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch

from specquant.errors import SpecquantError
from specquant.models.fields import MOST, OBJECT, TEXT, list_of, optional, shown

Tensors = Mapping[str, torch.Tensor]


class Matrix(NamedTuple):
    """A weight matrix [out, in] in the terms of `quant.grid.Grid`: a code stands for unit * step * (code - zero).

    codes: integers [out, in], 0 to 15 (4 bits) or -128 to 127 (8 bits). unit: float [out, 1]. step, zero: numbers
    [out, groups]. What a storage does not have is None.
    """

    codes: torch.Tensor
    unit: torch.Tensor | None = None
    step: torch.Tensor | None = None
    zero: torch.Tensor | None = None


class Format(NamedTuple):
    """How a checkpoint stores its linear layers.

    scheme: the name of the scheme that holds the same numbers. shapes: outputs and inputs of a matrix -> what its
    tensors are called behind its name, and their shapes. decode: these tensors -> the matrix. optional: tensors that
    some writers leave out. left_out: the field that says that a matrix of that name was not quantized, if one does.
    """

    scheme: str
    shapes: Callable[[int, int], dict[str, tuple[int, ...]]]
    decode: Callable[[Tensors], Matrix]
    optional: tuple[str, ...] = ()
    left_out: Callable[[str], str | None] = lambda name: None


def field(
    section: Mapping[str, Any], name: str, supported: Collection[Any], default: Any = None, where: str = ""
) -> Any:
    """The value of a field of quantization_config, or of its section `where`.

    Raises SpecquantError where it is not one of the supported ones.
    """
    value = section.get(name, default)
    if not any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in supported):
        choice = " or ".join(map(repr, supported))
        found = f"is {shown(value)}" if name in section else "is missing"
        raise SpecquantError(f"quantization_config: {where}{name} {found}; what can be loaded is {choice}")
    return value


def left_out_by(section: Mapping[str, Any], names: Collection[str]) -> Callable[[str], str | None]:
    """What `Format.left_out` is for a quantization_config of a checkpoint with tensors of those names.

    llm-compressor's `ignore` has names, and patterns behind "re:"; `modules_to_not_convert` has parts of names. Raises
    SpecquantError where they have something else, or name what is not there.
    """
    ignored, parts = (_texts(section, name) for name in ("ignore", "modules_to_not_convert"))
    for part in parts:
        if part != "lm_head" and not any(part in name for name in names):
            found = section["modules_to_not_convert"]
            raise SpecquantError(
                f"quantization_config: modules_to_not_convert is {shown(found)}; no module is called so"
            )
    try:
        patterns = [re.compile(entry.removeprefix("re:")) for entry in ignored if entry.startswith("re:")]
    except re.error as error:
        raise SpecquantError(f"quantization_config: ignore holds a pattern that is none ({error})") from None

    def left_out(name: str) -> str | None:
        if name in ignored or any(pattern.match(name) for pattern in patterns):
            return "ignore"
        return "modules_to_not_convert" if any(part in name for part in parts) else None

    return left_out


def _texts(section: Mapping[str, Any], name: str) -> list[str]:
    value = section.get(name) or []
    if not list_of(TEXT).fits(value):
        raise SpecquantError(f"quantization_config: {name} is {shown(value)}; it must be a list of names")
    return value


def part_of(section: Mapping[str, Any], name: str, where: str = "") -> Mapping[str, Any]:
    """A field that is an object itself; empty where there is none. Raises SpecquantError where it is something else."""
    value = section.get(name)
    if not optional(OBJECT).fits(value):
        raise SpecquantError(f"quantization_config: {where}{name} is {shown(value)}; it must be a JSON object")
    return value or {}


def group_size_field(section: Mapping[str, Any], where: str = "") -> int:
    """The field that says how many inputs share a scale: 0 where all of an output do, else a multiple of 128."""
    value = section.get("group_size")
    if isinstance(value, int) and (value == -1 or (0 < value <= MOST and value % 128 == 0)):
        return max(value, 0)
    raise SpecquantError(
        f"quantization_config: {where}group_size is {shown(value)}; what can be loaded is 128, or -1 for a scale per "
        "output channel"
    )


def groups_of(inputs: int, group_size: int) -> int:
    """How many groups of that size (0: all) these inputs make."""
    if group_size and inputs % group_size:
        raise SpecquantError(f"quantization_config: group_size is {group_size}, which does not divide {inputs} inputs")
    return inputs // group_size if group_size else 1


def take(tensors: Tensors, suffix: str, *dtypes: torch.dtype) -> torch.Tensor:
    """A tensor, which must be of one of the dtypes."""
    tensor = tensors[suffix]
    if tensor.dtype not in dtypes:
        raise SpecquantError(f"{suffix} holds {tensor.dtype} where {' or '.join(map(str, dtypes))} belongs")
    return tensor


def take_scales(tensors: Tensors, suffix: str) -> torch.Tensor:
    return take(tensors, suffix, torch.float16, torch.bfloat16, torch.float32)


def nibbles(words: torch.Tensor) -> torch.Tensor:
    """int32 [..., n] -> the 4-bit numbers in them, lowest first: uint8 [..., n, 8]."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    return ((words[..., None] >> shifts) & 15).to(torch.uint8)


def words(numbers: torch.Tensor) -> torch.Tensor:
    """The inverse of `nibbles`: numbers 0 to 15 [..., n, 8] -> int32 [..., n]."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=numbers.device)
    return (numbers.int() << shifts).sum(dim=-1, dtype=torch.int32)


def per_128(values: torch.Tensor, inputs: int) -> torch.Tensor:
    """Values of larger groups [out, groups] -> the same for groups of 128 inputs, the last of which may be short."""
    groups = -(-inputs // 128)
    return values.repeat_interleave(-(-groups // values.shape[1]), dim=1)[:, :groups]
