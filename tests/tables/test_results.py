import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specquant.errors import SpecquantError
from specquant.files import project_root
from specquant.study import read_provenance, read_results, write_results
from specquant.tables.schemas import TABLES


def verify_cost() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": "tiny",
            "scheme": ["fp16", "w4a16-g128"],
            "weights": "trained",
            "draft_size": [1, 60],
            "context_length": 512,
            "time_ms": [0.1 + 0.2, 1e-9],
            "p10_ms": 0.5,
            "p90_ms": 2.5,
            "repeats": 20,
            "process": 0,
            "protocol": "blocks",
            "block": 0,
            "place": 0,
        }
    )


def test_a_table_reads_back_exactly(tmp_path):
    path = write_results(verify_cost(), tmp_path / "new" / "verify_cost.csv", {"seed": 1})
    pd.testing.assert_frame_equal(read_results(path), verify_cost(), check_dtype=False, check_exact=True)
    assert sorted(file.name for file in path.parent.iterdir()) == ["verify_cost.csv", "verify_cost.json"]


@pytest.mark.parametrize("name", ["NA", "nan", "None", "null", "N/A", "01"])
def test_any_name_reads_back_as_it_is(tmp_path, name):
    """pandas reads some names as if nothing stood there."""
    path = write_results(verify_cost().assign(model=name), tmp_path / "verify_cost.csv", {})
    assert read_results(path).model.tolist() == [name, name]


def test_provenance_says_what_ran_on_what_and_how(tmp_path):
    path = write_results(
        verify_cost(), tmp_path / "verify_cost.csv", {"seed": 1}, repeats=20, clock="time.perf_counter, median"
    )
    record = read_provenance(path)
    assert record["parameters"] == {"seed": 1}
    assert record["repeats"] == 20
    assert record["clock"] == "time.perf_counter, median"
    assert record["device"]
    assert record["driver"] is None
    assert {"python", "torch", "pandas"} <= set(record["versions"])
    assert pd.Timestamp(record["date"]).tzinfo is not None


@pytest.mark.parametrize("column", ["weights", "draft_size"])
def test_a_table_without_its_columns_is_neither_written_nor_read(tmp_path, column):
    path = tmp_path / "verify_cost.csv"
    with pytest.raises(SpecquantError, match=rf"verify_cost\.csv lacks the column {column}"):
        write_results(verify_cost().drop(columns=column), path, {})
    assert not path.exists()
    path.write_text(verify_cost().drop(columns=column).to_csv(index=False))
    with pytest.raises(SpecquantError, match=rf"verify_cost\.csv lacks the column {column}"):
        read_results(path)


def test_columns_can_be_asked_for(tmp_path):
    path = write_results(pd.DataFrame({"weights": ["trained"], "length": [3]}), tmp_path / "own.csv", {})
    assert list(read_results(path, ["length"])["length"]) == [3]
    with pytest.raises(SpecquantError, match=r"own\.csv lacks the columns depth, breadth"):
        read_results(path, ["length", "depth", "breadth"])


def test_every_row_says_what_it_rests_on(tmp_path):
    with pytest.raises(SpecquantError, match="lacks the column weights"):
        write_results(pd.DataFrame({"length": [3]}), tmp_path / "own.csv", {})


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda text: "", "is empty"),
        (lambda text: text[: text.rindex(",") - 3], "breaks off in its last line"),
        (lambda text: text[: text.rindex(",") - 3] + "\n", "line 3: 11 fields under 13 column names"),
        (lambda text: text.splitlines()[0] + "\n", "holds column names and no row"),
        (lambda text: text.replace("2.5", "fast"), 'line 2: "fast" in column p90_ms where a number belongs'),
        (lambda text: text.replace("2.5", "inf"), 'line 2: "inf" in column p90_ms'),
        (lambda text: text.replace("2.5", "-2.5"), 'line 2: "-2.5" in column p90_ms'),
        (lambda text: text.replace("2.5", ""), "line 2: nothing in column p90_ms where a number belongs"),
        (lambda text: text.replace("w4a16-g128", ""), "line 3: column scheme is empty"),
        (lambda text: text.replace("tiny", '"tiny', 1), "line 3: unexpected end of data"),
        (lambda text: text.encode() + b"\xff\xfe\n", "cannot read .* as text"),
    ],
)
def test_a_damaged_table_is_named_with_the_place(tmp_path, damage, sentence):
    path = write_results(verify_cost(), tmp_path / "verify_cost.csv", {})
    damaged = damage(path.read_text())
    path.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    with pytest.raises(SpecquantError, match=sentence) as raised:
        read_results(path)
    assert str(path) in str(raised.value)


