"""A target that its own copy in fewer bits drafts for: what that gains at true size, and what shorter drafts would.

Acceptance is SmolLM2's with its own copy in W4A16 (`SMOLLM2`), replayed on models of true size with random weights.
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from specquant.decoding.method import Plan, plans_in
from specquant.files import project_root
from specquant.planning.traces import Traces, over_tasks
from specquant.study.claims import HEADS, HIERARCHY, RECORDED
from specquant.tables.intervals import PROCESS, ends, in_words, interval, over_processes
from specquant.tables.results import read_results
from specquant.tables.speed import speed
from specquant.tables.style import size_label

SMOLLM2 = {"": "smollm2/self-w4a16-g128", ", shared cache": "smollm2/self-w4a16-g128-shared"}
REPLAYED = {"": "traced-self", ", shared cache": "traced-self-shared"}  # with the acceptance of these
TARGET = ["model", "scheme"]
VANILLA = Plan("vanilla", min_draft_length=6)
TREE = 60  # nodes of EAGLE-2's
PLANS = (Plan("autoregressive"), VANILLA, HIERARCHY, Plan("eagle2", TREE, 6))
LENGTHS = range(1, VANILLA.min_draft_length + 1)
ALL_ACCEPTED = "all accepted"
COLUMNS = {
    "vanilla": "vanilla",
    "vanilla, shared cache": "vanilla, shared cache",
    "hierarchical": "hierarchical",
    "eagle2": f"EAGLE-2, {TREE} nodes, without a copy",
}
PREDICTED = "predicted: shared cache, the best length"


def replayed(recorded: str | Path = RECORDED) -> dict[str, pd.DataFrame]:
    """replayed.csv by what is shared: of models that their own copies in W4A16 draft for."""
    folder, tables = project_root() / recorded, {}
    for shared, name in REPLAYED.items():
        rows = _of_plans(read_results(folder / name / "replayed.csv")).query("intermediate == model")
        tables[shared] = rows[(rows.intermediate_scheme == HEADS) & (rows.head_scheme == HEADS)]
    return tables


def _of_plans(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the plans that are told of; of replays those by traces."""
    rows = rows[rows.chances == "traced"] if "chances" in rows else rows
    return rows[[plan in PLANS for plan in plans_in(rows)]]


def speedups(recorded: str | Path = RECORDED) -> pd.DataFrame:
    """Speedups over decoding one by one, by (model, scheme, method): median, low and high over processes.

    Methods are "vanilla", "vanilla, shared cache" and "hierarchical"; "eagle2" is the target's own head with a tree of
    60 nodes, without a copy, on what SmolLM2 accepted of it.
    """
    others = _of_plans(read_results(project_root() / recorded / "traced/replayed.csv"))
    others = others[others.method.isin(["autoregressive", "eagle2"]) & (others.head_scheme == HEADS)]
    tables = replayed(recorded)
    targets = tables[""].set_index(TARGET).index.unique()
    parts = []
    for shared, rows in [*tables.items(), ("", others)]:
        speeds = rows.set_index([*TARGET, PROCESS, "method"]).tokens_per_s.unstack()
        ratios = speeds.drop(columns="autoregressive").div(speeds.autoregressive, axis=0)
        parts.append(ratios.rename(columns=lambda method, shared=shared: f"{method}{shared}").stack())
    told = over_processes(pd.concat(parts).reorder_levels([*TARGET, "method", PROCESS]).rename("speedup"))
    return told[told.index.droplevel("method").isin(targets)].sort_index()


def shorter_drafts(recorded: str | Path = RECORDED) -> pd.DataFrame:
    """The speedups **predicted** of drafts of 1 to 6 tokens, by (model, scheme, what is shared) and length.

    Of each recorded draft of 6 tokens counts what was accepted of its first ones. A pass of the copy takes as long as
    in the replay of whole drafts, and so does the target's. In the last column, `ALL_ACCEPTED`, 6 are always accepted.
    """
    told = {}
    traced = {shared: read_results(project_root() / recorded / name / "traces.csv") for shared, name in SMOLLM2.items()}
    for (model, scheme, shared), whole, alone in _medians(recorded):
        accepted = Traces(traced[shared], scheme).sequences(VANILLA)
        lengths = [VANILLA.min_draft_length if kept is None else kept for kept in accepted]
        for length in LENGTHS:
            tokens = 1 + sum(min(kept, length) for kept in lengths) / len(lengths)
            draft_ms = whole.draft_ms * length / VANILLA.min_draft_length
            step_ms = draft_ms + whole.verify_ms + whole.other_ms
            told[model, scheme, shared, length] = speed(tokens, step_ms) / alone.tokens_per_s
        told[model, scheme, shared, ALL_ACCEPTED] = speed(1 + length, step_ms) / alone.tokens_per_s
    return pd.Series(told).rename_axis([*TARGET, "shared", "length"]).unstack()


