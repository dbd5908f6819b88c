"""Recording what every method does at true size with replayed acceptance: replayed.csv, scheme by scheme."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from specquant.errors import SpecquantError
from specquant.experiments.acceptance import Chances, Shapes
from specquant.experiments.methods import PAPER_PLANS, Plan
from specquant.experiments.replayed import SyntheticModels, replay_plans
from specquant.experiments.trees import RECORDED_TREES
from specquant.models.device import choose_device
from specquant.models.memory import NotEnoughMemory
from specquant.paths import resolve
from specquant.study.record import free, recorded_rows
from specquant.study.results import read_results, write_results

# Around the paper's choices, to compare predictions with.
MORE_PLANS = (
    Plan("vanilla", min_draft_length=4),
    Plan("eagle2", 16, 3),
    Plan("hierarchical", 16, 3, 6),
    Plan("hierarchical", 30, 3, 10),
)
CHANCES = (0.5, 0.6, 0.7, 0.9)  # that are swept beside the fitted ones
AGREEMENTS = (0.5, 0.7, 0.8, 0.95)


def record_replayed(
    target: str | Path,
    intermediate: str | Path | None,
    schemes: Sequence[str],
    out_dir: str | Path,
    sweep: bool = False,
    head_scheme: str = "fp16",
    head_vocabulary: int | None = None,
    accepted_length: float = 3.0,
    tree: tuple[int, int] = (24, 3),
    hierarchical_length: float = 5.1,
    trees: str | Path = RECORDED_TREES,
    new_tokens: int = 512,
    prompt_length: int = 512,
    device: str = "cuda",
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> Path:
    """Run the paper's plans on random weights of true shapes in each scheme; returns the path of replayed.csv.

    target, intermediate: names in `models.synthetic.SHAPES` or model directories; without an intermediate model only
    decoding one by one and EAGLE-2 run. The chances are fitted (`Shapes.fitted_chances`): accepted_length is that of
    EAGLE-2 with this `tree` (nodes and iterations), hierarchical_length that of the paper's hierarchy. sweep: other
    plans and chances, too. Written after every row; a target in a scheme with a kind of head that is there already is
    not measured again. Raises SpecquantError where the table holds rows of other parameters, there is no such device,
    and where no scheme fits it.
    """
    device, shapes = choose_device(device), read_results(trees, table="trees")
    parameters = {"trees": str(trees), "new_tokens": new_tokens, "seed": seed, "dtype": str(dtype).split(".")[1]}
    path = resolve(out_dir) / "replayed.csv"
    table = recorded_rows(path, parameters)
    fitted = Shapes.of(shapes).fitted_chances(tree, accepted_length, hierarchical_length=hierarchical_length)
    plans = [plan for plan in PAPER_PLANS if intermediate is not None or plan.method in ("autoregressive", "eagle2")]
    if sweep:
        plans += [plan for plan in MORE_PLANS if intermediate is not None or plan.method == "eagle2"]
    points = [(plan, fitted) for plan in plans]
    if sweep:  # last, for what matters most is there first
        points += [(plan, chances) for plan in plans for chances in _other_chances(plan, fitted)]
    for scheme in tqdm(schemes, desc=str(target), unit="scheme"):
        same = _same(table, Path(target).name, scheme, head_scheme, head_vocabulary)
        if same.sum() >= len(points):
            continue
        table = table[~same]
        models = SyntheticModels(
            target,
            intermediate,
            scheme,
            head_scheme=head_scheme,
            head_vocabulary=head_vocabulary,
            context_length=prompt_length + 2 * new_tokens,
            dtype=dtype,
            device=device,
            seed=seed,
        )
        rows = []
        try:
            for row in replay_plans(models, shapes, points, prompt_length, new_tokens, seed):
                rows.append(row)
                whole = pd.concat([table, pd.DataFrame(rows)]) if len(table) else pd.DataFrame(rows)
                write_results(
                    whole, path, parameters, device=device, repeats=1, clock="CUDA events and host clock, sum"
                )
        except NotEnoughMemory as error:
            tqdm.write(f"{target} in {scheme} is left out: {error}", file=sys.stderr)
        if rows:
            table = whole
        del models
        free(device)
    if not len(table):
        raise SpecquantError(f"nothing was measured: no scheme of {target} fits {device}")
    return path


def _other_chances(plan: Plan, fitted: Chances) -> list[Chances]:
    """Chances beside the fitted ones, of what decides about one of the paper's plans."""
    if plan not in PAPER_PLANS or plan.method == "autoregressive":
        return []
    if plan.method == "eagle2":
        return [replace(fitted, head=[chance]) for chance in CHANCES]
    agreements = [replace(fitted, agreement=agreement) for agreement in AGREEMENTS]
    if plan.method == "vanilla":
        return agreements
    return [*agreements, *(replace(fitted, inner_head=[chance]) for chance in CHANCES[1::2])]


def _same(table: pd.DataFrame, target: str, scheme: str, head_scheme: str, head_vocabulary: int | None) -> pd.Series:
    """Which rows of the table are of this target, scheme and kind of head."""
    if not len(table):
        return pd.Series([], dtype=bool)
    same = (table.model == target) & (table.scheme == scheme) & (table.head_scheme == head_scheme)
    return same & (table.head_vocabulary == (head_vocabulary or 0))
