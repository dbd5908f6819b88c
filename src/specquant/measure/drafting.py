"""How long does an EAGLE-2 draft take? From the confirmed tokens to the tree, on random weights of true sizes."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from specquant.errors import SpecquantError
from specquant.experiments import kernels
from specquant.experiments.drafting import HEADS, TREES, describe_head, prepare_draft
from specquant.measure.blocks import Blocks, in_blocks
from specquant.measure.checks import require_at_least, require_shapes, require_short
from specquant.measure.measure import Measure
from specquant.models.device import choose_device, default_dtype
from specquant.models.memory import NotEnoughMemory
from specquant.models.synthetic import synthetic_config, synthetic_ends, synthetic_head
from specquant.tables.provenance import device_name
from specquant.tables.schemas import DRAFTING


@dataclass(frozen=True)
class Parameters:
    """What to time: every head of `HEADS` and tree of `TREES`.

    Only embedding and LM head of a model are made to draft for it. A head that knows some tokens alone knows the first
    ones, for random weights have no frequent ones.

    Attributes:
        models: llama-3-8b, llama-3-70b (`models.synthetic.SHAPES`), with commas.
        confirmed_rows: New tokens that a draft begins with.
        context_length: Tokens in the cache.
        processes: Fresh interpreters, each of which measures everything, for intervals.
        blocks: Of each draft in a process.
        repeats: Of each draft in a block.
        warm_up_ms: For how long drafts run before those that are timed.
        seed: Of the random weights, and of the order.
        device: cuda or cpu (default: cuda where there is one).
    """

    models: tuple[str, ...] = ("llama-3-8b", "llama-3-70b")
    confirmed_rows: int = 4
    context_length: int = 512
    processes: int = 3
    blocks: int = 1
    repeats: int = 50
    warm_up_ms: float = 200.0
    seed: int = 0
    device: str = ""  # the GPU, if there is one

    def __post_init__(self):
        object.__setattr__(self, "device", choose_device(self.device))

    def check(self) -> None:
        """Raises SpecquantError for an unknown model and for numbers out of range."""
        require_shapes(self.models)
        require_at_least(self, processes=1, blocks=1, repeats=1)
        require_short("warm_up_ms", self.warm_up_ms)
        if not 1 <= self.confirmed_rows < self.context_length:
            raise SpecquantError(
                f"{self.confirmed_rows} new tokens do not fit a context of {self.context_length}: give at least 1"
            )

    @property
    def dtype(self) -> torch.dtype:
        return default_dtype(self.device, "fp16")  # of the model, whose ends a head shares

    def same(self) -> dict[str, Any]:
        names = ("confirmed_rows", "blocks", "repeats", "warm_up_ms", "seed")
        return {name: getattr(self, name) for name in names} | {"device": device_name(self.device)}

    def units(self) -> list[dict[str, Any]]:
        return [
            {"model": model, "weights": "synthetic", "context_length": self.context_length, "process": process}
            for process in range(self.processes)
            for model in self.models
        ]


def run(parameters: Parameters, units: Sequence[dict]) -> Iterator[tuple[dict, pd.DataFrame | SpecquantError]]:
    """Time the drafts for each model: heads one after another, trees in blocks in random order."""
    bandwidth_tb_s = None
    if parameters.device == "cuda":
        bandwidth_tb_s = kernels.measure_ceilings().set_index("what").value["read-only stream"]
    for unit in units:
        order = random.Random(f"{parameters.seed} {unit['process']} {unit['model']}")
        try:
            rows = pd.concat(drafts(unit["model"], parameters, order), ignore_index=True)
        except NotEnoughMemory as error:
            yield unit, SpecquantError(f"{unit['model']} is left out: {error}")
            continue
        if bandwidth_tb_s is not None:
            rows["floor_ms"] = rows.bytes / bandwidth_tb_s / 1e9
        yield unit, rows


def drafts(model: str, parameters: Parameters, order: random.Random) -> Iterator[pd.DataFrame]:
    """The rows of each head. bytes: what the head's iterations must read of its matrices and LM head."""
    config = synthetic_config(model)
    ends = synthetic_ends(config, parameters.context_length + 64, parameters.dtype, parameters.device)
    blocks = Blocks(parameters.blocks, parameters.repeats, warm_up_ms=parameters.warm_up_ms)
    for head_scheme, head_vocabulary in order.sample(HEADS, len(HEADS)):
        head = synthetic_head(config, ends, head_scheme, head_vocabulary)
        runs = {
            tree: prepare_draft(head, *tree, parameters.confirmed_rows, parameters.context_length) for tree in TREES
        }
        with torch.inference_mode():
            rows = in_blocks(runs, head.device, blocks, order)
        sizes, iterations = zip(*rows.pop("what"), strict=True)
        about = {"draft_size": sizes, "iterations": iterations, "confirmed_rows": parameters.confirmed_rows}
        about |= describe_head(head_scheme, head_vocabulary, config)
        yield rows.assign(**about, bytes=[count * head.bytes_read for count in iterations])


MEASURE = Measure(DRAFTING, Parameters, run, "time.perf_counter around a draft, median of a block")
