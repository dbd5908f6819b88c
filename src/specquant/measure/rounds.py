"""How long does a round of the hierarchy's inner loop take? A draft, the pass over it, acceptance."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd

from specquant.decoding.drafters.eagle2 import EagleDrafter
from specquant.decoding.drafters.replay import ReplayedTrees
from specquant.decoding.replay import Replay
from specquant.decoding.speculator import Speculator
from specquant.measure.blocks import spread
from specquant.measure.checks import require_shapes
from specquant.measure.drafting import HEADS
from specquant.measure.measure import Measure, Measured, left_out
from specquant.measure.parameters import Common
from specquant.models.device import default_dtype
from specquant.models.eagle import DraftHead, describe_head
from specquant.models.graphs import graphed
from specquant.models.llama import Llama
from specquant.models.memory import NotEnoughMemory
from specquant.models.synthetic import Synthetic, synthetic_config, synthetic_head, synthetic_model
from specquant.planning.trees import RECORDED_TREES, tree_shapes, trees_of
from specquant.quant import get_scheme
from specquant.tables.results import read_results
from specquant.tables.schemas import ROUNDS

# The tree, and the acceptance, of the inner loop: of a head's tokens, one after the other.
INNER_TREE = (30, 3)
INNER_ACCEPTANCE = 0.8


@dataclass(frozen=True)
class Parameters(Common):
    """What to time, with each head of `HEADS`.

    Attributes:
        model: The intermediate model: llama-3-8b or llama-3-70b, with random weights.
        scheme: Of its random weights.
        context_length: Tokens in the cache.
        processes: Fresh interpreters, each of which measures everything, for intervals.
        repeats: Rounds that are timed, after those in which graphs are captured.
        trees: Shapes of trees, a CSV file, from which acceptance is replayed (default: those of the tiny models).
    """

    model: str = "llama-3-8b"
    scheme: str = "w4a16-g128"
    context_length: int = 512
    processes: int = 3
    repeats: int = 100
    trees: Path = Path(RECORDED_TREES)

    shared = ("repeats", "trees")

    def check(self) -> None:
        """Raises SpecquantError for an unknown model and for numbers out of range."""
        super().check()
        require_shapes([self.model])
        get_scheme(self.scheme)

    def same(self) -> dict[str, Any]:
        return super().same() | {"acceptance": INNER_ACCEPTANCE}

    def units(self) -> list[dict[str, Any]]:
        about: dict[str, Any] = {"model": self.model, "scheme": self.scheme, "weights": "synthetic"}
        return [
            about | {"context_length": self.context_length, "process": process} for process in range(self.processes)
        ]

    def synthetic(self, unit: dict[str, Any]) -> list[Synthetic]:
        dtype = default_dtype(self.device, self.scheme)
        return [Synthetic(synthetic_config(self.model), self.scheme, self.context_length + 1024, dtype)]


def run(parameters: Parameters, units: Sequence[dict]) -> Measured:
    """Time rounds with each head. A round is one block of its own: each follows another of its kind."""
    shapes = tree_shapes(trees_of(read_results(parameters.trees, table="trees"), "intermediate"), *INNER_TREE)
    context_length = parameters.context_length
    for unit in units:
        (made,) = parameters.synthetic(unit)
        try:
            model = synthetic_model(*made, parameters.device)
            rows = []
            for head_scheme, head_vocabulary in HEADS:
                head = synthetic_head(made.config, model, head_scheme, head_vocabulary)
                about = describe_head(head_scheme, head_vocabulary, made.config) | {"acceptance": "replayed"}
                rows.append(about | inner_rounds(model, head, shapes, context_length, parameters.repeats))
            yield unit, pd.DataFrame(rows)
        except NotEnoughMemory as error:
            yield unit, left_out(unit, error)


def inner_rounds(
    model: Llama, head: DraftHead, shapes: Sequence[Sequence[int]], context_length: int = 512, repeats: int = 100
) -> dict:
    """Time rounds of the inner loop: an EAGLE-2 draft, the model's pass over it, acceptance and cache compaction.

    Acceptance is replayed (`decoding.replay`): trees take `shapes`, parents of INNER_TREE's nodes, and each token of
    the longest path counts with the probability INNER_ACCEPTANCE. Returns the medians of the parts, and of the whole
    with p10 and p90, in milliseconds.
    """
    drafter = ReplayedTrees(EagleDrafter(head, *INNER_TREE), shapes, model.device)
    speculator = Speculator(graphed(model), drafter)
    prompt = [token % model.config.vocab_size for token in range(context_length)]
    rule, warm_up = Replay([INNER_ACCEPTANCE], INNER_ACCEPTANCE), 30  # in which all graphs are captured
    speculator.prefill(prompt, rule)
    times_ms, steps = [], []
    for _ in range(warm_up + repeats):
        began = perf_counter()
        steps.append(speculator.step(INNER_TREE[0]))
        times_ms.append(1e3 * (perf_counter() - began))
    steps, times_ms = steps[warm_up:], times_ms[warm_up:]
    parts = {part: np.median([getattr(step, part) for step in steps]) for part in ("draft_ms", "verify_ms", "other_ms")}
    about: dict[str, Any] = {"draft_size": INNER_TREE[0], "iterations": INNER_TREE[1], "context_length": context_length}
    about |= {"accepted_length": np.mean([step.accepted_length for step in steps])}
    return about | parts | spread(times_ms) | {"repeats": repeats}


MEASURE = Measure(
    (ROUNDS,), Parameters, run, "CUDA events for drafts, time.perf_counter for the rest, medians of steps"
)
