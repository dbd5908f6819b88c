"""The tables of data/recorded/h200/README.md: `specquant claims` writes each from the CSVs beside it."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from specquant.decoding.drafters import by_plan, plan_label
from specquant.decoding.method import PLAN_FIELDS, Plan
from specquant.files import project_root, write_parts
from specquant.measure.adaptive import STATIC
from specquant.measure.planted import longest_runs, losslessness
from specquant.measure.settling import first_passes, steady
from specquant.planning.acceptance import Shapes
from specquant.planning.replayed import fitted_speedups
from specquant.quant import SCHEMES
from specquant.study import own_copies
from specquant.study.claims import HEADS, replays_with
from specquant.tables.intervals import PROCESS, in_each_process, in_words, over_processes, sample
from specquant.tables.markdown import markdown_table
from specquant.tables.results import lacking, read_results, rows_there
from specquant.tables.style import size_label
from specquant.tables.verify_cost import KEYS, pass_growth, pass_times

PAGE = "data/recorded/h200/README.md"
TARGETS = ("llama-3-70b", "llama-3-8b")
RUN = ["model", "scheme", PROCESS]
ALONE, BEHIND, LOST = "draft alone, ms", "draft behind 60 nodes, ms", "the difference, % of the step"
OF_SIX, OF_60, OF_ALL = "over the fastest of six", "over 60 nodes", "over the fastest static size that ran"


def markers(name: str) -> tuple[str, str]:
    """The lines around a table."""
    return f"<!-- table {name}: specquant claims writes it -->", f"<!-- end of table {name} -->"


def write_recorded_tables(tables: Mapping[str, str], root: Path | None = None) -> list[Path]:
    """Write the tables (`told_tables`) anew; returns the files that changed by that.

    Raises SpecquantError where the page has no place for one.
    """
    page = (root or project_root()) / PAGE
    return write_parts(page, "the notes on an H200's tables", {markers(name): table for name, table in tables.items()})


def told_tables(recorded: Path) -> dict[str, str]:
    """Each table in Markdown, by its name.

    Raises SpecquantError where a recorded table is missing or broken, or lacks rows.
    """
    names = ("verify_cost", "attention", "drafting", "rounds", "replayed", "planted", "settling", "adaptive")
    of = {name: read_results(recorded / f"h200/{name}.csv") for name in names}
    at = {f"{size_label(m)} behind {context:,} tokens": (m, context) for m in TARGETS for context in (2048, 8192)}
    shapes = Shapes.of(read_results(recorded / "cpu/trees.csv"))
    copies = own_copies.replayed(recorded / "h200")
    tables: dict[str, tuple[Callable[[], str], tuple[str, ...]]] = {
        "passes": (lambda: passes(of["verify_cost"], {size_label(m): (m, 512) for m in TARGETS}), ("verify_cost",)),
        "contexts": (lambda: passes(of["verify_cost"], at), ("verify_cost",)),
        "settling": (lambda: settling(of["settling"]), ("settling",)),
        "attention": (lambda: attention(of["attention"]), ("attention",)),
        "drafting": (lambda: drafting(of["drafting"], of["rounds"]), ("drafting", "rounds")),
        "replayed": (lambda: replayed(of["replayed"], shapes), ("replayed",)),
        "planted": (lambda: planted(of["planted"]), ("planted",)),
        "adaptive": (lambda: adaptive(of["adaptive"]), ("adaptive",)),
        "copies": (
            lambda: markdown("target", own_copies.cells(recorded / "h200"), *copies.values()),
            tuple(f"{name}/replayed" for name in own_copies.REPLAYED.values()),
        ),
    }
    return {name: _whole(name, make, recorded, of_names) for name, (make, of_names) in tables.items()}


def _whole(name: str, make: Callable[[], str], recorded: Path, of: tuple[str, ...]) -> str:
    """A table, none of whose numbers is missing. of: the recorded tables that it is made of, by which it is refused."""
    places = [str(recorded / f"h200/{each}.csv") for each in of]
    with rows_there(*places):
        told = make()
    if torn := [line for line in told.splitlines() if re.search(r"\bnan\b", line)]:
        raise lacking(places, f'the line "{torn[0].strip("| ")}" of table {name}')
    return told


def markdown(first: str, cells: Mapping[str, Mapping[str, str]], *of: pd.DataFrame) -> str:
    """A table of texts by row and column, and how many processes its numbers are of. A text that is missing is "-"."""
    columns = list(dict.fromkeys(name for row in cells.values() for name in row))
    rows = ([name, *(row.get(column, "-") for column in columns)] for name, row in cells.items())
    return f"{markdown_table([first, *columns], rows)}\n\nn: {sample(*of)}.\n"


def passes(rows: pd.DataFrame, columns: Mapping[str, tuple[str, int]]) -> str:
    """Milliseconds of 1 / of 60 tokens, 60 over one, and the floor's share of one token; a column's model and context
    by its name."""
    places = pd.MultiIndex.from_frame(rows[["model", "context_length"]])
    rows = rows[places.isin([*columns.values()])]
    shares = over_processes(in_each_process(rows.assign(share=rows.floor_ms / rows.time_ms), KEYS, "share"))
    parts = [table.droplevel("weights") for table in (pass_times(rows), pass_growth(rows), shares)]
    cells: dict[str, dict[str, str]] = {scheme: {} for scheme in SCHEMES if scheme in set(rows.scheme)}
    for scheme, row in cells.items():
        for name, (model, context) in columns.items():
            one, wide = ((model, scheme, context, size) for size in (1, 60))
            times, growth, share = parts
            if one in times.index:
                both = f"{times['median'][one]:.2f} / {times['median'][wide]:.2f}"
                row[name] = f"{both}, {in_words(growth.loc[wide])}, {share['median'][one]:.0%}"
    return markdown("scheme", cells, rows)


def settling(rows: pd.DataFrame) -> str:
    """The first pass of one token behind wide ones, and EAGLE-2's drafts behind wide trees."""
    first, cells = first_passes(rows)["median"], {}
    for (model, scheme), draft in settled_drafts(rows).iterrows():
        behind = {f"first pass, {idle:g} ms later": first[model, scheme, 64, idle, 0] for idle in (0.0, 50.0)}
        cells[f"{size_label(model)} {scheme}"] = {
            name: f"{value:.{1 if name == LOST else 2}f}" for name, value in {**behind, **draft}.items()
        }
    return markdown("target", cells, rows)