def test_what_is_no_file_is_told_with_the_reason(tmp_path):
    with pytest.raises(SpecquantError, match=rf"cannot read {tmp_path} \(Is a directory\): name a table"):
        read_results(tmp_path, table="traces")


def test_a_file_that_is_no_such_table_is_told_from_a_damaged_one(tmp_path):
    """It cannot be measured again: another file was meant."""
    (tmp_path / "README.md").write_text("# A heading\n\nand a text\n")
    says = r"README\.md is no table of trees, for its first line has none of its columns: name a table that specquant "
    with pytest.raises(SpecquantError, match=says + "bench trees wrote"):
        read_results(tmp_path / "README.md", table="trees")
    with pytest.raises(SpecquantError, match="none of its columns: correct it, or take it from the repository"):
        read_results(tmp_path / "README.md", table="claims")


def test_missing_results_and_broken_provenance_are_named(tmp_path):
    with pytest.raises(SpecquantError, match=r"there are no results at .*verify_cost\.csv"):
        read_results(tmp_path / "verify_cost.csv")
    path = write_results(verify_cost(), tmp_path / "verify_cost.csv", {})
    for damaged, sentence in (('{"commit": ', "is no JSON"), ("[]", "names no device"), ("{}", "names no device")):
        path.with_suffix(".json").write_text(damaged)
        with pytest.raises(SpecquantError, match=rf"verify_cost\.json {sentence}"):
            read_provenance(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(SpecquantError, match="no provenance at"):
        read_provenance(path)


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SpecquantError, match=r"cannot write .*file/verify_cost\.json"):
        write_results(verify_cost(), tmp_path / "file" / "verify_cost.csv", {})


def test_an_empty_table_is_refused(tmp_path):
    with pytest.raises(SpecquantError, match="nothing was measured"):
        write_results(verify_cost().iloc[:0], tmp_path / "verify_cost.csv", {})


def test_a_failing_write_keeps_the_old_table(tmp_path, monkeypatch):
    path = write_results(verify_cost(), tmp_path / "verify_cost.csv", {"seed": 1})
    old = path.read_text()

    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("specquant.files.os.replace", disk_full)
    with pytest.raises(SpecquantError, match="No space left on device"):
        write_results(verify_cost().iloc[:1], path, {"seed": 2})
    assert path.read_text() == old
    assert json.loads(path.with_suffix(".json").read_text())["parameters"] == {"seed": 1}


RECORDED = {path.stem: path for path in sorted(project_root().glob("data/*/**/*.csv")) if path.stem in TABLES}


def damaged(table: str, column: str, value: object, tmp_path: Path, row: int = 0) -> Path:
    """A recorded table's first rows with one value changed."""
    frame = pd.read_csv(RECORDED[table], dtype=str)
    frame = pd.concat([frame] * 4).head(4).reset_index(drop=True)  # of short ones, some twice
    frame.loc[row, column] = value
    path = tmp_path / f"{table}.csv"
    path.write_text(frame.to_csv(index=False))
    return path


def numbers(table: str) -> dict[str, str]:
    """The columns of numbers that a table must have, with the kind of each."""
    columns = TABLES[table].schema.columns
    return {name: column.title for name, column in columns.items() if column.title and column.required}


