"""The planner on recorded tables, as `specquant plan` prints it, and on models at hand: `--method auto`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from specquant.benchmarks.prompts import read_prompts
from specquant.decoding.drafters import METHODS, methods_with_trees
from specquant.decoding.method import PAPER_PLANS, PLAN_FIELDS, Plan
from specquant.decoding.models import Models, tiny_models
from specquant.errors import SpecquantError
from specquant.experiments.targets import quantized_target
from specquant.experiments.throughput import CLOCK, by_task, decode_prompts
from specquant.files import resolve
from specquant.models.device import dtype_name, dtype_parameters
from specquant.models.loading import load_tokenizer
from specquant.planning.acceptance import Shapes
from specquant.planning.calibration import COLUMNS, FEWEST, LEVELS, NUMBERS, calibrate, calibrated, described
from specquant.planning.planner import LevelCosts, Planner, against_fixed, measured_costs
from specquant.planning.trees import RECORDED_TREES
from specquant.tables.provenance import device_name
from specquant.tables.results import read_medians, read_provenance, read_results, recorded_rows, write_results

PROMPTS = "data/prompts/prompts.jsonl"
# Plans that are measured to see what the planner's pick among them is worth: the paper's, and what it may find better.
GRID = (
    *PAPER_PLANS,
    *(Plan("vanilla", min_draft_length=length) for length in (2, 3, 4, 8)),
    *(Plan("eagle2", *tree) for tree in ((8, 2), (16, 3))),
    *(Plan("hierarchical", *tree, length) for tree in ((8, 2), (16, 3)) for length in (2, 4, 6)),
)
LARGEST = 10**7  # tokens, or milliseconds, of a step of decoding
REPEATS = 3  # of the grid's measurements, of which the fastest counts: others may use the machine


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
    given: dict[str, Any] = {}
    for name, chance in (chances or {}).items():
        given[name] = chance if name == "agreement" else [chance]
        if not 0 <= chance <= 1:
            raise SpecquantError(f"{name} is {chance}: it is a probability, from 0 to 1")
    passes, drafting = (read_medians(resolve(recorded) / f"{table}.csv") for table in ("verify_cost", "drafting"))
    shapes = Shapes.of(read_results(trees, table="trees"))
    if head_scheme not in set(drafting.head_scheme):
        raise SpecquantError(
            f"drafts of heads in {head_scheme} were not measured, only in {', '.join(drafting.head_scheme.unique())}"
        )

    def costs(model: str) -> LevelCosts:
        return measured_costs(passes, drafting, model, scheme, head_scheme)

    planner = Planner(costs(target), costs(intermediate) if intermediate else None)
    return planner.table(shapes.statistics(replace(shapes.fitted_chances(), **given), fitted_at=(24, 30)))


def write_calibration(
    models: Models, tokenizer: PreTrainedTokenizerBase, path: str | Path, prompts_per_task: int = 1
) -> Path:
    """Decode shipped prompts greedily by every method whose models were given (`calibrate`), and keep the steps at
    `path`, a CSV file, for `choose_plan`."""
    prompts = [prompt["prompt"] for prompt in read_prompts(PROMPTS, prompts_per_task)]
    parameters = {"prompts": PROMPTS, "prompts_per_task": prompts_per_task, "dtype": dtype_name(models.dtype)}
    steps = calibrate(models, tokenizer, prompts, new_tokens=64 * len(prompts))
    return write_results(steps, path, parameters, device=str(models.device))


def read_calibration(path: str | Path, models: Models) -> pd.DataFrame:
    """The steps in a file that `write_calibration` made of these models on such a device.

    Raises SpecquantError where there is none, a damaged one, or one of others.
    """
    if not resolve(path).is_file():
        raise SpecquantError(f"there is no calibration at {path}: make one with specquant calibrate --out {path}")
    steps = read_results(path, COLUMNS, table="calibration")
    _check_steps(steps, path)
    for what, ours in described(models).items():
        if (theirs := str(steps[what].iloc[0])) != str(ours):
            raise SpecquantError(f"{path} was measured with {what} {theirs}, not {ours}: calibrate again")
    provenance = read_provenance(path)
    theirs, ours = provenance["device"], device_name(str(models.device))
    if theirs != ours:
        raise SpecquantError(f"{path} was measured on {theirs}, not on {ours}: calibrate again")
    theirs, ours = provenance["parameters"].get("dtype"), dtype_name(models.dtype)
    if theirs != ours:
        raise SpecquantError(
            f"{path} was measured in {theirs or 'a dtype that it does not name'}, not in {ours}: calibrate again"
        )
    return steps


def _check_steps(steps: pd.DataFrame, path: str | Path) -> None:
    """Raises SpecquantError, with the line, where a step is none that `calibrate` could have written."""
    trees = steps.method.isin(methods_with_trees())
    wrong = {
        "a number that is too large": (steps[list(NUMBERS)] > LARGEST).any(axis=1),
        "an unknown method or level": ~(steps.method.isin(METHODS) & steps.level.isin(LEVELS)),
        "a tree of no nodes or no iterations": trees & (steps[["draft_size", "iterations"]] < 1).any(axis=1),
        "more accepted tokens than drafts": steps.accepted > steps.drafts,
    }
    for what, where in wrong.items():
        if where.any():
            raise SpecquantError(f"{path} holds {what} in line {int(where.idxmax()) + 2}: calibrate again")
    if (steps.method == "autoregressive").sum() < FEWEST:
        raise SpecquantError(f"{path} holds fewer than {FEWEST} steps of decoding one by one: calibrate again")


def plans_of(models: Models, steps: pd.DataFrame) -> pd.DataFrame:
    """What every plan whose models were given would reach, the fastest first: as `plan_table`, from a calibration."""
    planner, statistics = calibrated(steps)
    given = models.given_methods()
    plans = [plan for plan in planner.plans(statistics) if plan.method in given]
    return planner.table(statistics, plans)


def choose_plan(
    models: Models,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    calibration: str | Path | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> tuple[Plan, dict[str, float]]:
    """The fastest plan, and the predicted tokens per second of each method's fastest, by what they are called.

    By a file (`write_calibration`), or by decoding some tokens behind the prompt now; where its text ends soon or fills
    the context, behind shipped ones, too.
    """
    if calibration is not None:
        steps = read_calibration(calibration, models)
    else:
        prompts: list[str | Sequence[int]] = [prompt, *(shipped["prompt"] for shipped in read_prompts(PROMPTS, 1))]
        steps = calibrate(models, tokenizer, prompts, temperature=temperature, top_p=top_p)
    table = plans_of(models, steps)
    best = table.drop_duplicates("method")
    plans = [Plan(*row) for row in best[list(PLAN_FIELDS)].itertuples(index=False, name=None)]
    return plans[0], {str(plan): speed for plan, speed in zip(plans, best.tokens_per_s.tolist(), strict=True)}


def record_plans(
    models_dir: str | Path,
    schemes: Sequence[str],
    out_dir: str | Path,
    keep_targets_in: str | Path,
    name: str = "tiny",
    prompts_per_task: int = 2,
    max_new_tokens: int = 64,
    device: str = "cpu",
    plans: Sequence[Plan] = GRID,
) -> Path:
    """Decode the prompts of each task by every plan, with the target in each scheme, and predict that by a calibration.

    Writes plans.csv below `out_dir` after each scheme: a row for each scheme, task and plan, with tokens_per_s and
    predicted_tokens_per_s. The calibration decodes the same prompts as far, by fewer plans. A scheme that the table
    holds is not measured again. Models compute in the target's default dtype. Returns its path. Raises SpecquantError
    where it holds rows of other parameters.
    """
    parameters: dict[str, Any] = {"models_dir": models_dir, "prompts": PROMPTS, "prompts_per_task": prompts_per_task}
    parameters |= {"max_new_tokens": max_new_tokens, "plans": [str(plan) for plan in plans]}
    parameters |= dtype_parameters(device)
    path = resolve(out_dir) / "plans.csv"
    table = recorded_rows(path, parameters)
    tasks = pd.DataFrame(read_prompts(PROMPTS, prompts_per_task)).groupby("task", sort=False)
    missing = [scheme for scheme in schemes if scheme not in set(table.scheme)]
    for scheme in tqdm(missing, desc="schemes", unit="scheme"):
        target = quantized_target(resolve(models_dir) / "target", scheme, keep_targets_in)
        models, tokenizer = tiny_models(models_dir, target, device=device), load_tokenizer(target)
        parts = [table] if len(table) else []
        for _, prompts in tasks:
            texts, chosen = prompts.prompt.tolist(), prompts.to_dict("records")
            steps, decoded = [], []
            for _ in range(REPEATS):
                steps.append(calibrate(models, tokenizer, texts, max_new_tokens * len(texts), max_new_tokens))
                decoded.append(decode_prompts(models, tokenizer, chosen, plans, name, max_new_tokens=max_new_tokens))
            planner, statistics = calibrated(fastest(steps))
            predicted = planner.table(statistics).set_index(list(PLAN_FIELDS)).tokens_per_s
            measured = by_plan(pd.concat(decoded, ignore_index=True))
            parts.append(measured.join(predicted.rename("predicted_tokens_per_s"), on=list(PLAN_FIELDS)))
        table = pd.concat(parts, ignore_index=True)
        write_results(table, path, parameters, device=device, repeats=REPEATS, clock=CLOCK)
    return path


def fastest(repeats: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Of a calibration that was repeated, every step with the least times that it took: decoding takes the same steps
    each time."""
    times = [column for column in NUMBERS if column.endswith("_ms")]
    least = pd.concat([steps[times] for steps in repeats]).groupby(level=0).min()
    return repeats[0].assign(**least)


