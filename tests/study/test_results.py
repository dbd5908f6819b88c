import json

import pandas as pd
import pytest

from specquant.errors import SpecquantError
from specquant.study import read_provenance, read_results, write_results


def verify_cost() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": "tiny",
            "scheme": ["fp16", "w4a16-g128"],
            "weights": "trained",
            "draft_size": [1, 60],
            "context_length": 512,
            "time_ms": [0.1 + 0.2, 1e-9],
            "p10_ms": 0.0,
            "p90_ms": 2.5,
            "repeats": 20,
        }
    )


def test_a_table_reads_back_exactly(tmp_path):
    path = write_results(verify_cost(), tmp_path / "new" / "verify_cost.csv", {"seed": 1})
    pd.testing.assert_frame_equal(read_results(path), verify_cost(), check_dtype=False, check_exact=True)
    assert sorted(file.name for file in path.parent.iterdir()) == ["verify_cost.csv", "verify_cost.json"]


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
        (lambda text: text[: text.rindex(",") - 3] + "\n", "line 3: 8 fields under 9 column names"),
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
    with pytest.raises(SpecquantError, match=r"cannot write .*file/verify_cost\.csv"):
        write_results(verify_cost(), tmp_path / "file" / "verify_cost.csv", {})


def test_an_empty_table_is_refused(tmp_path):
    with pytest.raises(SpecquantError, match="nothing was measured"):
        write_results(verify_cost().iloc[:0], tmp_path / "verify_cost.csv", {})


def test_a_failing_write_keeps_the_old_table(tmp_path, monkeypatch):
    path = write_results(verify_cost(), tmp_path / "verify_cost.csv", {"seed": 1})
    old = path.read_text()

    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("specquant.paths.os.replace", disk_full)
    with pytest.raises(SpecquantError, match="No space left on device"):
        write_results(verify_cost().iloc[:1], path, {"seed": 2})
    assert path.read_text() == old
    assert json.loads(path.with_suffix(".json").read_text())["parameters"] == {"seed": 1}
