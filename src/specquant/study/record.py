"""Long measurements, recorded scheme by scheme: what is there is kept, and a second call adds only what is missing."""

import gc
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from specquant.benchmarks.prompts import read_prompts
from specquant.decoding.drafters import PAPER_METHODS
from specquant.decoding.method import DraftSettings
from specquant.decoding.models import Models, tiny_models
from specquant.errors import SpecquantError
from specquant.experiments import kernels
from specquant.experiments.attention_cost import attention_cost, neighbour_cost
from specquant.experiments.compatibility import profile_pass
from specquant.experiments.targets import quantized_target
from specquant.experiments.throughput import CLOCK, by_task, decode_prompts, losslessness
from specquant.experiments.trees import drafted_trees
from specquant.files import resolve, write_file
from specquant.models.device import dtype_name
from specquant.models.loading import load_tokenizer
from specquant.models.memory import NotEnoughMemory
from specquant.models.synthetic import synthetic_config, synthetic_model
from specquant.tables.provenance import device_name
from specquant.tables.results import recorded_rows, write_results

# Nodes and iterations of trees. In the paper: 60 and 6 on 8B, 48 and 6 on 70B, 24 and 3 on 70B for Spec-Bench,
# and 30 and 3 on the hierarchy's intermediate model.
TARGET_TREES = tuple((size, depth) for depth in (2, 3, 4, 6, 8) for size in (8, 16, 24, 32, 48, 60))
INNER_TREES = tuple((size, depth) for depth in (2, 3, 4) for size in (8, 16, 30))
TABLES = ("throughput", "losslessness")


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
    device: str = "cpu",
    row_invariant: bool = False,
    against: str | None = None,
) -> list[Path]:
    """Decode the prompts greedily by every method on the target in each scheme; returns the tables' paths.

    Writes throughput.csv (a row per scheme, method and task) and losslessness.csv (a row per scheme and method) below
    `out_dir`, each with its provenance, after every scheme. Schemes that they hold already are not measured again.
    row_invariant: of the target, see `Llama.make_row_invariant`. against: a dtype; then tokens are compared with those
    that decoding one by one gives in it, else with those that it gives in `dtype`. Raises SpecquantError where the
    tables hold rows of other parameters.
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
    unnamed = {"row_invariant": False, "against": dtype}
    parameters |= {"row_invariant": row_invariant, "against": against or dtype}
    paths = [resolve(out_dir) / f"{table}.csv" for table in TABLES]
    recorded = {path: recorded_rows(path, parameters, unnamed) for path in paths}
    chosen = read_prompts(prompts, prompts_per_task)
    missing = [scheme for scheme in schemes if any(scheme not in set(table.scheme) for table in recorded.values())]
    for scheme in tqdm(missing, desc="schemes", unit="scheme"):
        target = quantized_target(resolve(models_dir) / "target", scheme, keep_targets_in)
        models = tiny_models(
            models_dir, target, dtype=getattr(torch, dtype), device=device, row_invariant=row_invariant
        )
        exact = tiny_models(models_dir, target, dtype=getattr(torch, against), device=device) if against else None
        tokenizer = load_tokenizer(target)
        rows = decode_prompts(models, tokenizer, chosen, PAPER_METHODS, name, settings, max_new_tokens, reference=exact)
        for path, table in zip(paths, (by_task(rows), losslessness(rows)), strict=True):
            before = recorded[path]
            recorded[path] = pd.concat([before[before.scheme != scheme], table]) if len(before) else table
            write_results(recorded[path], path, parameters, device=device, repeats=1, clock=CLOCK)
    return paths


def record_trees(
    models_dir: str | Path,
    out_dir: str | Path,
    name: str = "tiny",
    prompts: str | Path = "data/prompts/prompts.jsonl",
    prompts_per_task: int | None = None,
    max_new_tokens: int = 64,
    target_trees: Sequence[tuple[int, int]] = TARGET_TREES,
    inner_trees: Sequence[tuple[int, int]] = INNER_TREES,
) -> Path:
    """Record shapes of EAGLE-2's trees on trained models, for replayed acceptance and predictions; returns their path.

    Writes trees.csv below `out_dir`. target_trees, inner_trees: nodes and iterations of trees on the target and on the
    intermediate model. Raises SpecquantError as `drafted_trees`.
    """
    family, tokenizer = tiny_models(models_dir), load_tokenizer(resolve(models_dir) / "target")
    inner = Models(family.paths["intermediate"], family.paths["eagle_intermediate"])
    chosen = read_prompts(prompts, prompts_per_task)
    trees = [
        drafted_trees(models, f"{name} {which}", tokenizer, chosen, DraftSettings(*tree), max_new_tokens)
        for models, which, sizes in ((family, "target", target_trees), (inner, "intermediate", inner_trees))
        for tree in tqdm(sizes, desc=which, unit="tree", leave=False)
    ]
    parameters = {"models_dir": models_dir, "prompts": prompts, "prompts_per_task": prompts_per_task}
    parameters |= {"max_new_tokens": max_new_tokens, "dtype": dtype_name(family.dtype)}
    return write_results(pd.concat(trees), resolve(out_dir) / "trees.csv", parameters)


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


def record_row_invariance(
    models: Sequence[str],
    schemes: Sequence[str],
    out_dir: str | Path,
    draft_sizes: Sequence[int] = (1, 16, 32, 64),
    repeats: int = kernels.REPEATS,
) -> Path:
    """Measure the row-invariant products as `record_kernels` does the ordinary ones: kernels_row_invariant.csv."""
    parameters = {"models": list(models), "schemes": list(schemes), "draft_sizes": list(draft_sizes)}
    rows = kernels.measure_kernels(models, schemes, draft_sizes, repeats, row_invariant=True)
    how = {"device": "cuda", "repeats": repeats, "clock": "replays of a CUDA graph, median"}
    return write_results(pd.DataFrame(rows), resolve(out_dir) / "kernels_row_invariant.csv", parameters, **how)


def record_attention(
    out_dir: str | Path,
    draft_sizes: Sequence[int] = (1, 8, 16, 32, 64),
    context_lengths: Sequence[int] = (512, 2048, 4096, 8192, 32768),
    repeats: int = 10,
) -> Path:
    """Measure attention and the other operations between the products at Llama-3-70B's shapes: attention.csv."""
    parameters = {"draft_sizes": list(draft_sizes), "context_lengths": list(context_lengths)}
    parts = attention_cost(draft_sizes, context_lengths, repeats), neighbour_cost(draft_sizes, repeats)
    how = {"device": "cuda", "repeats": repeats, "clock": "replays of a CUDA graph, median"}
    return write_results(pd.concat(parts), resolve(out_dir) / "attention.csv", parameters, **how)


