"""The trees that trained EAGLE heads grow, and how far their models follow them: what replayed acceptance rests on."""

from collections.abc import Sequence

import pandas as pd
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from specquant.decoding import generate
from specquant.errors import SpecquantError
from specquant.experiments.methods import DraftSettings, Models

# Those of the tiny models, which stand in for all others.
RECORDED_TREES = "data/recorded/cpu/trees.csv"


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


def trees_of(trees: pd.DataFrame, which: str) -> pd.DataFrame:
    """The trees of the "target" or of the "intermediate" model, by the end of its name; all where none is named so."""
    rows = trees[trees.model.str.endswith(which)] if "model" in trees else trees
    return rows if len(rows) else trees


def tree_shapes(trees: pd.DataFrame, draft_size: int, iterations: int) -> list[list[int]]:
    """The parents in those rows of `drafted_trees` that have this size. Raises SpecquantError where there are none."""
    rows = trees[(trees.draft_size == draft_size) & (trees.iterations == iterations)]
    if rows.empty:
        sizes = trees[["draft_size", "iterations"]].drop_duplicates().itertuples(index=False)
        raise SpecquantError(
            f"no trees of {draft_size} nodes and {iterations} iterations were recorded, only of "
            + ", ".join(f"{size} and {depth}" for size, depth in sizes)
        )
    return [_parents(text, draft_size) for text in rows.parents]


def _parents(text: str, draft_size: int) -> list[int]:
    """The parents of a tree's nodes, in the order in which nodes follow their parents; the root's is -1."""
    words = text.split()
    if all(word.lstrip("-").isdecimal() for word in words):
        parents = [int(word) for word in words]
        if len(parents) == draft_size and all(0 <= parent < node for node, parent in enumerate(parents) if node):
            return parents
    raise SpecquantError(
        f'the parents of a recorded tree of {draft_size} nodes are "{text[:40]}", which are none: record it again, or '
        "take the table from the repository"
    )


def acceptance_by_depth(accepted_lengths: pd.Series) -> pd.Series:
    """The probability that a node is accepted at each depth, from 1 on, once one was at the depth before."""
    reached = pd.Series(
        {depth: (accepted_lengths > depth).mean() for depth in range(int(accepted_lengths.max()))}, dtype=float
    )
    return (reached / reached.shift()).iloc[1:]
