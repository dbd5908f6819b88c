"""Recording what cheaper heads lose."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from specquant.benchmarks.prompts import read_prompts
from specquant.decoding.method import DraftSettings
from specquant.decoding.models import tiny_models
from specquant.experiments.drafting import (
    HEAD_METHODS,
    TINY_HEADS,
    compared_heads,
    describe_head,
    head_costs,
)
from specquant.experiments.targets import quantized_target
from specquant.experiments.throughput import decode_prompts
from specquant.files import resolve
from specquant.models.device import dtype_parameters
from specquant.models.loading import load_tokenizer
from specquant.tables.results import write_results


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
