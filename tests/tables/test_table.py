"""One row for each quantity, whichever processes and blocks measured it."""

import pandas as pd

from specquant.tables.intervals import in_each_process, over_processes, ratios
from specquant.tables.results import read_results
from specquant.tables.schemas import TABLES, VERIFY_COST

ROWS = pd.DataFrame(
    [
        ("m", "s", "synthetic", 8, process, "blocks", block, 1, size, time_ms)
        for process in range(3)
        for size in (1, 60)
        for block, time_ms in enumerate((size + process, size + process + 2.0))
    ],
    columns=[*VERIFY_COST.unit, "block", "place", "draft_size", "time_ms"],
)


def test_a_quantity_is_the_median_over_processes_of_the_medians_over_blocks():
    told = VERIFY_COST.one_row_each(ROWS)
    assert told.draft_size.tolist() == [1, 60]
    assert told.time_ms.tolist() == [3, 62]
    assert not {"process", "protocol", "block", "place"} & set(told.columns)
    assert told.processes.tolist() == [3, 3]


def test_columns_that_are_no_numbers_and_attributes_are_kept():
    rows = ROWS.assign(note="as it was")
    rows.attrs["device"] = "GPU"
    told = VERIFY_COST.one_row_each(rows)
    assert told.note.tolist() == ["as it was"] * 2
    assert told.attrs == {"device": "GPU"}


def test_intervals_are_over_processes():
    values = in_each_process(ROWS, ["draft_size"])
    assert values[60].tolist() == [61, 62, 63]
    told = over_processes(ratios(values, "draft_size", 1)).loc[60]
    assert told.tolist() == [62 / 3, 63 / 4, 61 / 2, 3]


def test_every_table_names_its_rows_by_columns_that_it_has():
    for name, table in TABLES.items():
        assert name == table.name
        assert set(table.unit + table.row) <= set(table.schema.columns)


def test_a_column_that_older_tables_call_otherwise_has_the_name_of_now():
    recorded = read_results("data/recorded/cpu/throughput.csv")
    assert "draft_size" not in recorded
    assert recorded.mean_draft_size.ge(1).all()
