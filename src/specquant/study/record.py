"""Long measurements, recorded scheme by scheme: what is there is kept, and a second call adds only what is missing."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from specquant.errors import SpecquantError
from specquant.experiments import kernels
from specquant.experiments.methods import METHODS, DraftSettings, tiny_models
from specquant.experiments.targets import quantized_target
from specquant.experiments.throughput import by_task, decode_prompts, losslessness, read_prompts
from specquant.models.loading import load_tokenizer
from specquant.paths import resolve, write_file
from specquant.study.provenance import without_local_paths
from specquant.study.results import read_provenance, read_results, write_results

TABLES = ("throughput", "losslessness")
CLOCK = "time.perf_counter, sum over steps"


def record_throughput(
    models_dir: str | Path,
    schemes: Sequence[str],
    out_dir: str | Path,
    keep_targets_in: str | Path,
    name: str = "tiny",
    prompts: str | Path = "data/prompts/prompts.jsonl",
    prompts_per_task: int | None = None,
    max_new_tokens: int = 64,
    dtype: str = "float64",
) -> list[Path]:
    """Decode the prompts greedily by every method on the target in each scheme; returns the tables' paths.

    Writes throughput.csv (a row per scheme, method and task) and losslessness.csv (a row per scheme and method) below
    `out_dir`, each with its provenance, after every scheme. Schemes that they hold already are not measured again.
    Raises SpecquantError where they hold rows of other parameters.
    """
    settings = DraftSettings()
    parameters = {
        "models_dir": models_dir,
        "prompts": prompts,
        "prompts_per_task": prompts_per_task,
        "max_new_tokens": max_new_tokens,
        "dtype": dtype,
        "settings": asdict(settings),
    }
    paths = [resolve(out_dir) / f"{table}.csv" for table in TABLES]
    recorded = {path: _recorded(path, parameters) for path in paths}
    chosen = read_prompts(prompts, prompts_per_task)
    missing = [scheme for scheme in schemes if any(scheme not in set(table.scheme) for table in recorded.values())]
    for scheme in tqdm(missing, desc="schemes", unit="scheme"):
        target = quantized_target(resolve(models_dir) / "target", scheme, keep_targets_in)
        models = tiny_models(models_dir, target, dtype=getattr(torch, dtype))
        tokenizer = load_tokenizer(target)
        rows = decode_prompts(models, tokenizer, chosen, METHODS, name, settings, max_new_tokens)
        for path, table in zip(paths, (by_task(rows), losslessness(rows)), strict=True):
            before = recorded[path]
            recorded[path] = pd.concat([before[before.scheme != scheme], table]) if len(before) else table
            write_results(recorded[path], path, parameters, repeats=1, clock=CLOCK)
    return paths


def record_kernels(
    models: Sequence[str],
    schemes: Sequence[str],
    out_dir: str | Path,
    tune_s: float = 0,
    draft_sizes: Sequence[int] = kernels.DRAFT_SIZES,
    repeats: int = kernels.REPEATS,
) -> list[Path]:
    """Measure every linear product, and what the GPU reaches at best, on this machine's GPU; returns the tables' paths.

    Writes kernels.csv, after every row, and ceilings.csv below `out_dir`. tune_s: seconds to look for better
    configurations in before.
    """
    parameters = {"models": list(models), "schemes": list(schemes), "draft_sizes": list(draft_sizes)}
    how = {"device": "cuda", "repeats": repeats, "clock": "replays of a CUDA graph, median"}
    if tune_s:
        kernels.tune(models, schemes, tune_s)
    ceilings = write_results(kernels.measure_ceilings(repeats), resolve(out_dir) / "ceilings.csv", parameters, **how)
    path, rows = ceilings.with_name("kernels.csv"), []
    for row in kernels.measure_kernels(models, schemes, draft_sizes, repeats):
        rows.append(row)
        write_file(path, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
    return [write_results(pd.DataFrame(rows), path, parameters, **how), ceilings]


def _recorded(path: Path, parameters: dict) -> pd.DataFrame:
    """The rows that a table holds, none where it does not exist."""
    if not path.is_file():
        return pd.DataFrame({"scheme": []})
    theirs, ours = read_provenance(path)["parameters"], without_local_paths(parameters)
    for name, value in ours.items():
        if theirs.get(name) != value:
            raise SpecquantError(
                f"{path} holds rows measured with {name} {theirs.get(name)}, not {value}: choose another folder, or "
                "remove it"
            )
    return read_results(path)
