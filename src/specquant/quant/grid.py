"""The values that a quantized weight can take."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F


class Grid(NamedTuple):
    """The grid of every row and group of a weight matrix: code -> unit * step * (code - zero).

    All tensors are float32 and broadcast to [out, groups]. Codes are integers, or where `e4m3` numbers of that format.
    Where `integer`, step * (code - zero) is rounded to an int8 first, as a product with int8 weights does.
    """

    unit: torch.Tensor
    step: torch.Tensor
    zero: torch.Tensor
    lowest: torch.Tensor
    highest: torch.Tensor
    integer: bool = False
    e4m3: bool = False

    def encode(self, weight: torch.Tensor) -> torch.Tensor:
        """The nearest codes of values that broadcast with the grid, in float32."""
        codes = (weight / (self.unit * self.step)).add_(self.zero)
        if self.e4m3:
            return torch.clamp(codes, self.lowest, self.highest).to(torch.float8_e4m3fn).to(codes.dtype)
        return torch.clamp(codes.round_(), self.lowest, self.highest)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """The values of codes."""
        values = (codes - self.zero).mul_(self.step)
        return (values.round_().clamp_(-128, 127) if self.integer else values).mul_(self.unit)

    def expand(self, shape: Sequence[int]) -> "Grid":
        """The same grid with every tensor expanded to [out, groups]."""
        return self._with(tensor.expand(shape) for tensor in self[:5])

    def at(self, *index) -> "Grid":
        """The same grid with every tensor indexed."""
        return self._with(tensor[index] for tensor in self[:5])

    def _with(self, tensors: Iterable[torch.Tensor]) -> "Grid":
        unit, step, zero, lowest, highest = tensors
        return Grid(unit, step, zero, lowest, highest, self.integer, self.e4m3)


def in_groups(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """[out, in] -> [out, groups, inputs of a group]: a view, or, where the last group is short, a copy in which zeros
    fill it up. group_size: 0 for one group of all inputs."""
    inputs = weight.shape[1]
    if not group_size:
        return weight[:, None]
    missing = -inputs % group_size
    return (F.pad(weight, (0, missing)) if missing else weight).unflatten(1, (-1, group_size))


def out_of_groups(grouped: torch.Tensor, inputs: int) -> torch.Tensor:
    """The inverse of `in_groups`: [out, groups, inputs of a group] -> [out, inputs]."""
    return grouped.flatten(1)[:, :inputs]
