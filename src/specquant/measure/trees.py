"""The trees that trained EAGLE heads grow, and how far their models follow them: what replayed acceptance rests on."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from specquant.benchmarks.prompts import read_prompts
from specquant.decoding import generate
from specquant.decoding.method import DraftSettings
from specquant.decoding.models import Models, tiny_models
from specquant.errors import SpecquantError
from specquant.files import resolve
from specquant.models.device import dtype_name
from specquant.models.loading import load_tokenizer
from specquant.tables.results import write_results

# Nodes and iterations of trees. In the paper: 60 and 6 on 8B, 48 and 6 on 70B, 24 and 3 on 70B for Spec-Bench,
# and 30 and 3 on the hierarchy's intermediate model.
TARGET_TREES = tuple((size, depth) for depth in (2, 3, 4, 6, 8) for size in (8, 16, 24, 32, 48, 60))
INNER_TREES = tuple((size, depth) for depth in (2, 3, 4) for size in (8, 16, 30))


def drafted_trees(
    models: Models,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[dict[str, str]],
    settings: DraftSettings,
    max_new_tokens: int = 64,
    most: int = 24,
) -> pd.DataFrame:
    """Decode prompts by EAGLE-2 on trained weights, and keep at most `most` of its trees of full size, spread evenly.

    Returns a row for each tree: model (`name`), scheme, weights, draft_size, iterations, accepted_length (the token
    that the model added included) and parents: those of the tree's nodes, with spaces between them. Raises
    SpecquantError where no tree is of full size.
    """
    speculator, rows = models.speculator("eagle2", settings), []
    for prompt in tqdm(prompts, desc=f"{name}, {settings.draft_size} nodes", unit="prompt", leave=False):
        for step in generate(speculator, tokenizer, prompt["prompt"], max_new_tokens).steps:
            if len(step.tree) == settings.draft_size:
                parents = " ".join(str(parent) for parent in step.tree.parents.tolist())
                rows.append({"accepted_length": step.accepted_length, "parents": parents})
    about = {"model": name, "scheme": models.target.scheme.name, "weights": "trained"}
    about |= {"draft_size": settings.draft_size, "iterations": settings.iterations}
    if not rows:
        raise SpecquantError(f"no prompt gave a tree of {settings.draft_size} nodes: decode more tokens")
    chosen = pd.DataFrame(rows[:: -(-len(rows) // most)])
    return chosen.assign(**about)[[*about, "accepted_length", "parents"]]


def acceptance_by_depth(accepted_lengths: pd.Series) -> pd.Series:
    """The probability that a node is accepted at each depth, from 1 on, once one was at the depth before."""
    reached = pd.Series(
        {depth: (accepted_lengths > depth).mean() for depth in range(int(accepted_lengths.max()))}, dtype=float
    )
    return (reached / reached.shift()).iloc[1:]


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
