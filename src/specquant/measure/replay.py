"""How fast is each method at true size? Every pass really runs, on random weights; acceptance is replayed."""

import gc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from specquant.decoding.drafters import methods_with
from specquant.errors import SpecquantError
from specquant.experiments import acceptance
from specquant.experiments.acceptance import Chances, Shapes
from specquant.experiments.methods import PLAN_FIELDS, Plan
from specquant.experiments.replayed import SyntheticModels, at_fitted_chances, replay_plans
from specquant.experiments.trees import RECORDED_TREES
from specquant.measure.checks import require_at_least
from specquant.measure.measure import Measure
from specquant.models.device import choose_device, default_dtype, dtype_parameters, named_dtype
from specquant.models.eagle import head_scheme
from specquant.models.memory import NotEnoughMemory
from specquant.models.options import DType
from specquant.models.synthetic import synthetic_config
from specquant.quant import get_scheme
from specquant.tables.intervals import over_processes
from specquant.tables.provenance import device_name
from specquant.tables.results import read_results
from specquant.tables.schemas import REPLAYED

# Around the paper's choices, to compare predictions with.
MORE_PLANS = (
    Plan("vanilla", min_draft_length=4),
    Plan("eagle2", 16, 3),
    Plan("hierarchical", 16, 3, 6),
    Plan("hierarchical", 30, 3, 10),
)
CHANCES = (0.5, 0.6, 0.7, 0.9)  # that are swept beside the fitted ones
AGREEMENTS = (0.5, 0.7, 0.8, 0.95)


@dataclass(frozen=True)
class Parameters:
    """What to decode.

    Attributes:
        model: The target: llama-3-8b or llama-3-70b (`models.synthetic.SHAPES`), or a directory whose shapes are taken.
        intermediate: Likewise (default: none, and only decoding one by one and EAGLE-2 run).
        schemes: Of the target, with commas.
        sweep: More plans, and acceptance over a range.
        head_scheme: Of the EAGLE heads.
        head_vocabulary: Tokens that the heads know (default: all).
        intermediate_scheme: Of the intermediate model.
        accepted_length: Of EAGLE-2's --tree, to which acceptance is fitted (`Shapes.fitted_chances`).
        tree: Nodes and iterations of it, with a comma.
        hierarchical_length: The accepted length of the paper's hierarchy, to which acceptance is fitted, too.
        trees: Shapes of trees, a CSV file, that drafts take (default: those of the tiny models).
        new_tokens: Tokens to decode by each plan.
        prompt_length: Tokens in the cache before.
        processes: Fresh interpreters, each with draws of its own, for intervals.
        seed: Of weights and draws.
        device: cuda or cpu (default: cuda where there is one).
        dtype: What models compute in (default: the target's, `models.device.default_dtype`).
    """

    model: str
    intermediate: str | None = None
    schemes: tuple[str, ...] = ("w4a16-g128",)
    sweep: bool = False
    head_scheme: str = "fp16"
    head_vocabulary: int | None = None
    intermediate_scheme: str = "w4a16-g128"
    accepted_length: float = 3.0
    tree: tuple[int, ...] = (24, 3)
    hierarchical_length: float = 5.1
    trees: Path = Path(RECORDED_TREES)
    new_tokens: int = 512
    prompt_length: int = 512
    processes: int = 3
    seed: int = 0
    device: str = ""  # the GPU, if there is one
    dtype: DType | None = None

    repeats = 1

    def __post_init__(self):
        object.__setattr__(self, "device", choose_device(self.device))

    def check(self) -> None:
        """Raises SpecquantError for an unknown scheme or model, and for numbers out of range."""
        for scheme in (*self.schemes, self.intermediate_scheme):
            get_scheme(scheme)
        head_scheme(self.head_scheme)
        if len(self.tree) != 2:
            raise SpecquantError(f"tree is {self.tree}: give nodes and iterations, such as 24,3")
        for what in ("accepted_length", "hierarchical_length"):
            if not 1 <= getattr(self, what) < math.inf:
                named = what.replace("_", " ")
                raise SpecquantError(f"the {named} is {getattr(self, what)}; it must be a number of at least 1")
        for name in (self.model, self.intermediate):
            if name is not None:
                synthetic_config(name)
        require_at_least(self, processes=1, new_tokens=1, prompt_length=1)
        self.points("fitted")

    def same(self) -> dict[str, Any]:
        names = ("trees", "new_tokens", "prompt_length", "seed")
        same = {name: getattr(self, name) for name in names} | {"device": device_name(self.device)}
        return same | dtype_parameters(self.device, self.dtype)

    def units(self) -> list[dict[str, Any]]:
        about: dict[str, Any] = {"model": Path(self.model).name, "weights": "synthetic"}
        about |= {"head_scheme": self.head_scheme, "head_vocabulary": self.head_vocabulary or 0}
        about |= {"intermediate": Path(self.intermediate).name if self.intermediate else "none"}
        about |= {"intermediate_scheme": self.intermediate_scheme}
        return [
            about | {"scheme": scheme, "chances": chances, "process": process}
            for chances in (("fitted", "swept") if self.sweep else ("fitted",))
            for process in range(self.processes)
            for scheme in self.schemes
        ]

    def points(self, chances: str) -> list[tuple[Plan, Chances]]:
        """The plans to decode, each with chances of acceptance: the fitted ones, or those that a sweep adds."""
        shapes = Shapes.of(read_results(self.trees))
        length = self.hierarchical_length
        nodes, iterations = self.tree
        fitted = shapes.fitted_chances((nodes, iterations), self.accepted_length, hierarchical_length=length)
        without = [] if self.intermediate is not None else methods_with("intermediate")
        paper, more = (
            [plan for plan in plans if plan.method not in without] for plans in (acceptance.PAPER_PLANS, MORE_PLANS)
        )
        if chances == "fitted":
            return [(plan, fitted) for plan in paper]
        one_by_one = [plan for plan in paper if plan.method == "autoregressive"]
        others = [(plan, other) for plan in paper for other in _other_chances(plan, fitted)]
        return [(plan, fitted) for plan in (*one_by_one, *more)] + others