def settled_drafts(rows: pd.DataFrame) -> pd.DataFrame:
    """A draft alone and behind passes over a tree of 60 nodes, and what of the step that costs: by model and scheme."""
    times = steady(rows)["median"].xs(0.0, level="idle_ms").unstack(["what", "behind"])
    alone, behind, verify = times["draft", 0], times["draft", 60], times["verify", 60]
    return pd.DataFrame({ALONE: alone, BEHIND: behind, LOST: 100 * (behind - alone) / (behind + verify)})


def attention_times(rows: pd.DataFrame) -> pd.DataFrame:
    """Microseconds of attention, by context and draft size; a column for each implementation."""
    keys = ["context_length", "draft_size", "implementation"]
    rows = rows[rows.operation == "attention"]
    return over_processes(in_each_process(rows, keys, "time_us"))["median"].unstack()


def attention(rows: pd.DataFrame) -> str:
    """Microseconds of 1 / 64 tokens."""
    times = attention_times(rows)
    names = {"ordinary": "triton", "row-invariant": "triton, row-invariant"}
    names["torch's `scaled_dot_product_attention`"] = "torch"
    cells = {
        f"{context:,} tokens": {
            name: " / ".join(f"{times[implementation][context, size]:.1f}" for size in (1, 64))
            for name, implementation in names.items()
        }
        for context in sorted(times.index.unique("context_length"))
    }
    return markdown("behind", cells, rows)


def drafting(rows: pd.DataFrame, rounds: pd.DataFrame) -> str:
    """Milliseconds of drafts and of inner rounds, by the head that drafts."""
    head = ["head_scheme", "head_vocabulary"]
    drafts = over_processes(in_each_process(rows, [*head, "model", "iterations"]))
    of_rounds = over_processes(in_each_process(rounds, head))
    cells: dict[str, dict[str, str]] = {}
    for scheme, vocabulary in sorted(of_rounds.index, key=lambda key: (key[0], -key[1])):
        cells[f"{scheme}, {vocabulary:,} tokens"] = {
            f"{size_label(model)}, {iterations} iterations": in_words(drafts.loc[scheme, vocabulary, model, iterations])
            for model in reversed(TARGETS)
            for iterations in (3, 6)
        } | {"a round of 8B": in_words(of_rounds.loc[(scheme, vocabulary)])}
    return markdown("head", cells, rows, rounds)


