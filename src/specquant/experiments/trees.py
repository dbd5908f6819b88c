"""The trees that trained EAGLE heads grow, and how far their models follow them: what replayed acceptance rests on."""

from collections.abc import Sequence

import pandas as pd
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from specquant.decoding import generate
from specquant.decoding.method import DraftSettings
from specquant.decoding.models import Models
from specquant.errors import SpecquantError


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
