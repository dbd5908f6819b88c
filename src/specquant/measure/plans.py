"""How fast is each of a grid of plans on trained models, and what does the planner predict of it?"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from specquant.benchmarks.prompts import PROMPTS, read_prompts
from specquant.decoding.method import PAPER_PLANS, PLAN_FIELDS, Plan
from specquant.decoding.models import tiny_models
from specquant.files import resolve
from specquant.measure.throughput import CLOCK, by_task, decode_prompts
from specquant.models.device import dtype_parameters
from specquant.models.loading import load_tokenizer
from specquant.models.targets import quantized_target
from specquant.planning.calibration import NUMBERS, calibrate, calibrated
from specquant.tables.results import recorded_rows, write_results

# Plans that are measured to see what the planner's pick among them is worth: the paper's, and what it may find better.
GRID = (
    *PAPER_PLANS,
    *(Plan("vanilla", min_draft_length=length) for length in (2, 3, 4, 8)),
    *(Plan("eagle2", *tree) for tree in ((8, 2), (16, 3))),
    *(Plan("hierarchical", *tree, length) for tree in ((8, 2), (16, 3)) for length in (2, 4, 6)),
)
REPEATS = 3  # of the grid's measurements, of which the fastest counts: others may use the machine


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
            texts, records = prompts.prompt.tolist(), prompts.to_dict("records")
            steps, decoded = [], []
            for _ in range(REPEATS):
                steps.append(calibrate(models, tokenizer, texts, max_new_tokens * len(texts), max_new_tokens))
                decoded.append(decode_prompts(models, tokenizer, records, plans, name, max_new_tokens=max_new_tokens))
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
    table = by_task(fastest)
    plans = pd.DataFrame([asdict(plan) for plan in table.method])
    return table.drop(columns=["method", "speedup"]).join(plans)
