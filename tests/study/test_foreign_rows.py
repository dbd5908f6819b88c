"""Rows of something else in a recorded table, as a later recording may bring them, change no number that is told."""

from functools import partial

import pandas as pd
import pytest

from specquant.decoding.method import PLAN_FIELDS
from specquant.study import numbers, own_copies, recorded_numbers, smollm2
from specquant.study.claims import Evidence
from specquant.tables.results import read_results
from tests.study.conftest import numbers_of

TIMES = ("tokens_per_s", "draft_ms", "verify_ms", "power_w", "accepted_length", "ratio", "correct_percent")
QUALITIES = ("perplexity", "increase_percent", "agreement_percent", "acceptance_rate", "tokens", "questions")


def with_others(rows: pd.DataFrame, **values: object) -> pd.DataFrame:
    """The rows, with copies around them that have these values, and other numbers."""
    about = [name for name in rows if rows[name].dtype.kind not in "fi" or name in (*PLAN_FIELDS, "process")]
    others = rows.assign(**values).drop_duplicates([*about, *({"temperature"} & set(rows))])
    for name in {*TIMES, *QUALITIES} & set(rows):
        others[name] = 1.37 * others[name]
    together = pd.concat([others.iloc[::2], rows, others.iloc[1::2]], ignore_index=True)
    together.attrs = rows.attrs
    return together


SMOLLM2 = [(smollm2, source, table, {"model": "another"}) for source, tables in smollm2.SOURCES for table in tables]
COPIES = [
    (own_copies, partial(numbers_of, own_copies), table, values)
    for table, values in (
        ("traced-self/replayed", {"intermediate": "another"}),
        ("traced-self/replayed", {"intermediate_scheme": "w8a8"}),
        ("traced-self/replayed", {"head_scheme": "fp16"}),
        ("traced-self-shared/replayed", {"min_draft_length": 4}),
        ("traced/replayed", {"head_scheme": "fp16"}),
        ("smollm2/self-w4a16-g128/acceptance", {"model": "another"}),
        ("smollm2/self-w4a16-g128/acceptance", {"min_draft_length": 4}),
    )
]
OTHERS = [
    (smollm2, partial(numbers_of, smollm2), "smollm2/humaneval", {"scheme": "w8a8"}),
    (smollm2, partial(numbers_of, smollm2), "smollm2/head_features", {"scheme": "w8a8"}),
    (smollm2, partial(numbers_of, smollm2), "smollm2/acceptance", {"temperature": 0.5}),
    *(
        (numbers, lambda: numbers._of_tiny(None), f"cpu/{table}", {"model": "another"})
        for table in ("head_features", "throughput", "quality")
    ),
    (recorded_numbers, recorded_numbers._of_traces, "traced/replayed", {"head_scheme": "fp16"}),
    *(
        (recorded_numbers, recorded_numbers._of_codes, "planted", values)
        for values in ({"scheme": "w8a8"}, {"codes": "uniform", "tokens": 512}, {"codes": "uniform", "process": 7})
    ),
    *(
        (recorded_numbers, source, "h200/replayed", values)
        for source in (recorded_numbers._of_planned, recorded_numbers._of_fp16_heads)
        for values in (
            {"model": "llama-3-8b"},
            {"scheme": "w8a8"},
            {"chances": "swept"},
            {"head_vocabulary": 1024},
            {"intermediate": "another"},
            {"intermediate_scheme": "w8a8"},
        )
    ),
]


@pytest.mark.parametrize(("module", "told", "table", "values"), [*SMOLLM2, *COPIES, *OTHERS])
def test_rows_of_something_else_change_no_number(module, told, table, values, monkeypatch):
    def read(path: object, *about: object) -> pd.DataFrame:
        rows = read_results(path, *about)
        if not str(path).endswith(f"{table}.csv"):
            return rows
        found.append(path)
        return with_others(rows, **values)

    found: list[object] = []
    expected = told()
    monkeypatch.setattr(module, "read_results", read)
    known = told()
    assert found
    assert {name: known[name] for name in expected} == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    "values",
    [
        {"scheme": "w8a8"},
        {"intermediate": "another"},
        {"intermediate_scheme": "w8a8"},
        {"head_scheme": "fp16"},
        {"chances": "swept"},
    ],
)
def test_replays_of_something_else_change_no_factor_of_the_hierarchy_s_gain(values, monkeypatch):
    expected = numbers._of_assumptions(Evidence.read())

    def read(path: object, *about: object) -> pd.DataFrame:
        rows = read_results(path, *about)
        return with_others(rows, **values) if str(path).endswith("h200/replayed.csv") else rows

    monkeypatch.setattr("specquant.study.claims.read_results", read)
    assert numbers._of_assumptions(Evidence.read()) == pytest.approx(expected)
