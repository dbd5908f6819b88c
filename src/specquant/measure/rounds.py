"""How long does a round of the hierarchy's inner loop take? A draft, the small model's pass over it, acceptance."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from specquant.errors import SpecquantError
from specquant.experiments.drafting import HEADS, INNER_ACCEPTANCE, INNER_TREE, describe_head, inner_rounds
from specquant.experiments.trees import RECORDED_TREES, tree_shapes, trees_of
from specquant.measure.checks import require_at_least, require_shapes
from specquant.measure.measure import Measure
from specquant.models.device import choose_device, default_dtype
from specquant.models.memory import NotEnoughMemory
from specquant.models.synthetic import synthetic_config, synthetic_head, synthetic_model
from specquant.tables.provenance import device_name
from specquant.tables.results import read_results
from specquant.tables.schemas import ROUNDS


@dataclass(frozen=True)
class Parameters:
    """What to time, with each head of `HEADS`.

    Attributes:
        model: The intermediate model: llama-3-8b or llama-3-70b (`models.synthetic.SHAPES`).
        scheme: Of its random weights.
        context_length: Tokens in the cache.
        processes: Fresh interpreters, each of which measures everything, for intervals.
        repeats: Rounds that are timed, after those in which graphs are captured.
        trees: Shapes of trees, a CSV file, from which acceptance is replayed (default: those of the tiny models).
        device: cuda or cpu (default: cuda where there is one).
    """

    model: str = "llama-3-8b"
    scheme: str = "w4a16-g128"
    context_length: int = 512
    processes: int = 3
    repeats: int = 100
    trees: Path = Path(RECORDED_TREES)
    device: str = ""  # the GPU, if there is one

    def __post_init__(self):
        object.__setattr__(self, "device", choose_device(self.device))

    def check(self) -> None:
        """Raises SpecquantError for an unknown model and for numbers out of range."""
        require_shapes([self.model])
        require_at_least(self, processes=1, repeats=1)

    def same(self) -> dict[str, Any]:
        about: dict[str, Any] = {"repeats": self.repeats, "acceptance": INNER_ACCEPTANCE, "trees": self.trees}
        return about | {"device": device_name(self.device)}

    def units(self) -> list[dict[str, Any]]:
        about: dict[str, Any] = {"model": self.model, "scheme": self.scheme, "weights": "synthetic"}
        return [
            about | {"context_length": self.context_length, "process": process} for process in range(self.processes)
        ]


def run(parameters: Parameters, units: Sequence[dict]) -> Iterator[tuple[dict, pd.DataFrame | SpecquantError]]:
    """Time rounds with each head. A round is one block of its own: each follows another of its kind."""
    shapes = tree_shapes(trees_of(read_results(parameters.trees), "intermediate"), *INNER_TREE)
    config, context_length = synthetic_config(parameters.model), parameters.context_length
    dtype = default_dtype(parameters.device, parameters.scheme)
    for unit in units:
        try:
            model = synthetic_model(config, parameters.scheme, context_length + 1024, dtype, parameters.device)
            rows = []
            for head_scheme, head_vocabulary in HEADS:
                head = synthetic_head(config, model, head_scheme, head_vocabulary)
                about = describe_head(head_scheme, head_vocabulary, config) | {"acceptance": "replayed"}
                rows.append(about | inner_rounds(model, head, shapes, context_length, parameters.repeats))
            yield unit, pd.DataFrame(rows)
        except NotEnoughMemory as error:
            yield unit, SpecquantError(f"{unit['model']} in {unit['scheme']} is left out: {error}")


MEASURE = Measure(ROUNDS, Parameters, run, "CUDA events for drafts, time.perf_counter for the rest, medians of steps")
