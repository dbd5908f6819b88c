"""What a pass would take on a card of which only the data sheet is known: reading and arithmetic, whichever is longer.

A lower bound: launches, attention and everything between the products are left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from transformers import PreTrainedConfig

from specquant.errors import SpecquantError
from specquant.files import resolve
from specquant.models.llama import Llama
from specquant.models.synthetic import bytes_read
from specquant.planning.costs import LevelCosts
from specquant.planning.roofline import Roofline
from specquant.quant import PackedLinear, Scheme, get_scheme

CARDS = Path("data/published/cards.csv")


@dataclass(frozen=True)
class Card:
    """Bandwidth in TB/s, and rates of matrix products in 10**12 operations per second by what they multiply: "fp16",
    "int8" and, where the card can, "fp8"."""

    name: str
    bandwidth_tb_s: float
    rates: dict[str, float]

    def reached(self, bandwidth: float, rates: Mapping[str, float]) -> "Card":
        """The card with these fractions of its data sheet."""
        scaled = {kind: rate * rates[kind] for kind, rate in self.rates.items()}
        return replace(self, bandwidth_tb_s=self.bandwidth_tb_s * bandwidth, rates=scaled)

    def can(self, scheme: Scheme) -> bool:
        return multiplies(scheme) in self.rates


def read_cards(path: str | Path = CARDS) -> dict[str, Card]:
    """The cards whose data sheets are recorded, by name. Raises SpecquantError where the table is damaged."""
    kinds = {"fp16": "fp16_tflop_s", "int8": "int8_top_s", "fp8": "fp8_tflop_s"}
    try:
        table = pd.read_csv(resolve(path))[["card", "bandwidth_tb_s", *kinds.values()]]
        numbers = table[["bandwidth_tb_s", *kinds.values()]].astype(float)
    except (OSError, ValueError, KeyError) as error:
        raise SpecquantError(f"{path} is no table of cards ({error}): take it from the repository") from None
    missing = numbers.isna() & (numbers.columns == "fp8_tflop_s")  # older cards multiply no fp8
    named_once = table.card.notna() & ~table.card.duplicated()
    if not named_once.all() or not (missing | ((numbers > 0) & (numbers < float("inf")))).all(axis=None):
        raise SpecquantError(
            f"{path} has a card without a name, a card twice, or no number above 0: take it from the repository"
        )
    return {
        row["card"]: Card(
            row["card"],
            row["bandwidth_tb_s"],
            {kind: row[column] for kind, column in kinds.items() if pd.notna(row[column])},
        )
        for _, row in table.iterrows()
    }


def multiplies(scheme: Scheme) -> str:
    """What a scheme's products multiply: "fp16", "int8" or "fp8"."""
    if scheme.activation_bits == 16:
        return "fp16"
    return "fp8" if scheme.floating else "int8"


class PassWork:
    """What a pass of a model in one scheme must read and compute.

    matrix_bytes, head_bytes, cache_bytes: of the layers' products, the LM head and the cached context.
    matrix_operations, head_operations: for each token; the LM head multiplies in fp16. draft_bytes: what one iteration
    of an fp16 EAGLE head reads, the LM head included.
    """

    def __init__(self, config: PreTrainedConfig, scheme: str | Scheme, context_length: int = 512):
        self.scheme = get_scheme(scheme) if isinstance(scheme, str) else scheme
        with torch.device("meta"):  # a skeleton without memory
            model = Llama(config, self.scheme, context_length)
        matrices = [linear for linear in model.modules() if isinstance(linear, PackedLinear)]
        weights = sum(linear.in_features * linear.out_features for linear in matrices)
        self.matrix_bytes = sum(linear.nbytes for linear in matrices)
        self.head_bytes = model.lm_head.weight.nbytes
        self.cache_bytes = bytes_read(model, context_length) - self.matrix_bytes - self.head_bytes
        self.matrix_operations = 2 * weights
        self.head_operations = 2 * model.lm_head.weight.numel()
        layer = weights // config.num_hidden_layers + 2 * config.hidden_size**2
        self.draft_bytes = 2 * layer + self.head_bytes

    def largest_free_draft(self, card: Card) -> float:
        """The draft size up to which the layers' products take no longer than reading their weights."""
        return self._products(card).largest_free_draft(self.matrix_bytes, self.matrix_operations)

    def time_ms(self, card: Card, draft_size: int) -> float:
        """The least time of a pass. Raises SpecquantError where the card cannot multiply what the scheme multiplies."""
        lm_head = Roofline(card.bandwidth_tb_s, card.rates["fp16"])
        matrices_us = self._products(card).time_us(self.matrix_bytes, draft_size * self.matrix_operations)
        lm_head_us = lm_head.time_us(self.head_bytes, draft_size * self.head_operations)
        return float(matrices_us + lm_head_us) / 1e3 + self.cache_bytes / card.bandwidth_tb_s / 1e9

    def costs(self, card: Card, draft_sizes: Sequence[int], iterations: Sequence[int] = (3, 6)) -> LevelCosts:
        """The least costs of this model's steps on a card, for `Planner`."""
        draft_ms = self.draft_bytes / card.bandwidth_tb_s / 1e9
        return LevelCosts(
            pd.Series({size: self.time_ms(card, size) for size in draft_sizes}),
            pd.Series({count: count * draft_ms for count in iterations}),
        )

    def _products(self, card: Card) -> Roofline:
        if not card.can(self.scheme):
            raise SpecquantError(f"{card.name} multiplies no {multiplies(self.scheme)}, which {self.scheme.name} needs")
        return Roofline(card.bandwidth_tb_s, card.rates[multiplies(self.scheme)])
