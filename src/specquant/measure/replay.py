"""How fast is each method at true size? Every pass really runs, on random weights; acceptance is replayed."""

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from specquant.decoding.drafters import methods_with
from specquant.decoding.method import PLAN_FIELDS, Plan
from specquant.errors import SpecquantError
from specquant.experiments.replayed import SyntheticModels, at_fitted_chances, replay_plans
from specquant.measure.checks import require_at_least
from specquant.measure.measure import Measure
from specquant.models.device import choose_device, default_dtype, dtype_parameters, named_dtype
from specquant.models.memory import NotEnoughMemory
from specquant.models.synthetic import synthetic_config
from specquant.planning import acceptance
from specquant.planning.acceptance import Chances, Shapes
from specquant.planning.trees import RECORDED_TREES
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

    model, intermediate: names in `models.synthetic.SHAPES` or model directories, whose shapes are taken; without an
    intermediate model only decoding one by one and EAGLE-2 run. head_scheme, head_vocabulary: of the EAGLE heads; None:
    all tokens. The chances of acceptance are fitted (`Shapes.fitted_chances`): accepted_length is that of EAGLE-2 with
    this `tree` (nodes and iterations), hierarchical_length that of the paper's hierarchy. sweep: more plans, and
    chances over a range. processes: fresh interpreters, each with draws of its own. dtype: that models compute in
    (default: the target's, `models.device.default_dtype`).
    """

    model: str
    intermediate: str | None = None
    schemes: tuple[str, ...] = ("w4a16-g128",)
    sweep: bool = False
    head_scheme: str = "fp16"
    head_vocabulary: int | None = None
    intermediate_scheme: str = "w4a16-g128"
    accepted_length: float = 3.0
    tree: tuple[int, int] = (24, 3)
    hierarchical_length: float = 5.1
    trees: str = str(RECORDED_TREES)
    new_tokens: int = 512
    prompt_length: int = 512
    processes: int = 3
    seed: int = 0
    device: str = ""  # the GPU, if there is one
    dtype: str | None = None

    repeats = 1

    def __post_init__(self):
        object.__setattr__(self, "device", choose_device(self.device))

    def check(self) -> None:
        """Raises SpecquantError for an unknown scheme or model, and for numbers out of range."""
        for scheme in (*self.schemes, self.head_scheme, self.intermediate_scheme):
            get_scheme(scheme)
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
        fitted = shapes.fitted_chances(self.tree, self.accepted_length, hierarchical_length=length)
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
