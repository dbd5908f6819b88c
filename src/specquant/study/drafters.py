"""What the drafters that ship for SmolLM2 reach: the part of their README that is written from a recorded table."""

from pathlib import Path

import pandas as pd

from specquant.decoding.method import PAPER_PLANS
from specquant.errors import SpecquantError
from specquant.files import project_root, read_text, write_file
from specquant.planning.traces import over_tasks
from specquant.progress import tell
from specquant.tables.intervals import interval
from specquant.tables.results import read_results

RECORDED = ("data/recorded/h200/smollm2", "data/recorded/cpu/smollm2")  # the first that is there: it has more questions
TABLES = ("acceptance", "traces")
CARD = "data/smollm2/README.md"
BEGIN, END = "<!-- acceptance: specquant claims writes this list -->", "<!-- end of acceptance -->"
AIM_LENGTH, AIM_AGREEMENT = 3.0, 0.65  # of EAGLE-2, and of the intermediate model with its target
SHOWN = {"eagle2": "EAGLE-2, 60 nodes", "vanilla": "vanilla", "hierarchical": "hierarchical"}
ALL = "all of Spec-Bench"


def recorded_table(name: str, root: Path | None = None) -> str:
    """Where a table of SmolLM2 and its drafters is, acceptance or traces, below the project's root: in the first folder
    that has both, for they belong together. Says so where that is not the first."""
    root = root or project_root()
    whole = [folder for folder in RECORDED if all((root / folder / f"{each}.csv").is_file() for each in TABLES)]
    folder = (whole or RECORDED[-1:])[0]
    if folder != RECORDED[0] and (root / folder).is_dir():
        lacks = " or ".join(f"{each}.csv" for each in TABLES)
        tell(f"specquant: {folder} is read, which has fewer questions: {RECORDED[0]} lacks {lacks}")
    return f"{folder}/{name}.csv"


def write_drafters_card(root: Path | None = None) -> list[Path]:
    """Write that part of the README anew; returns the files that changed by that, none where nothing was recorded.

    Raises SpecquantError where the README has no place for it.
    """
    root = root or project_root()
    recorded = root / recorded_table("acceptance", root)
    if not recorded.is_file():
        return []
    text = read_text(root / CARD, "the card of the drafters")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SpecquantError(f"{root / CARD} lacks the lines {BEGIN} and {END}: put them where its table is to be")
    table = read_results(recorded)
    told = "\n\n".join((BEGIN, about(recorded, root), drafters_table(table), aims_table(table), END))
    written = f"{before}{told}{after}"
    return [write_file(root / CARD, written)] if written != text else []


def about(recorded: Path, root: Path) -> str:
    """What the README says before its tables. recorded: what they are made of."""
    return (
        "Recorded by `specquant bench acceptance`, greedily, in fp16, with 95% intervals\n"
        f"(`{recorded.relative_to(root).as_posix()}`):"
    )


def drafters_table(table: pd.DataFrame, model: str = "smollm2") -> str:
    """What is accepted greedily in fp16 by task, in Markdown, with 95% intervals over questions. table: acceptance.csv.

    The intermediate model's column is vanilla's share of judged tokens that were accepted, its agreement.
    """
    rows, lines = _shown(table, model), [["task", "questions", *SHOWN.values(), "intermediate model agrees"]]
    for task in rows.index.get_level_values("task").unique():
        of_task = [rows.loc[(task, method)] for method in SHOWN]
        lengths = [_told(row, "accepted_length", 1, ".2f") for row in of_task]
        lines.append([task, f"{of_task[0].questions:g}", *lengths, _agreement(rows.loc[(task, "vanilla")])])
    return _markdown(lines)


def aims_table(table: pd.DataFrame, model: str = "smollm2") -> str:
    """What the drafters were to reach on all of Spec-Bench, and what they do, in Markdown. table: acceptance.csv."""
    rows = _shown(table, model)
    eagle2, vanilla, hierarchy = (rows.loc[(ALL, method)] for method in ("eagle2", "vanilla", "hierarchical"))
    lengths = [_told(row, "accepted_length", 1, ".2f") for row in (eagle2, hierarchy, vanilla)]
    lines = [
        ["aim", "found", "reached"],
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
    return _markdown(lines)


def _shown(table: pd.DataFrame, model: str) -> pd.DataFrame:
    """The rows of one plan of each method in `SHOWN`, its largest, by task and method; those of `ALL` too."""
    greedy = table[(table.model == model) & (table.scheme == "fp16") & (table.temperature == 0)]
    together = over_tasks(greedy[greedy.benchmark == "spec-bench"]).assign(task=ALL)
    sizes = {plan.method: plan.draft_size for plan in PAPER_PLANS}  # the last of each method, its largest
    rows = pd.concat([greedy, together])
    return rows[rows.method.isin(SHOWN) & (rows.draft_size == rows.method.map(sizes))].set_index(["task", "method"])


def _reached(row: pd.Series, name: str, least: float, surely: float) -> str:
    """Whether a number is at least `least`, and whether all of its interval is above `surely`."""
    value, low, _ = (row[each] for each in interval(name))
    if value < least:
        return "no"
    return "yes" if low >= surely else "yes, by less than the intervals"


def _agreement(row: pd.Series) -> str:
    return _told(row, "acceptance_rate", 100, ".1f", "%")


def _markdown(lines: list[list[str]]) -> str:
    rows = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _told(row: pd.Series, name: str, factor: float, form: str, unit: str = "") -> str:
    """A number with its interval: "3.29 (2.88 to 3.73)"."""
    value, low, high = (format(factor * row[each], form) for each in interval(name))
    return f"{value}{unit} ({low} to {high})"