def record_profiles(
    model: str | Path,
    schemes: Sequence[str],
    out_dir: str | Path,
    draft_sizes: Sequence[int] = (1, 60),
    context: int = 512,
    seed: int = 0,
) -> Path:
    """Profile passes of a model's shapes with random weights on the GPU, kernel by kernel; returns pass_profiles.csv.

    model: a directory, or a name in `models.synthetic.SHAPES`. In a process of its own, for what a process times
    after it has profiled may be slower. Written after every scheme, in place of what the table has of it. A
    scheme that does not fit is named on stderr and left out. Raises SpecquantError where there is no GPU, or nothing
    fits.
    """
    kernels.require_gpu("cuda")
    config = synthetic_config(model)
    parameters = {"device": device_name("cuda"), "context": context, "seed": seed}
    path, name = resolve(out_dir) / "pass_profiles.csv", Path(model).name
    table, profiled = recorded_rows(path, parameters), False
    for scheme in tqdm(schemes, desc=name, unit="scheme"):
        try:
            loaded = synthetic_model(config, scheme, context + max(draft_sizes), seed=seed)
        except NotEnoughMemory as error:
            tqdm.write(f"{name} in {scheme} is left out: {error}", file=sys.stderr)
            continue
        rows = pd.concat(profile_pass(loaded, name, "synthetic", size, context) for size in draft_sizes)
        others = table[(table.model != name) | (table.scheme != scheme)] if len(table) else table
        table, profiled = pd.concat([others, rows]) if len(others) else rows, True
        write_results(table, path, parameters, device="cuda", repeats=1, clock="torch.profiler, one pass")
        del loaded
        free("cuda")
    if not profiled:
        raise SpecquantError(f"nothing was profiled: no scheme of {name} fits this GPU")
    return path


def free(device: str) -> None:
    """Give back what the last model held."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