def share_of_target(recorded: str | Path = RECORDED) -> pd.Series:
    """The time of a token of the copy's draft over that of the target's pass over one token: medians over processes, by
    (model, scheme, what is shared)."""
    return pd.Series(
        {
            place: whole.draft_ms / VANILLA.min_draft_length / alone.verify_ms
            for place, whole, alone in _medians(recorded)
        }
    )


def _medians(recorded: str | Path) -> Iterator[tuple[tuple[str, str, str], pd.Series, pd.Series]]:
    """For each (model, scheme, what is shared) the medians over processes of drafting by the copy alone, and of
    decoding one by one."""
    for shared, rows in replayed(recorded).items():
        for (model, scheme), of_target in rows.groupby(TARGET):
            medians = of_target.groupby("method").median(numeric_only=True)
            yield (str(model), str(scheme), shared), medians.loc["vanilla"], medians.loc["autoregressive"]


def acceptance(recorded: str | Path = RECORDED) -> pd.DataFrame:
    """SmolLM2's over all of Spec-Bench, by (scheme, method): accepted length and agreement, with intervals."""
    parts = []
    for shared, name in SMOLLM2.items():
        rows = _of_plans(read_results(project_root() / recorded / name / "acceptance.csv"))
        together = over_tasks(rows.query("model == 'smollm2' and benchmark == 'spec-bench' and temperature == 0"))
        parts.append(together.assign(method=together.method + shared))
    columns = [*interval("accepted_length"), *interval("acceptance_rate"), "questions"]
    return pd.concat(parts).set_index(["scheme", "method"])[columns].sort_index()


def cells(recorded: str | Path = RECORDED) -> dict[str, dict[str, str]]:
    """The speedups as texts: the columns' by their names, of each target; and the best length that is predicted."""
    told: dict[str, dict[str, str]] = {}
    for (model, scheme, method), row in speedups(recorded).iterrows():
        told.setdefault(f"{size_label(model)} {scheme}", {})[COLUMNS[method]] = in_words(row)
    for (model, scheme, shared), row in shorter_drafts(recorded)[list(LENGTHS)].iterrows():
        if shared:
            best = row.idxmax()
            told[f"{size_label(model)} {scheme}"][PREDICTED] = f"{row.max():.2f}, {best} token{'s' if best > 1 else ''}"
    *others, tree = COLUMNS.values()
    columns = [*others, PREDICTED, tree]
    return {name: {column: row[column] for column in columns if column in row} for name, row in told.items()}


def _of_speedups() -> dict[str, float]:
    """ "own copy 8B fp16, vanilla": its speedup; "low" and "high" over processes. "best": of drafts of the best length,
    "all accepted": if each draft of 6 tokens were. "own copy over its target, least %": `share_of_target`."""
    known = ends("own copy over its target", 100 * share_of_target(), " %")
    for (model, scheme, method), row in speedups().iterrows():
        name = f"own copy {size_label(model)} {scheme}, {method}"
        known |= {name: row["median"], f"{name}, low": row.low, f"{name}, high": row.high}
    for (model, scheme, shared), row in shorter_drafts().iterrows():
        name = f"own copy {size_label(model)} {scheme}, vanilla{shared}"
        known |= {f"{name}, best": row[list(LENGTHS)].max(), f"{name}, all accepted": row[ALL_ACCEPTED]}
    return known


def _of_acceptance() -> dict[str, float]:
    """ "own copy accepts fp16, vanilla": SmolLM2's accepted length; "agrees %": how often its copy has its token."""
    known: dict[str, float] = {}
    for (scheme, method), row in acceptance().iterrows():
        name = f"own copy accepts {scheme}, {method}"
        known |= {name: row.accepted_length, f"{name}, low": row.accepted_length_low}
        known |= {f"{name}, high": row.accepted_length_high, f"{name}, agrees %": 100 * row.acceptance_rate}
    return known


# What computes them, and the recorded tables that they follow from.
SOURCES = (
    (
        _of_speedups,
        (
            *(f"h200/{name}/replayed" for name in ("traced", *REPLAYED.values())),
            *(f"h200/{name}/traces" for name in SMOLLM2.values()),
        ),
    ),
    (_of_acceptance, tuple(f"h200/{name}/acceptance" for name in SMOLLM2.values())),
)
