"""A table written in parts: whole units or none, never twice, never lost."""

import json
import os
import subprocess
import sys
import textwrap

import pandas as pd
import pandera.pandas as pa
import pytest

from specquant import files
from specquant.errors import SpecquantError
from specquant.tables import provenance, sources
from specquant.tables.parts import Parts
from specquant.tables.results import read_provenance, read_results
from specquant.tables.table import Table, count, positive, text

TABLE = Table(
    "own",
    unit=("model", "weights", "process"),
    row=("size",),
    schema=pa.DataFrameSchema(
        {"model": text(), "weights": text(), "process": count(0), "size": count(), "time_ms": positive()}
    ),
)
SAME = {"repeats": 3}


def unit(process: int, model: str = "m") -> dict:
    return {"model": model, "weights": "synthetic", "process": process}


def rows(time_ms: float = 1.5) -> pd.DataFrame:
    return pd.DataFrame({"size": [1, 2], "time_ms": [time_ms, 2 * time_ms]})


@pytest.fixture
def parts(tmp_path) -> Parts:
    return Parts(TABLE, tmp_path / "own.csv", SAME)


def test_units_are_joined_in_order_and_known_from_then_on(parts):
    units = [unit(0), unit(1), unit(10), unit(2)]
    for each in reversed(units[:3]):
        parts.add(each, rows())
    assert parts.missing(units) == [unit(2)]
    table = read_results(parts.join())
    assert table.process.tolist() == [0, 0, 1, 1, 10, 10]
    assert read_provenance(parts.path)["parameters"] == SAME


def test_a_table_without_its_parts_is_gone_on_with(parts, tmp_path):
    parts.add(unit(0), rows(1.5))
    parts.join()
    for file in parts.folder.iterdir():
        file.unlink()
    again = Parts(TABLE, parts.path, SAME)
    assert again.missing([unit(0), unit(1)]) == [unit(1)]
    again.add(unit(1), rows(2.5))
    assert read_results(again.join()).time_ms.tolist() == [1.5, 3, 2.5, 5]


def test_a_unit_that_ran_twice_counts_once(parts):
    parts.add(unit(0), rows(1.5))
    parts.join()
    parts.add(unit(0), rows(2.5))
    assert read_results(parts.join()).time_ms.tolist() == [2.5, 5]


def test_numbers_are_kept_exactly(parts):
    parts.add(unit(0), rows(0.1 + 0.2))
    assert read_results(parts.join()).time_ms[0] == 0.1 + 0.2


def test_a_unit_cut_short_is_not_there(parts):
    parts.add(unit(0), rows())
    (whole,) = parts.folder.iterdir()
    (parts.folder / f".{whole.name}.tmp").write_text(whole.read_text()[:40])  # what a kill leaves
    assert parts.missing([unit(0)]) == []
    whole.write_text(whole.read_text()[:40])
    with pytest.raises(SpecquantError, match=r"json is no part of own\.csv: remove it"):
        parts.join()


def test_rows_of_other_parameters_are_refused(parts, tmp_path):
    parts.add(unit(0), rows())
    other = Parts(TABLE, parts.path, {"repeats": 4})
    with pytest.raises(SpecquantError, match="holds rows measured with repeats 3, not 4"):
        other.missing([unit(1)])
    parts.join()
    with pytest.raises(SpecquantError, match="holds rows measured with repeats 3, not 4"):
        Parts(TABLE, parts.path, {"repeats": 4})


def test_rows_of_other_kernels_are_refused_and_what_to_do_is_said(parts, monkeypatch):
    monkeypatch.setenv("SPECQUANT_COMMIT", "c0ffee")
    monkeypatch.setattr(provenance, "needs_kernels", lambda device, clock: True)
    parts.add(unit(0), rows())
    monkeypatch.setattr(provenance, "kernels_sha256", lambda: "others")
    parts.add(unit(1), rows())
    ours = sources.kernels_sha256()
    sentence = (
        r"holds rows measured with other kernels \(commit c0ffee\): "
        r"choose another folder, or remove own\.csv, own\.json and own\.parts"
    )
    with pytest.raises(SpecquantError, match=rf"synthetic_1\.json {sentence}"):
        Parts(TABLE, parts.path, SAME, kernels=ours).missing([])
    parts.join()
    assert read_provenance(parts.path)["kernels_sha256"] == [ours, "others"]
    for kernels in (ours, "others"):
        with pytest.raises(SpecquantError, match=rf"own\.csv {sentence}"):
            Parts(TABLE, parts.path, SAME, kernels=kernels)


def test_a_table_that_does_not_name_its_kernels_is_not_gone_on_with_by_any(parts):
    parts.add(unit(0), rows())
    parts.join()
    assert Parts(TABLE, parts.path, SAME).missing([unit(0), unit(1)]) == [unit(1)]  # its rows depend on none
    with pytest.raises(SpecquantError, match="measured with kernels that its JSON does not name"):
        Parts(TABLE, parts.path, SAME, kernels="ours")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ({"time_ms": [1.0, -1.0]}, r'line 3: "-1.0" in column time_ms'),
        ({"time_ms": [1.0, float("nan")]}, "line 3: nothing in column time_ms"),
        ({"size": [1, 1]}, "line 3: a second row of model m, weights synthetic, process 0, size 1"),
    ],
)
def test_rows_are_checked_before_they_are_written(parts, damage, sentence):
    with pytest.raises(SpecquantError, match=sentence):
        parts.add(unit(0), rows().assign(**damage))
    assert not parts.folder.exists()
    with pytest.raises(SpecquantError, match="lacks the column time_ms"):
        parts.add(unit(0), rows().drop(columns="time_ms"))


