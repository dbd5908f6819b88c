"""What each method gains: accepted lengths, where the time of a step goes, tokens per second."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import pandas as pd
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from specquant.benchmarks.prompts import prompt_ids, read_prompts
from specquant.decoding import Generation, acceptance_rule, generate
from specquant.decoding.drafters import PAPER_METHODS
from specquant.decoding.method import DraftSettings, Plan
from specquant.decoding.models import Models, tiny_models
from specquant.files import resolve
from specquant.models.llama import Llama
from specquant.models.loading import load_tokenizer
from specquant.models.targets import quantized_target
from specquant.tables.results import recorded_rows, write_results
from specquant.tables.speed import speed, speedups

CLOCK = "time.perf_counter, sum over steps"  # of `measurements`
TABLES = ("throughput", "losslessness")


def decode_prompts(
    models: Models,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[dict[str, str]],
    methods: Sequence[str | Plan],
    name: str,
    settings: DraftSettings | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    reference: Models | None = None,
) -> pd.DataFrame:
    """Decode every prompt by every method, on trained weights: acceptance is measured.

    Methods take turns on each prompt, so that a machine that grows slower slows all of them. Returns one row for each
    prompt and method. `first_difference` is the position of the first new token that is not that of the first of
    `methods`, or -1; `margin` is then how far apart the logits of the two likeliest tokens are there: rounding decides
    where it is tiny. Above temperature 0 methods draw other tokens of the same distribution, and both say nothing.
    reference: models that compute more exactly; then theirs are the tokens, decoded one by one, and the logits.
    """
    settings = settings or DraftSettings()
    speculators = {method: models.speculator(method, settings) for method in methods}
    exact = reference.speculator("autoregressive") if reference else None
    rows = []
    for prompt in tqdm(prompts, desc=models.target.scheme.name, unit="prompt", leave=False):
        prompt_tokens, expected = prompt_ids(prompt["prompt"], tokenizer), None
        if reference:
            expected = generate(exact, tokenizer, prompt_tokens, max_new_tokens, acceptance_rule(temperature)).token_ids
        for method, speculator in speculators.items():
            generation = generate(speculator, tokenizer, prompt_tokens, max_new_tokens, acceptance_rule(temperature))
            expected = expected or generation.token_ids
            differs = first_difference(expected, generation.token_ids)
            gap = float("nan")
            if differs >= 0:
                gap = margin((reference or models).target, prompt_tokens + expected[:differs])
            rows.append(
                {"model": name, "scheme": models.target.scheme.name, "method": method, "task": prompt["task"]}
                | {"id": prompt["id"], "weights": "trained", "acceptance": "measured"}
                | measurements(generation)
                | {"first_difference": differs, "margin": gap}
            )
    return pd.DataFrame(rows)


def measurements(generation: Generation) -> dict:
    """One row's figures: means over the target's steps; times in milliseconds a step."""
    steps = generation.steps
    rounds = [length for step in steps for length in step.inner_accepted_lengths]

    def mean(values: list[float]) -> float:
        return fmean(values) if values else float("nan")

    return {
        "new_tokens": len(generation.token_ids),
        "steps": len(steps),
        "mean_draft_size": mean([len(step.tree) for step in steps]),
        "accepted_length": mean(generation.accepted_lengths),
        "inner_rounds": len(rounds) / len(steps) if steps else float("nan"),
        "inner_accepted_length": mean(rounds),
        "prefill_ms": generation.prefill_ms,
        "draft_ms": mean([step.draft_ms for step in steps]),
        "verify_ms": mean([step.verify_ms for step in steps]),
        "other_ms": mean([step.other_ms for step in steps]),
        "decode_ms": generation.decode_ms,
        "tokens_per_s": generation.tokens_per_s or float("nan"),
    }


def first_difference(expected: list[int], tokens: list[int]) -> int:
    """The first position where two token lists differ, or -1."""
    for position, (first, second) in enumerate(zip(expected, tokens, strict=False)):
        if first != second:
            return position
    return -1 if len(expected) == len(tokens) else min(len(expected), len(tokens))


@torch.inference_mode()
def margin(model: Llama, tokens: list[int]) -> float:
    """By how much the logit of the likeliest next token exceeds that of the second."""
    features = model.prefill(torch.tensor(tokens, device=model.device), model.new_cache(len(tokens)))
    first, second = model.logits(features[-1]).topk(2).values.tolist()
    return first - second


def losslessness(rows: pd.DataFrame) -> pd.DataFrame:
    """For each scheme and method: prompts, their new tokens, and how many prompts got other tokens than the reference.

    `rows`: from `decode_prompts`. largest_margin: over the prompts that differ, NaN where none does.
    """
    groups = rows.assign(differs=rows.first_difference >= 0).groupby(["scheme", "method", "weights"], sort=False)
    return groups.agg(
        prompts=("id", "size"),
        new_tokens=("new_tokens", "sum"),
        differing_prompts=("differs", "sum"),
        largest_margin=("margin", "max"),
    ).reset_index()


def by_task(rows: pd.DataFrame) -> pd.DataFrame:
    """The throughput table: for each scheme, method and task the mean over prompts, and the speedup.

    tokens_per_s and speedup are by the rules of `tables.speed`.
    """
    keys = ["model", "scheme", "method", "task", "weights", "acceptance"]
    lengths = ["accepted_length", "mean_draft_size", "inner_rounds", "inner_accepted_length"]
    groups = rows.assign(decoded=rows.new_tokens - 1).groupby(keys, sort=False)
    table = groups[[*lengths, "draft_ms", "verify_ms", "other_ms"]].mean()
    table["tokens_per_s"] = speed(groups.decoded.sum(), groups.decode_ms.sum())
    table["prompts"] = groups.size()
    table["speedup"] = speedups(table.tokens_per_s.droplevel(["weights", "acceptance"])).to_numpy()
    return table.reset_index()


def mean_by(table: pd.DataFrame, column: str, values: str | list[str]) -> pd.DataFrame | pd.Series:
    """The mean of some columns for each value of another, in the order in which these first appear."""
    return table.groupby(column, sort=False)[values].mean()


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