def replayed(rows: pd.DataFrame, shapes: Shapes) -> str:
    """Speedups of 70B in W4A16 at the mean accepted length of the fitted chances.

    Over EAGLE-2 with 24 nodes among the paper's plans, and with the planner's tree among the planner's.
    """
    rows = rows.query("model == 'llama-3-70b' and scheme == 'w4a16-g128'")
    bases = {"over one by one": "autoregressive", "over EAGLE-2": "eagle2"}
    whose = {"fitted": "the paper's plans", "planned": "the planner's plans"}
    heads = sorted(rows.head_scheme.unique(), key=lambda scheme: scheme != HEADS)
    runs = {(scheme, chances): rows.query(replays_with(scheme, chances)) for scheme in heads for chances in whose}
    runs = {kind: of_run for kind, of_run in runs.items() if len(of_run)}
    if not runs:
        raise KeyError("llama-3-70b, w4a16-g128, llama-3-8b")
    cells: dict[str, dict[str, str]] = {}
    for (scheme, chances), of_run in runs.items():
        for name, base in bases.items():
            for plan, row in by_plan(fitted_speedups(of_run, shapes, base, chances).sort_index()).iterrows():
                cells.setdefault(f"{whose[chances]}, heads in {scheme}: {plan}", {})[name] = in_words(row)
    return markdown("plan", cells, *runs.values())


def planted(rows: pd.DataFrame) -> str:
    """What planted drafts reach, and which texts differ: with ordinary kernels / with row invariance."""
    rows = longest_runs(rows[rows.codes == "uniform"])
    keys = ["model", "scheme", *PLAN_FIELDS, "row_invariant"]
    names = ("accepted_length", "tokens_per_s")
    lengths, speeds = (over_processes(in_each_process(rows, keys, name))["median"] for name in names)
    texts, cells = losslessness(rows).set_index(keys), {}
    for model, scheme, *plan in sorted({key[:-1] for key in texts.index}, key=lambda key: (TARGETS.index(key[0]), key)):
        both = [place for which in ("no", "yes") if (place := (model, scheme, *plan, which)) in texts.index]
        cells[f"{size_label(model)} {scheme}, {plan_label(Plan(*plan))}"] = {
            name: " / ".join(tell(place) for place in both)
            for name, tell in {
                "accepted length": lambda place: f"{lengths[place]:.2f}",
                "tokens per second": lambda place: f"{speeds[place]:.1f}",
                "differing texts": lambda place: "{differing_texts} of {texts}".format(**texts.loc[place]),
                "tokens compared": lambda place: f"{texts.compared_tokens[place]:,}",
            }.items()
        }
    return markdown("target and plan", cells, *(of_kernels for _, of_kernels in rows.groupby("row_invariant")))


def adaptive_runs(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each run by adaptive draft sizes: its speed over that of static ones of the same process, and its sizes.

    A static size that is not one of `STATIC` is the best by the prices, or the one that adaptive ended up with.
    """
    static = rows[rows.choice == "static"].set_index(RUN)
    trees = pd.Series([*zip(static.draft_size, static.iterations, strict=True)], index=static.index)
    speeds, runs = static.tokens_per_s, rows[rows.choice == "adaptive"].set_index(RUN).sort_index()
    best = {
        OF_SIX: speeds[trees.isin(STATIC)].groupby(RUN).max(),
        OF_60: speeds[trees.isin([(60, 6)])],
        OF_ALL: speeds.groupby(RUN).max(),
    }
    return runs.assign(**{name: runs.tokens_per_s / base for name, base in best.items()})


def adaptive(rows: pd.DataFrame) -> str:
    """Adaptive draft sizes beside static ones."""
    runs = adaptive_runs(rows)
    cells: dict[str, dict[str, str]] = {}
    for name, decimals in {OF_SIX: 2, OF_60: 2, OF_ALL: 2, "mean_draft_size": 1}.items():
        for (model, scheme), row in over_processes(runs[name]).iterrows():
            cells.setdefault(f"{size_label(model)} {scheme}", {})[name.replace("_", " ")] = in_words(row, decimals)
    return markdown("target", cells, rows)