def test_nothing_measured_is_said(parts):
    with pytest.raises(SpecquantError, match=r"own\.csv would hold no row: nothing was measured"):
        parts.join()


def test_names_of_any_length_and_kind_are_file_names(parts):
    names = ["lab/target@v1", "x" * 300, "x" * 300 + "y", "..", "a b"]
    for name in names:
        parts.add(unit(0, name), rows())
    assert set(read_results(parts.join()).model) == set(names)
    assert all(len(file.name) < 200 for file in parts.folder.iterdir())


def test_what_several_processes_say_of_themselves_is_joined(parts, monkeypatch):
    monkeypatch.setenv("SPECQUANT_COMMIT", "aaaa")
    parts.add(unit(0), rows())
    monkeypatch.setenv("SPECQUANT_COMMIT", "bbbb+")
    parts.add(unit(1), rows())
    provenance = read_provenance(parts.join())
    assert provenance["commit"] == ["aaaa", "bbbb"]
    assert provenance["uncommitted_changes"] == [False, True]
    assert provenance["parameters"] == SAME
    assert provenance == read_provenance(parts.join())  # joining twice changes nothing


def test_two_processes_at_once_lose_nothing(tmp_path):
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from tests.tables.test_parts import SAME, TABLE, rows, unit
        from specquant.tables.parts import Parts
        parts = Parts(TABLE, Path(sys.argv[1]), SAME)
        for process in range(int(sys.argv[2]), 12, 2):
            parts.add(unit(process), rows(1.5 + process))
            parts.join()
        """
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "own.csv"), str(first)], env=os.environ)
        for first in (0, 1)
    ]
    assert [process.wait() for process in running] == [0, 0]
    parts = Parts(TABLE, tmp_path / "own.csv", SAME)
    assert read_results(parts.join()).process.tolist() == sorted([*range(12)] * 2)
    assert json.loads(next(parts.folder.iterdir()).read_text())["unit"]["model"] == "m"


@pytest.mark.parametrize(
    "damage",
    [
        {"unit": {}},
        {"unit": None},
        {"unit": 7},
        {"rows": 7},
        {"rows": [7]},
        {"rows": []},
        {"provenance": 7},
        {"provenance": []},
        {"provenance": {}},
        {"provenance": {"parameters": 7}},
        {"provenance": {"device": "x", "parameters": None}},
    ],
)
@pytest.mark.parametrize("joined", [False, True])
def test_a_part_that_holds_something_else_is_refused_in_a_sentence(parts, damage, joined):
    parts.add(unit(0), rows())
    if joined:
        parts.join()
    (part,) = parts.folder.glob("*.json")
    part.write_text(json.dumps(json.loads(part.read_text()) | damage))
    with pytest.raises(SpecquantError, match=r"json"):
        Parts(TABLE, parts.path, SAME).missing([unit(0)])
    part.write_text("[" * 5000)
    with pytest.raises(SpecquantError, match=r"json is no part of own\.csv: remove it"):
        Parts(TABLE, parts.path, SAME).missing([unit(0)])


def test_rows_say_on_which_node_a_job_measured_them(parts, monkeypatch):
    parts.add(unit(0), rows())
    for process, node in ((1, "node1"), (2, "node2")):
        monkeypatch.setenv("SLURMD_NODENAME", node)
        parts.add(unit(process), rows())
    table = read_results(parts.join())
    assert table.node.fillna("").tolist() == ["", "", "node1", "node1", "node2", "node2"]
    assert read_provenance(parts.path)["node"] == [None, "node1", "node2"]
    for part in parts.folder.glob("*.json"):
        part.unlink()  # as where only the table was brought home
    monkeypatch.delenv("SLURMD_NODENAME")
    again = Parts(TABLE, parts.path, SAME)
    again.add(unit(3), rows())
    assert read_results(again.join()).node.fillna("").tolist() == [*[""] * 2, *["node1"] * 2, *["node2"] * 2, "", ""]


def test_a_part_that_is_seen_late_is_waited_for_and_one_that_never_comes_is_said(parts, monkeypatch):
    """As on NFS: the folder is listed as it was up to a minute ago."""
    parts.add(unit(0), rows())
    looks, listed = [], Parts._names_of_parts

    def late(self):
        looks.append(1)
        return listed(self) if len(looks) > 2 else set()

    monkeypatch.setattr(Parts, "_names_of_parts", late)
    parts.wait_for([unit(0)])
    assert len(looks) == 3
    assert read_results(parts.join()).process.tolist() == [0, 0]
    monkeypatch.setattr(files, "SEEN_AFTER_S", 0.1)
    with pytest.raises(SpecquantError, match=r"^1 results of jobs that ended well are not in .*own\.parts, as this"):
        parts.wait_for([unit(0), unit(1)])


def test_a_part_that_goes_while_it_is_read_is_not_there(parts, monkeypatch):
    """Another command measures all anew."""
    parts.add(unit(0), rows())
    names = Parts._names_of_parts
    monkeypatch.setattr(Parts, "_names_of_parts", lambda self: names(self) | {"gone.json"})
    assert parts.missing([unit(0), unit(1)]) == [unit(1)]