def _other_chances(plan: Plan, fitted: Chances) -> list[Chances]:
    """Chances beside the fitted ones, of what decides about one of the paper's plans."""
    if plan.method == "autoregressive":
        return []
    if plan.method == "eagle2":
        return [replace(fitted, head=[chance]) for chance in CHANCES]
    agreements = [replace(fitted, agreement=agreement) for agreement in AGREEMENTS]
    if plan.method == "vanilla":
        return agreements
    return [*agreements, *(replace(fitted, inner_head=[chance]) for chance in CHANCES[1::2])]


def run(parameters: Parameters, units: Sequence[dict]) -> Iterator[tuple[dict, pd.DataFrame | SpecquantError]]:
    """Decode every plan of each unit in turn; each draft and pass is timed where it stands in decoding."""
    trees = read_results(parameters.trees)
    for unit in units:
        models = SyntheticModels(
            parameters.model,
            parameters.intermediate,
            unit["scheme"],
            parameters.intermediate_scheme,
            parameters.head_scheme,
            parameters.head_vocabulary,
            context_length=parameters.prompt_length + 2 * parameters.new_tokens,
            dtype=named_dtype(parameters.dtype) or default_dtype(parameters.device, unit["scheme"]),
            device=parameters.device,
            seed=parameters.seed,
        )
        seed = parameters.seed + unit["process"]
        points = parameters.points(unit["chances"])
        try:
            rows = replay_plans(models, trees, points, parameters.prompt_length, parameters.new_tokens, seed)
            yield unit, pd.DataFrame(rows)
        except NotEnoughMemory as error:
            yield unit, SpecquantError(f"{unit['model']} in {unit['scheme']} is left out: {error}")
        del models
        gc.collect()
        if parameters.device == "cuda":
            torch.cuda.empty_cache()


def fitted_speedups(rows: pd.DataFrame, shapes: Shapes, over: str = "autoregressive") -> pd.DataFrame:
    """Each plan's speedup at the fitted chances: median, low and high over processes.

    rows: replayed.csv. shapes: that the chances were fitted with. over: "autoregressive", decoding one by one, or
    "eagle2", which stands for the plan of 24 nodes. Times of a step are measured; the accepted length is
    the one that the chances have in the mean.
    """
    told = pd.concat(
        at_fitted_chances(of_process[of_process.chances == "fitted"], shapes).assign(process=process)
        for process, of_process in rows.groupby("process")
    )
    kind = ["model", "scheme", "head_scheme", "head_vocabulary"]
    speeds = told.set_index([*kind, *PLAN_FIELDS, "process"]).expected_speedup
    if over == "eagle2":
        base = told[(told.method == "eagle2") & (told.draft_size == 24)].set_index([*kind, "process"]).expected_speedup
        speeds = speeds / base.reindex(speeds.index.droplevel(list(PLAN_FIELDS))).to_numpy()
    return over_processes(speeds.dropna())


MEASURE = Measure(REPLAYED, Parameters, run, "CUDA events and host clock, sum")
