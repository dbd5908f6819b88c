"""How long does an EAGLE-2 draft take? From the confirmed tokens to the tree, on random weights of true sizes."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch

from specquant.decoding.drafters.eagle2 import EagleDrafter
from specquant.decoding.generation import acceptance_rule
from specquant.decoding.tree import DraftTree
from specquant.errors import SpecquantError
from specquant.measure import ceilings
from specquant.measure.blocks import InBlocks, in_blocks
from specquant.measure.checks import require_shapes
from specquant.measure.measure import Measure, Measured, left_out
from specquant.models.device import default_dtype
from specquant.models.eagle import DraftHead, describe_head
from specquant.models.memory import NotEnoughMemory
from specquant.models.synthetic import synthetic_config, synthetic_ends, synthetic_head
from specquant.tables.schemas import DRAFTING

# EAGLE-2 trees of the paper: nodes and iterations.
TREES = ((24, 3), (30, 3), (48, 6), (60, 6))
# Of the EAGLE head: the scheme of its matrices and its LM head, and how many tokens this knows.
HEADS = ((None, None), ("w4a16-g128", None), ("w4a16-g128", 32768))


@dataclass(frozen=True)
class Parameters(InBlocks):
    """What to time: every head of `HEADS` and tree of `TREES`.

    Only embedding and LM head of a model are made to draft for it. A head that knows some tokens alone knows the first
    ones, for random weights have no frequent ones.

    Attributes:
        models: llama-3-8b, llama-3-70b: random weights of their shapes; with commas.
        confirmed_rows: New tokens that a draft begins with.
        context_length: Tokens in the cache.
    """

    models: tuple[str, ...] = ("llama-3-8b", "llama-3-70b")
    confirmed_rows: int = 4
    context_length: int = 512
    repeats: int = field(default=50, kw_only=True)

    shared = ("confirmed_rows", *InBlocks.shared)

    def check(self) -> None:
        """Raises SpecquantError for an unknown model and for numbers out of range."""
        super().check()
        require_shapes(self.models)
        _require_room(self.confirmed_rows, self.context_length)

    @property
    def head_dtype(self) -> torch.dtype:
        return default_dtype(self.device, "fp16")  # of the model, whose ends a head shares

    def units(self) -> list[dict[str, Any]]:
        return [
            {"model": model, "weights": "synthetic", "context_length": self.context_length, "process": process}
            for process in range(self.processes)
            for model in self.models
        ]


def run(parameters: Parameters, units: Sequence[dict]) -> Measured:
    """Time the drafts for each model: heads one after another, trees in blocks in random order."""
    bandwidth_tb_s = ceilings.read_bandwidth_tb_s(parameters.device)
    for unit in units:
        order = parameters.order(unit["process"], unit["model"])
        try:
            rows = pd.concat(drafts(unit["model"], parameters, order), ignore_index=True)
        except NotEnoughMemory as error:
            yield unit, left_out(unit, error)
            continue
        rows["floor_ms"] = rows.bytes / bandwidth_tb_s / 1e9
        yield unit, rows


def drafts(model: str, parameters: Parameters, order: random.Random) -> Iterator[pd.DataFrame]:
    """The rows of each head. bytes: what the head's iterations must read of its matrices and LM head."""
    config = synthetic_config(model)
    ends = synthetic_ends(config, parameters.context_length + 64, parameters.head_dtype, parameters.device)
    for head_scheme, head_vocabulary in order.sample(HEADS, len(HEADS)):
        head = synthetic_head(config, ends, head_scheme, head_vocabulary)
        runs = {
            tree: prepare_draft(head, *tree, parameters.confirmed_rows, parameters.context_length) for tree in TREES
        }
        with torch.inference_mode():
            rows = in_blocks(runs, head.device, parameters.block, order)
        sizes, iterations = zip(*rows.pop("what"), strict=True)
        about = {"draft_size": sizes, "iterations": iterations, "confirmed_rows": parameters.confirmed_rows}
        about |= describe_head(head_scheme, head_vocabulary, config)
        yield rows.assign(**about, bytes=[count * head.bytes_read for count in iterations])


@torch.inference_mode()
def prepare_draft(
    head: DraftHead, draft_size: int, iterations: int, confirmed_rows: int = 4, context_length: int = 512
) -> Callable[[], DraftTree]:
    """A call that drafts a tree from `confirmed_rows` new tokens behind a context of random features.

    Raises SpecquantError where the context has fewer tokens than are new, or results are not finite: such a draft may
    take another time.
    """
    _require_room(confirmed_rows, context_length)
    drafter = EagleDrafter(head, draft_size, iterations)
    generator = torch.Generator(head.device).manual_seed(0)
    shape = (context_length, head.config.hidden_size)
    features = torch.randn(shape, generator=generator, device=head.device).to(head.dtype)
    drafter.start([token % head.config.vocab_size for token in range(context_length + 1)], features, acceptance_rule())

    def draft() -> DraftTree:
        drafter.cache.truncate(context_length - confirmed_rows)
        return drafter.propose(iterations)

    if len(draft()) != draft_size or not drafter.cache.keys[:, :, :context_length].isfinite().all():
        raise SpecquantError("the EAGLE head computes numbers that are not finite")
    return draft


def _require_room(confirmed_rows: int, context_length: int) -> None:
    """Raises SpecquantError where the context has no more tokens than are new."""
    if not 1 <= confirmed_rows < context_length:
        raise SpecquantError(f"{confirmed_rows} new tokens do not fit a context of {context_length}: give at least 1")


MEASURE = Measure((DRAFTING,), Parameters, run, "time.perf_counter around a draft, median of a block")
