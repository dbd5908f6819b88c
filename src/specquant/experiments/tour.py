"""One prompt by several methods, as small tables."""

from collections.abc import Mapping

import pandas as pd

from specquant.decoding import Generation
from specquant.experiments.throughput import measurements


def steps_table(generations: Mapping[str, Generation]) -> pd.DataFrame:
    """A row per method: new tokens, target passes after the prompt's, mean draft size and mean accepted length."""
    rows = {method: measurements(generation) for method, generation in generations.items()}
    columns = {
        "new_tokens": "new tokens",
        "steps": "steps",
        "draft_size": "draft size",
        "accepted_length": "accepted length",
    }
    table = pd.DataFrame(rows).T[list(columns)].rename(columns=columns)
    return table.astype({"new tokens": int, "steps": int}).round(2)


def rounds_table(generation: Generation) -> pd.DataFrame:
    """A row per step of a hierarchy: what each inner round accepted, what the target then verified and accepted."""
    table = pd.DataFrame(
        {
            "accepted in each round": " + ".join(map(str, step.inner_accepted_lengths)),
            "draft size": len(step.tree),
            "accepted length": length,
        }
        for step, length in zip(generation.steps, generation.accepted_lengths, strict=True)
    )
    table.index = pd.RangeIndex(1, len(table) + 1, name="step")
    return table
