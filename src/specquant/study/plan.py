"""The planner on recorded tables: what `specquant plan` prints."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from specquant.errors import SpecquantError
from specquant.experiments.acceptance import Shapes
from specquant.experiments.planner import Planner, measured_costs
from specquant.experiments.trees import RECORDED_TREES
from specquant.paths import resolve
from specquant.study.results import read_results


def plan_table(
    recorded: str | Path,
    target: str,
    intermediate: str | None = None,
    scheme: str = "w4a16-g128",
    head_scheme: str = "fp16",
    chances: Mapping[str, float] | None = None,
    trees: str | Path = RECORDED_TREES,
) -> pd.DataFrame:
    """Every plan for a target and an intermediate model on the GPU whose costs are in `recorded`, the fastest first.

    chances: "head" in trees of 24 nodes, "inner_head" in trees of 30, "agreement"; missing ones are fitted
    (`Shapes.fitted_chances`). Bookkeeping between passes is left out. Raises SpecquantError where a chance is no
    probability, a table is missing, or a model was not measured in the scheme.
    """
    chances = dict(chances or {})
    for name, chance in chances.items():
        if not 0 <= chance <= 1:
            raise SpecquantError(f"{name} is {chance}: it is a probability, from 0 to 1")
    passes, drafting = (read_results(resolve(recorded) / f"{table}.csv") for table in ("verify_cost", "drafting"))
    shapes = Shapes.of(read_results(trees))
    if head_scheme not in set(drafting.head_scheme):
        raise SpecquantError(
            f"drafts of heads in {head_scheme} were not measured, only in {', '.join(drafting.head_scheme.unique())}"
        )
    costs = [
        measured_costs(passes, drafting, model, scheme, head_scheme) if model else None
        for model in (target, intermediate)
    ]
    heads = {name: [chances.pop(name)] for name in ("head", "inner_head") if name in chances}
    assumed = replace(shapes.fitted_chances(), **heads, **chances)
    return Planner(*costs).table(shapes.statistics(assumed, fitted_at=(24, 30)))