def test_every_table_that_planning_and_figures_read_is_described():
    to_be_recorded = {"adaptive"}  # on a GPU (docs/measuring.md)
    assert set(TABLES) == {*RECORDED, *to_be_recorded, "calibration"}
    for table, path in RECORDED.items():
        assert len(read_results(path))
        assert numbers(table)


@pytest.mark.parametrize("table", RECORDED)
def test_no_number_of_a_recorded_table_may_be_missing_or_another_kind(table, tmp_path):
    for column, kind in numbers(table).items():
        wrong = ["", "NaN", "inf", "-1", "many", "True"]
        wrong += ["0", "0.0"] if kind.endswith("above 0") else []
        wrong += ["1.5"] if "whole" in kind or "probability" in kind else []
        for value in wrong:
            with pytest.raises(SpecquantError, match=rf"{table}\.csv, line 4: .* in column {column} where "):
                read_results(damaged(table, column, value, tmp_path, row=2))
        path = damaged(table, column, "1", tmp_path)
        path.write_text(pd.read_csv(path, dtype=str).drop(columns=column).to_csv(index=False))
        with pytest.raises(SpecquantError, match=rf"{table}\.csv lacks the column {column}"):
            read_results(path)


@pytest.mark.parametrize(
    ("table", "column", "value", "sentence"),
    [
        ("drafting", "time_ms", "0", r'line 2: "0\.0" in column time_ms where a number above 0 belongs'),
        ("drafting", "iterations", "1.5", 'line 2: "1.5" in column iterations where a whole number'),
        ("drafting", "floor_ms", "0", r'line 2: "0\.0" in column floor_ms where a number above 0 belongs'),
        ("replayed", "agreement", "1.5", 'line 2: "1.5" in column agreement where a probability belongs'),
        ("plans", "predicted_tokens_per_s", "-1", "in column predicted_tokens_per_s where a number above 0 belongs"),
        ("assumptions", "low", "0", "in column low where a number above 0 belongs"),
        ("assumptions", "name", "eagle2", "has no row whose name is eagle2_length_70b"),
    ],
)
def test_a_damaged_number_is_named_with_what_belongs_there(table, column, value, sentence, tmp_path):
    with pytest.raises(SpecquantError, match=sentence):
        read_results(damaged(table, column, value, tmp_path))


def test_a_ceiling_that_is_missing_is_named(tmp_path):
    row = pd.read_csv(RECORDED["ceilings"]).what.tolist().index("read-only stream")
    with pytest.raises(SpecquantError, match=r"has no row whose what is read-only stream"):
        read_results(damaged("ceilings", "what", "read-only streams", tmp_path, row))


@pytest.mark.parametrize("table", [name for name in RECORDED if TABLES[name].row])
def test_a_row_that_is_there_twice_is_refused(table, tmp_path):
    names = [*TABLES[table].unit, *TABLES[table].row]
    lines = RECORDED[table].read_text().splitlines()
    path = tmp_path / f"{table}.csv"
    path.write_text("\n".join([*lines, lines[2]]) + "\n")
    with pytest.raises(SpecquantError, match=rf"line {len(lines) + 1}: a second row of {names[0]} "):
        read_results(path)


SHAPES = "trees"  # the same tree may be drafted twice
EVERY = [path.relative_to(project_root()) for path in sorted((project_root() / "data").rglob("*.csv"))]


@pytest.mark.parametrize("table", [path for path in EVERY if path.stem != SHAPES], ids=str)
def test_a_line_that_is_there_twice_is_refused_in_every_table_of_the_project(table, tmp_path):
    lines = (project_root() / table).read_text().splitlines()
    path = tmp_path / table.name
    path.write_text("\n".join([*lines, lines[1]]) + "\n")
    with pytest.raises(
        SpecquantError, match=rf"{table.name}, line \d+: a second row .*: .* take it from the repository"
    ):
        read_results(path)


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    path = damaged("drafting", "time_ms", "1", tmp_path)
    path.write_text(path.read_text().replace("p10_ms", "time_ms"))
    with pytest.raises(SpecquantError, match="has the column time_ms twice"):
        read_results(path)


