"""Recording what cheaper heads lose."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from specquant.benchmarks.prompts import read_prompts
from specquant.decoding.drafters import get_method, methods_with_trees
from specquant.decoding.method import DraftSettings
from specquant.decoding.models import tiny_models
from specquant.files import resolve
from specquant.measure.throughput import decode_prompts
from specquant.models.device import dtype_parameters
from specquant.models.eagle import describe_head
from specquant.models.loading import load_tokenizer
from specquant.models.targets import quantized_target
from specquant.tables.results import write_results

# The same of the tiny models, whose vocabulary has 4096 entries: 1024 are as many as 32768 of 128256.
TINY_HEADS = ((None, None), ("w4a16-g128", None), (None, 2048), (None, 1024), ("w4a16-g128", 1024))
# What decodes with each of them: the first gives the tokens that the others must decode as well.
HEAD_METHODS = ("autoregressive", *methods_with_trees())


def record_heads(
    models_dir: str | Path,
    schemes: Sequence[str],
    out_dir: str | Path,
    keep_targets_in: str | Path,
    prompts: str | Path = "data/prompts/prompts.jsonl",
    prompts_per_task: int | None = None,
    max_new_tokens: int = 64,
) -> Path:
    """Decode prompts on trained models with EAGLE heads of fewer bits and tokens; returns the path of heads.csv.

    A row for each of the target's schemes, head and method: see `head_costs`. Models compute in the target's
    default dtype. Written after every head.
    """
    parameters = {"models_dir": models_dir, "prompts": prompts, "prompts_per_task": prompts_per_task}
    parameters |= {"max_new_tokens": max_new_tokens, "settings": asdict(DraftSettings())}
    parameters |= dtype_parameters("cpu") | {"tokens_counted_in": "calibration.txt"}
    path, rows = resolve(out_dir) / "heads.csv", []
    chosen = read_prompts(prompts, prompts_per_task)
    for scheme in schemes:
        target = quantized_target(resolve(models_dir) / "target", scheme, keep_targets_in)
        for head_scheme, head_vocabulary in tqdm(TINY_HEADS, desc=scheme, unit="head"):
            models = tiny_models(models_dir, target, head_scheme=head_scheme, head_vocabulary=head_vocabulary)
            decoded = decode_prompts(models, load_tokenizer(target), chosen, HEAD_METHODS, "tiny", None, max_new_tokens)
            about = describe_head(head_scheme, head_vocabulary, models.target.config)
            rows += [{"scheme": scheme, "weights": "trained"} | about | row for row in head_costs(decoded)]
            write_results(compared_heads(pd.DataFrame(rows)), path, parameters)
    return path


def head_costs(decoded: pd.DataFrame) -> list[dict]:
    """What a head reaches in rows of `throughput.decode_prompts`: one of each method that drafts with a head.

    accepted_length: the target's, tokens a step. head_accepted_length: of the model that verifies the head's trees: the
    target's by EAGLE-2, the intermediate model's in the hierarchy. differing_prompts: whose tokens are not those of
    decoding one by one.
    """
    rows = []
    for method, group in decoded.groupby("method", sort=False):
        if method == "autoregressive":
            continue
        accepted_length = (group.new_tokens - 1).sum() / group.steps.sum()
        head_accepted_length = accepted_length
        if get_method(method).trees_of == "intermediate":
            rounds = group.inner_rounds * group.steps
            head_accepted_length = (group.inner_accepted_length * rounds).sum() / rounds.sum()
        row = {"method": method, "prompts": len(group), "new_tokens": group.new_tokens.sum()}
        row |= {"accepted_length": accepted_length, "head_accepted_length": head_accepted_length}
        rows.append(row | {"differing_prompts": (group.first_difference >= 0).sum()})
    return rows


def compared_heads(rows: pd.DataFrame) -> pd.DataFrame:
    """With `ratio`: of head_accepted_length to that of the first head on the same target by the same method."""
    first = rows.groupby(["scheme", "method"], sort=False).head_accepted_length.transform("first")
    return rows.assign(ratio=rows.head_accepted_length / first)
