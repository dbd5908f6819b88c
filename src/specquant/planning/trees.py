"""The recorded trees (trees.csv) of trained EAGLE heads: which model's they are, and their shapes."""

import pandas as pd

from specquant.errors import SpecquantError

# Those of the tiny models, which stand in for all others.
RECORDED_TREES = "data/recorded/cpu/trees.csv"


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
            + ": record them (specquant bench trees)"
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
