"""One row for each quantity, whichever processes and blocks measured it."""

from importlib import import_module

import pandas as pd
import pytest

from specquant.cli import COMMANDS
from specquant.commands.measures import NAMES, measures
from specquant.errors import SpecquantError
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


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_a_missing_table_is_named_with_the_command_that_writes_it(table, tmp_path):
    with pytest.raises(SpecquantError, match=rf"at .*{table.name}\.csv: .*{table.written_by}.*from the repository"):
        read_results(tmp_path / f"{table.name}.csv")
    words = table.written_by.split()
    if words[:2] == ["specquant", "bench"]:
        name = words[2].replace("-", "_")
        assert name in [command.__name__ for command in measures()]
        file = {command: file for file, command in NAMES.items()}.get(name, name)
        assert table in import_module(f"specquant.measure.{file}").MEASURE.tables
    elif words:
        assert words[1] in [command.__name__ for command in COMMANDS]
