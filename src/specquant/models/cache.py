"""The key-value cache: preallocated, positional, and able to keep one path of a draft tree."""

from copy import copy

import torch
from transformers import PreTrainedConfig

from specquant.errors import SpecquantError
from specquant.kernels.compaction import keep_path
from specquant.models.memory import NotEnoughMemory, free_bytes, gigabytes


class KVCache:
    """Keys and values [layers, kv_heads, capacity, head_dim] of which the first `length` slots are confirmed.

    A forward pass writes its rows behind the confirmed slots; `keep` and `confirm` then keep some of them, and the rest
    is overwritten by the next pass. Slots are positions: truncating is setting the length.
    """

    def __init__(self, config: PreTrainedConfig, capacity: int, dtype: torch.dtype, device: torch.device | str):
        needed, free = capacity * self.bytes_per_position(config, dtype), free_bytes(device)
        if free is not None and needed > free:
            raise NotEnoughMemory(
                f"a cache of {capacity} positions needs {gigabytes(needed)}, and {device} has {gigabytes(free)} free: "
                "give a smaller context length (--context-length)"
            )
        shape = (config.num_hidden_layers, config.num_key_value_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    @staticmethod
    def bytes_per_position(config: PreTrainedConfig, dtype: torch.dtype) -> int:
        return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]

    def shared(self) -> "KVCache":
        """The same slots with a length of its own, for another model whose keys and values mean the same."""
        other = copy(self)
        other.length = 0
        return other

    def require(self, slots: int) -> None:
        """Raises SpecquantError where a pass needs more slots behind the confirmed ones than there are."""
        needed = self.length + slots
        if needed > self.capacity:
            raise SpecquantError(
                f"the cache holds {self.capacity} positions and this pass needs {needed}: shorten the prompt or the "
                "draft, or give a larger context length"
            )

    def keep(self, rows: torch.Tensor) -> None:
        """Move some rows of the latest pass, which stand behind the confirmed slots, right behind these slots.

        rows: int64 [n] for a pass of n rows, ascending, filled up with -1. They count when they are confirmed.
        """
        if len(rows) > 1:  # a lone row is in its place already
            keep_path(self.keys, self.values, self.length, rows)

    def confirm(self, rows: int) -> None:
        """Confirm the first slots behind those that are."""
        self.length += rows

    def truncate(self, length: int) -> None:
        """Forget all confirmed positions from `length` on."""
        self.length = min(self.length, length)
