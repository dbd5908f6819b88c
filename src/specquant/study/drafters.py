"""What the drafters that ship for SmolLM2 reach: the part of their README that is written from a recorded table."""

from pathlib import Path

import pandas as pd

from specquant.decoding.method import PAPER_PLANS
from specquant.files import project_root, write_parts
from specquant.planning.traces import over_tasks
from specquant.progress import tell
from specquant.tables.intervals import interval, told_with_interval
from specquant.tables.markdown import markdown_table
from specquant.tables.results import read_results
from specquant.tables.style import SCHEMES, mark

FOLDERS = ("data/recorded/h200/smollm2", "data/recorded/cpu/smollm2")  # the first that is there: it has more questions
TABLES = ("acceptance", "traces")
CARD = "data/smollm2/README.md"
MARKERS = "<!-- acceptance: specquant claims writes this list -->", "<!-- end of acceptance -->"
AIM_LENGTH, AIM_AGREEMENT = 3.0, 0.65  # of EAGLE-2, and of the intermediate model with its target
SHOWN = {"eagle2": "EAGLE-2, 60 nodes", "vanilla": "vanilla", "hierarchical": "hierarchical"}
ALL = "all of Spec-Bench"
SAMPLED = 1.0  # the temperature
AGREES = "intermediate model agrees"


def recorded_table(name: str, root: Path | None = None) -> str:
    """Where a table of SmolLM2 and its drafters is, acceptance or traces, below the project's root: in the first folder
    that has both, for they belong together. Says so where that is not the first."""
    root = root or project_root()
    whole = [folder for folder in FOLDERS if all((root / folder / f"{each}.csv").is_file() for each in TABLES)]
    folder = (whole or FOLDERS[-1:])[0]
    if folder != FOLDERS[0] and (root / folder).is_dir():
        lacks = " or ".join(f"{each}.csv" for each in TABLES)
        tell(f"specquant: {folder} is read, which has fewer questions: {FOLDERS[0]} lacks {lacks}")
    return f"{folder}/{name}.csv"


def write_drafters_card(root: Path | None = None) -> list[Path]:
    """Write that part of the README anew; returns the files that changed by that, none where nothing was recorded.

    Raises SpecquantError where the README has no place for it.
    """
    root = root or project_root()
    recorded = root / recorded_table("acceptance", root)
    if not recorded.is_file():
        return []
    text = told(read_results(recorded), recorded.relative_to(root))
    return write_parts(root / CARD, "the card of the drafters", {MARKERS: f"{text}\n"})


def told(table: pd.DataFrame, recorded: Path) -> str:
    """That part of the README. table: acceptance.csv. recorded: where it is, below the project's root."""
    parts = [
        f"Recorded by `specquant bench acceptance`, greedily, in fp16, with 95% intervals\n(`{recorded.as_posix()}`):",
        markdown(by_task(table)),
        markdown(aims(table)),
    ]
    if (table.temperature == SAMPLED).any():
        parts += [f"The same questions, sampled at temperature {SAMPLED:g}:", markdown(by_task(table, SAMPLED))]
    if table.scheme.nunique() > 1:
        parts += [f"Greedily, on {ALL}, with the target in other schemes and the same drafters:"]
        parts += [markdown(by_scheme(table))]
    return "\n\n".join(parts)


def by_task(table: pd.DataFrame, temperature: float = 0, model: str = "smollm2") -> pd.DataFrame:
    """What is accepted in fp16, in words, with 95% intervals over questions. table: acceptance.csv.

    The last column is vanilla's share of judged tokens that were accepted: greedily, how often the intermediate model
    agrees.
    """
    last = "a token of vanilla's is accepted" if temperature else AGREES
    return _in_words(_shown(table, model, temperature=temperature), "task", last)


def by_scheme(table: pd.DataFrame, model: str = "smollm2") -> pd.DataFrame:
    """What is accepted greedily on all of Spec-Bench by the target's scheme, as `by_task`."""
    schemes = [scheme for scheme in SCHEMES if scheme in set(table.scheme)]
    rows = {mark(scheme, SCHEMES).label: _shown(table, model, scheme).loc[ALL] for scheme in schemes}
    return _in_words(pd.concat(rows), "scheme", AGREES)


def _in_words(rows: pd.DataFrame, first: str, last: str) -> pd.DataFrame:
    """A line for each of the index's first level, with what each method in `SHOWN` accepts."""
    cells = {}
    for name in rows.index.unique(0):
        of = {method: rows.loc[(name, method)] for method in SHOWN}
        lengths = {SHOWN[method]: told_with_interval(row, "accepted_length") for method, row in of.items()}
        cells[name] = {"questions": f"{of['vanilla'].questions:g}", **lengths, last: _agreement(of["vanilla"])}
    return pd.DataFrame.from_dict(cells, orient="index").rename_axis(first)


def aims(table: pd.DataFrame, model: str = "smollm2") -> pd.DataFrame:
    """What the drafters were to reach on all of Spec-Bench, and what they do, in words. table: acceptance.csv."""
    rows = _shown(table, model)
    eagle2, vanilla, hierarchy = (rows.loc[(ALL, method)] for method in ("eagle2", "vanilla", "hierarchical"))
    lengths = [told_with_interval(row, "accepted_length") for row in (eagle2, hierarchy, vanilla)]
    lines = [
        [
            f"EAGLE-2 accepts at least {AIM_LENGTH:.1f} tokens",
            lengths[0],
            _reached(eagle2, "accepted_length", AIM_LENGTH, AIM_LENGTH),
        ],
        [
            f"the intermediate model has the target's greedy token in at least {AIM_AGREEMENT:.0%} of positions",
            _agreement(vanilla),
            _reached(vanilla, "acceptance_rate", AIM_AGREEMENT, AIM_AGREEMENT),
        ],
        [
            "the hierarchy accepts more per target pass than vanilla",
            f"{lengths[1]} against {lengths[2]}",
            _reached(hierarchy, "accepted_length", vanilla.accepted_length, vanilla.accepted_length_high),
        ],
    ]
    return pd.DataFrame(lines, columns=["aim", "found", "reached"]).set_index("aim")


def _shown(table: pd.DataFrame, model: str, scheme: str = "fp16", temperature: float = 0) -> pd.DataFrame:
    """The rows of one plan of each method in `SHOWN`, its largest, by task and method; those of `ALL` too."""
    table = table[(table.model == model) & (table.scheme == scheme) & (table.temperature == temperature)]
    together = over_tasks(table[table.benchmark == "spec-bench"]).assign(task=ALL)
    sizes = {plan.method: plan.draft_size for plan in PAPER_PLANS}  # the last of each method, its largest
    rows = pd.concat([table, together])
    return rows[rows.method.isin(SHOWN) & (rows.draft_size == rows.method.map(sizes))].set_index(["task", "method"])


def _reached(row: pd.Series, name: str, least: float, surely: float) -> str:
    """Whether a number is at least `least`, and whether all of its interval is above `surely`."""
    value, low, _ = (row[each] for each in interval(name))
    if value < least:
        return "no"
    return "yes" if low >= surely else "yes, by less than the intervals"


def _agreement(row: pd.Series) -> str:
    return told_with_interval(row, "acceptance_rate", 1, 100, "%")


def markdown(table: pd.DataFrame) -> str:
    """A table of words."""
    heading = [str(table.index.name), *table.columns]
    return markdown_table(heading, table.reset_index().itertuples(index=False, name=None))
