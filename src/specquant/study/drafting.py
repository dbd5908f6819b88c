"""Recording what drafting costs, and what cheaper heads lose."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from specquant.errors import SpecquantError
from specquant.experiments import kernels
from specquant.experiments.drafting import (
    HEAD_METHODS,
    HEADS,
    INNER_ACCEPTANCE,
    INNER_TREE,
    TINY_HEADS,
    TREES,
    compared_heads,
    describe_head,
    draft_cost,
    head_costs,
    inner_rounds,
)
from specquant.experiments.methods import DraftSettings, tiny_models
from specquant.experiments.targets import quantized_target
from specquant.experiments.throughput import decode_prompts, read_prompts
from specquant.experiments.trees import RECORDED_TREES, tree_shapes, trees_of
from specquant.models.device import choose_device
from specquant.models.loading import load_tokenizer
from specquant.models.synthetic import SHAPES, synthetic_config, synthetic_ends, synthetic_head, synthetic_model
from specquant.paths import resolve
from specquant.study.results import read_results, write_results

CONTEXT_LENGTH = 512
INNER_MODEL, INNER_SCHEME = "llama-3-8b", "w4a16-g128"


def record_drafting(
    models: Sequence[str],
    out_dir: str | Path,
    confirmed_rows: int = 4,
    repeats: int = 50,
    device: str | None = None,
) -> list[Path]:
    """Time EAGLE-2 drafts, and the hierarchy's inner rounds, with random weights of true sizes; returns the tables.

    models: names in `models.synthetic.SHAPES`. Writes drafting.csv below `out_dir`, a row for each model, head and tree
    of the paper; and, where the 8B model is among them, rounds.csv, a row for each head: it drafts for the model in
    W4A16. A head that knows some tokens alone knows the first ones, for random weights have no frequent ones. Only
    embedding and LM head of a model are made to draft for it. Both tables are written after every row. Raises
    SpecquantError for an unknown name, or where there is too little memory.
    """
    unknown = [name for name in models if name not in SHAPES]
    if unknown or not models:
        raise SpecquantError(
            f"there are no shapes for {', '.join(unknown) or 'no model'}: choose of {', '.join(SHAPES)}"
        )
    device = choose_device(device)
    dtype = torch.float16 if device == "cuda" else torch.float32
    parameters = {"context_length": CONTEXT_LENGTH, "weights": "synthetic", "dtype": str(dtype).removeprefix("torch.")}
    how = {"device": device, "repeats": repeats, "clock": "time.perf_counter around a draft, median"}
    bandwidth_tb_s = None
    if device == "cuda":
        bandwidth_tb_s = kernels.measure_ceilings(device=device).set_index("what").value["read-only stream"]
        parameters["read_bandwidth_tb_s"] = float(bandwidth_tb_s)
    paths, rows, rounds = [resolve(out_dir) / "drafting.csv"], [], []
    for name in tqdm(models, desc="models", unit="model"):
        config = synthetic_config(name)
        ends = synthetic_ends(config, CONTEXT_LENGTH + 64, dtype, device)
        for head_options in HEADS:
            head = synthetic_head(config, ends, *head_options)
            for tree in TREES:
                row = {"model": name, "weights": "synthetic"} | describe_head(*head_options, config)
                row |= draft_cost(head, *tree, confirmed_rows, CONTEXT_LENGTH, repeats)
                if bandwidth_tb_s is not None:
                    row["floor_ms"] = row["bytes"] / bandwidth_tb_s / 1e9
                rows.append(row)
                write_results(pd.DataFrame(rows), paths[0], parameters, **how)
            del head
        del ends
    if INNER_MODEL in models:
        trees = read_results(resolve(RECORDED_TREES))
        shapes = tree_shapes(trees_of(trees, "intermediate"), *INNER_TREE)
        parameters |= {"acceptance": INNER_ACCEPTANCE, "trees": RECORDED_TREES}
        how["clock"] = "CUDA events for drafts, time.perf_counter for the rest, medians of steps"
        paths.append(paths[0].with_name("rounds.csv"))
        config = synthetic_config(INNER_MODEL)
        model = synthetic_model(config, INNER_SCHEME, CONTEXT_LENGTH + 1024, dtype, device)
        for head_options in HEADS:
            head = synthetic_head(config, model, *head_options)
            row = {"model": INNER_MODEL, "scheme": INNER_SCHEME, "weights": "synthetic", "acceptance": "replayed"}
            row |= describe_head(*head_options, config)
            rounds.append(row | inner_rounds(model, head, shapes, CONTEXT_LENGTH, 2 * repeats))
            write_results(pd.DataFrame(rounds), paths[1], parameters, **how)
            del head
    return paths


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

    A row for each of the target's schemes, head and method: see `head_costs`. Models compute in float32. Written after
    every head.
    """
    parameters = {"models_dir": models_dir, "prompts": prompts, "prompts_per_task": prompts_per_task}
    parameters |= {"max_new_tokens": max_new_tokens, "dtype": "float32", "settings": asdict(DraftSettings())}
    parameters |= {"tokens_counted_in": "calibration.txt"}
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