def by_plan(decoded: pd.DataFrame) -> pd.DataFrame:
    """As `throughput.by_task`, a row for each plan, from rows of `decode_prompts` whose methods are plans.

    Of prompts that were decoded more than once, the fastest time counts.
    """
    fastest = decoded.sort_values("decode_ms").drop_duplicates(["scheme", "method", "id"]).sort_index()
    table = by_task(fastest).rename(columns={"draft_size": "mean_draft_size"})
    plans = pd.DataFrame([asdict(plan) for plan in table.method])
    return table.drop(columns=["method", "speedup"]).join(plans)


def plans_against_fixed(plans: pd.DataFrame) -> pd.DataFrame:
    """What the planner picks for each scheme, over all tasks ("overall") and for each task, beside the paper's fixed
    choices (`against_fixed`), from the table of `record_plans`. A speed over all tasks is for as much text of each."""
    speeds = plans.groupby(["scheme", *PLAN_FIELDS], sort=False)[["tokens_per_s", "predicted_tokens_per_s"]]
    overall = speeds.agg(lambda of_tasks: len(of_tasks) / (1 / of_tasks).sum(skipna=False)).reset_index()
    groups = pd.concat([overall.assign(task="overall"), plans]).groupby(["scheme", "task"], sort=False)
    return pd.DataFrame([{"scheme": scheme, "task": task} | against_fixed(rows) for (scheme, task), rows in groups])
