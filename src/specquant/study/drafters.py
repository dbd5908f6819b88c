"""What the drafters that ship for SmolLM2 reach: the part of their card that is written from a recorded table."""

from pathlib import Path

import pandas as pd

from specquant.decoding.method import PAPER_PLANS
from specquant.errors import SpecquantError
from specquant.files import project_root, write_file
from specquant.measure.acceptance import over_tasks
from specquant.tables.intervals import interval
from specquant.tables.results import read_results

RECORDED = "data/recorded/cpu/smollm2/acceptance.csv"
CARD = "data/smollm2/README.md"
BEGIN, END = "<!-- acceptance: specquant claims writes this list -->", "<!-- end of acceptance -->"
SHOWN = {"eagle2": "EAGLE-2, 60 nodes", "vanilla": "vanilla", "hierarchical": "hierarchical"}
ABOUT = f"""Recorded by `specquant bench acceptance`, greedily, in fp16, with 95% intervals
(`{RECORDED}`):"""
ALL = "all of Spec-Bench"


def write_drafters_card(root: Path | None = None) -> list[Path]:
    """Write that part of the card anew; returns the files that changed by that, none where nothing was recorded.

    Raises SpecquantError where the card has no place for it.
    """
    root = root or project_root()
    if not (root / RECORDED).is_file():
        return []
    text = (root / CARD).read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SpecquantError(f"{root / CARD} lacks the lines {BEGIN} and {END}: put them where its table is to be")
    told = drafters_table(read_results(root / RECORDED))
    written = f"{before}{BEGIN}\n\n{ABOUT}\n\n{told}\n\n{END}{after}"
    return [write_file(root / CARD, written)] if written != text else []


def drafters_table(table: pd.DataFrame, model: str = "smollm2") -> str:
    """What is accepted greedily in fp16 by task, in Markdown, with 95% intervals over questions. table: acceptance.csv.

    The intermediate model's column is vanilla's share of judged tokens that were accepted, its agreement.
    """
    greedy = table[(table.model == model) & (table.scheme == "fp16") & (table.temperature == 0)]
    together = over_tasks(greedy[greedy.benchmark == "spec-bench"]).assign(task=ALL)
    sizes = {plan.method: plan.draft_size for plan in PAPER_PLANS}  # the last of each method, its largest
    rows = pd.concat([greedy, together])
    rows = rows[rows.method.isin(SHOWN) & (rows.draft_size == rows.method.map(sizes))].set_index(["task", "method"])
    lines = [["task", "questions", *SHOWN.values(), "intermediate model agrees"]]
    lines += [["---"] * len(lines[0])]
    for task in rows.index.get_level_values("task").unique():
        of_task = [rows.loc[(task, method)] for method in SHOWN]
        lengths = [_told(row, "accepted_length", 1, ".2f") for row in of_task]
        agrees = _told(rows.loc[(task, "vanilla")], "acceptance_rate", 100, ".1f", "%")
        lines.append([task, f"{of_task[0].questions:g}", *lengths, agrees])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _told(row: pd.Series, name: str, factor: float, form: str, unit: str = "") -> str:
    """A number with its interval: "3.29 (2.88 to 3.73)"."""
    value, low, high = (format(factor * row[each], form) for each in interval(name))
    return f"{value}{unit} ({low} to {high})"