def test_a_table_of_another_name_is_held_to_its_kind(tmp_path):
    path = damaged("trees", "accepted_length", "0", tmp_path).rename(tmp_path / "mine.csv")
    assert len(read_results(path)) == 4
    with pytest.raises(SpecquantError, match=r'mine\.csv, line 2: "0" in column accepted_length'):
        read_results(path, table="trees")


@settings(max_examples=150)
@given(st.sampled_from(sorted(RECORDED)), st.data())
def test_whatever_damages_a_table_is_refused_or_changes_no_number(tmp_path_factory, table, data):
    """Bytes cut out or put in: what is read then has numbers in all of its columns, each of its kind."""
    whole = b"".join(RECORDED[table].read_bytes().splitlines(keepends=True)[:5])
    start = data.draw(st.integers(0, len(whole)))
    inserted = data.draw(st.sampled_from([b"", b",", b"0", b"-", b'"', b"\n", b"e9", b"\x00", b"\xff", b"nan", b"."]))
    path = tmp_path_factory.mktemp("fuzz") / f"{table}.csv"
    path.write_bytes(whole[:start] + inserted + whole[start + data.draw(st.integers(0, 40)) :])
    try:
        frame = read_results(path)
    except SpecquantError:
        return
    for column, kind in numbers(table).items():
        assert pd.api.types.is_numeric_dtype(frame[column])
        assert (frame[column] >= 0).all()
        assert (frame[column] > 0).all() or not kind.endswith("above 0")


def test_parameters_of_a_table_are_an_object(tmp_path):
    path = write_results(verify_cost(), tmp_path / "verify_cost.csv", {})
    path.with_suffix(".json").write_text('{"device": "a CPU", "parameters": []}')
    with pytest.raises(SpecquantError, match="parameters is no JSON object"):
        read_provenance(path)
    path.with_suffix(".json").write_text("[" * 100_000)
    with pytest.raises(SpecquantError, match="is no JSON"):
        read_provenance(path)


@pytest.mark.parametrize("field", ["date", "commit", "clock", "kernels_sha256"])
def test_what_a_json_says_in_words_is_text_or_unknown(tmp_path, field):
    path = write_results(verify_cost(), tmp_path / "verify_cost.csv", {})
    for value in (5, {"a": "b"}, ["a", 5]):
        path.with_suffix(".json").write_text(json.dumps({"device": "a GPU", field: value}))
        with pytest.raises(SpecquantError, match=rf"verify_cost\.json: {field} is no text: measure its table again"):
            read_provenance(path)
    for value in ("a", None, [None, "a"]):
        path.with_suffix(".json").write_text(json.dumps({"device": "a GPU", field: value}))
        assert read_provenance(path)[field] == value


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_a_full_disk_is_a_sentence_and_keeps_the_old_table(tmp_path, monkeypatch):
    monkeypatch.setattr("specquant.files.uuid4", lambda: SimpleNamespace(hex="one"))
    path = write_results(verify_cost(), tmp_path / "verify_cost.csv", {"seed": 1})
    before = {file: file.read_text() for file in tmp_path.iterdir()}
    for name in ("verify_cost.json", "verify_cost.csv"):
        (tmp_path / f".{name}.one.tmp").symlink_to("/dev/full")
        with pytest.raises(SpecquantError, match=rf"cannot write .*{name}: No space left on device; free some, or"):
            write_results(verify_cost().iloc[:1], path, {"seed": 1})
        assert path.read_text() == before[path]
        assert set(tmp_path.iterdir()) == set(before)  # nothing half written is left
