"""data/recorded: a command wrote each table, on a card, at a commit; those that lack something are listed here."""

import json
import re
import shlex
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from itertools import takewhile

import pandas as pd
import pytest

from specquant.cli import main
from specquant.errors import SpecquantError
from specquant.files import project_root, sha256_of, with_part
from specquant.models.digest import model_digest
from specquant.models.packaged import PACKAGED
from specquant.study.kernels_used import MARKERS, PAGE, kernels_list, write_kernels_used
from specquant.study.paper import _tables
from specquant.tables.results import read_results
from specquant.tables.sources import digest_of_sources, needs_kernels

DATA = project_root() / "data"
# Tables whose JSON has a caveat, and why they are kept all the same. A session on the card records them again.
WITH_A_CAVEAT = {
    "recorded/h200/tiny/losslessness.csv": "it shows how often the tiny models' tokens differ in half precision",
    "recorded/h200/tiny/throughput.csv": "of the same run",
}
# What no command of this project wrote, and why it is kept.
WITHOUT_A_COMMAND = {
    "published/specmquant_steps.csv": "the paper's own code wrote it",
    "published/specmquant_verify_cost.csv": "the paper's own code wrote it",
    "published/specquant_blocks_and_turns.csv": "08_timing shows by it what sizes in turn would have said",
}


def provenance_of(table):
    path = table.with_suffix(".json")
    assert path.is_file(), f"{table.name} has no JSON: record it by a command, or remove it with its sentences"
    return json.loads(path.read_text())


def refused(table) -> list[str]:
    """What the JSON beside a recorded table lacks."""
    record = provenance_of(table)
    found = [name for name in ("command", "commit", "device", "date", "platform") if not record.get(name)]
    commands = record.get("command") or []
    for command in [commands] if isinstance(commands, str) else commands:
        found += [] if known(shlex.split(command)) else [f"a command of this project: {command}"]
    commits = record.get("commit") or []
    for commit in [commits] if isinstance(commits, str) else commits:
        found += [] if len(commit) == 40 and set(commit) <= set("0123456789abcdef") else [f"a commit: {commit}"]
    return found


# Notebooks have other numbers since these recordings.
RENAMED = {"notebooks/03_quality.ipynb": "notebooks/04_quality.ipynb"}


def known(words: list[str]) -> bool:
    """Whether the command line, or papermill, would take these words."""
    if words[0] == "papermill":
        return (project_root() / RENAMED.get(words[1], words[1])).is_file()
    if words[0] != "specquant":
        return False
    options = [word for word in words if word.startswith("--")]
    page = StringIO()
    try:
        with redirect_stdout(page), redirect_stderr(StringIO()):
            status = main([*takewhile(lambda word: not word.startswith("-"), words[1:3]), "--help"])
    except SystemExit as error:
        status = error.code
    return not status and all(option.partition("=")[0] in page.getvalue() for option in options)


SAME = ["model", "scheme", "context_length", "row_invariant"]  # rows of one measurement, but for the process
RECORDED = sorted((DATA / "recorded").rglob("*.csv"))


@pytest.mark.parametrize("table", RECORDED, ids=lambda path: path.relative_to(DATA).as_posix())
def test_a_command_wrote_it(table):
    assert not refused(table)


def test_what_is_kept_in_spite_of_a_caveat_is_listed_here():
    with_one = {table.relative_to(DATA).as_posix() for table in RECORDED if "caveat" in provenance_of(table)}
    assert with_one == set(WITH_A_CAVEAT)
    drawn = {path for _, _, tables in _tables(DATA, only=()) for path in tables}
    assert not drawn & {DATA / table for table in WITH_A_CAVEAT}  # a caption would have to tell of the caveat
    by_none = {path.relative_to(DATA).as_posix() for path in (DATA / "published").glob("spec*quant_*.csv")}
    assert by_none == set(WITHOUT_A_COMMAND)


def of_a_gpu(table) -> bool:
    record = provenance_of(table)
    return bool(record["driver"]) and needs_kernels("cuda", record["clock"])


@pytest.mark.parametrize(
    "table", [*filter(of_a_gpu, RECORDED)], ids=lambda path: path.relative_to(DATA).with_suffix("").as_posix()
)
def test_it_was_measured_with_the_kernels_of_its_commit(table):
    record = provenance_of(table)
    commits, told = (
        value if isinstance(value, list) else [value] for value in (record["commit"], record.get("kernels_sha256"))
    )
    if record["uncommitted_changes"]:
        assert told == [None], "of files that differed from the commit nobody knows the digest"
        return
    found = [kernels_of(commit) for commit in commits]
    if None in found:
        pytest.skip("its commit is not in this clone, or there is no git")
    assert sorted(set(found)) == sorted(told)


@cache
def kernels_of(commit: str) -> str | None:
    """The digest of the kernels as they were at a commit; None where this clone does not know it."""
    place = f"{commit}:src/specquant/kernels"
    try:
        names = git("ls-tree", "--name-only", place).decode().split()
        return digest_of_sources(
            {name: git("show", f"{place}/{name}") for name in names if name.endswith((".py", ".json"))}
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def git(*words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=project_root(), capture_output=True, check=True).stdout


def test_the_files_that_a_table_is_of_are_those_that_are_here():
    """Its command would refuse to go on with a table of others."""
    models = [path.parent for path in DATA.glob("*/*/config.json")]
    here = {*map(sha256_of, DATA.rglob("*.*")), *map(model_digest, [*models, *PACKAGED])}
    for table in RECORDED:
        told = provenance_of(table)["parameters"]
        of_files = {name: told[name] for name in told if name.startswith("digest of ") or name.endswith("_sha256")}
        others = {name for name, digest in of_files.items() if digest not in here}
        assert others <= {"questions_sha256", "kernels_sha256", "text_sha256"}, table  # what does not ship


def test_the_readme_says_which_tables_are_of_which_kernels(tmp_path):
    """Run `specquant claims` where it does not."""
    written = (project_root() / PAGE).read_text()
    assert with_part(written, MARKERS, f"\n{kernels_list(DATA / 'recorded')}\n", PAGE) == written
    page = tmp_path / PAGE
    page.parent.mkdir(parents=True)
    page.write_text("\n".join(MARKERS))
    for name, kernels in {"a": "12345678", "b": ["12345678", "87654321"], "c": None}.items():
        record = {"device": "GPU", "driver": "1", "clock": "events", "date": "2026-11-29T10:00:00+00:00"}
        (page.parent / f"{name}.csv").touch()
        (page.parent / f"{name}.json").write_text(json.dumps(record | {"kernels_sha256": kernels}))
    assert write_kernels_used(tmp_path) == [page]
    told = page.read_text()
    assert "| `12345678` | 2026-11-29 | `a.csv`, `b.csv` (some rows) |" in told
    assert "| `87654321` | 2026-11-29 | `b.csv` (some rows) |" in told
    assert "| not known: files differed from the commit | 2026-11-29 | `c.csv` |" in told
    (page.parent / "c.json").write_text(json.dumps({"device": "GPU", "driver": "1", "clock": "events"}))
    with pytest.raises(SpecquantError, match=r"c\.json names no date: measure its table again"):
        write_kernels_used(tmp_path)


def described(folder: str) -> str:
    """The README of a folder of tables, without the list of kernels, which describes none."""
    page = (DATA / folder / "README.md").read_text()
    return with_part(page, MARKERS, "\n", PAGE) if folder == "recorded" else page


@pytest.mark.parametrize("folder", ["recorded", "published"])
def test_the_readme_describes_each_table(folder):
    for table in (DATA / folder).rglob("*.csv"):
        assert f"`{table.relative_to(DATA / folder).as_posix()}`" in described(folder)


def test_the_readme_says_how_many_processes_each_table_of_a_gpu_has():
    lines, counted = described("recorded").splitlines(), ["one process", "two processes", "three processes"]
    for line in lines:
        named = {DATA / "recorded" / name for name in re.findall(r"`([\w/]+\.csv)`", line.partition(" | ")[0])}
        tables = [read_results(table) for table in named if of_a_gpu(table)]
        found = {
            count
            for table in tables
            if "process" in table
            for count in table.assign(all=0)
            .groupby(["all", *(name for name in SAME if name in table)])
            .process.nunique()
        }
        told = {number for number, words in enumerate(counted, 1) if words in line}
        assert not found or told == found, line


@pytest.mark.parametrize(
    ("change", "lacks"),
    [
        ({"command": None}, "command"),
        ({"command": "python script.py"}, "a command of this project: python script.py"),
        ({"command": "specquant bench speed"}, "a command of this project: specquant bench speed"),
        ({"command": "specquant bench kernels --fast"}, "a command of this project: specquant bench kernels --fast"),
        ({"commit": "by hand"}, "a commit: by hand"),
        ({"device": ""}, "device"),
        ({"date": None}, "date"),
    ],
)
def test_a_table_that_lacks_something_is_refused(tmp_path, change, lacks):
    table = tmp_path / "verify_cost.csv"
    pd.DataFrame({"time_ms": [1.0]}).to_csv(table)
    with pytest.raises(AssertionError, match="has no JSON"):
        refused(table)
    sound = json.loads((DATA / "recorded/h200/verify_cost.json").read_text())
    table.with_suffix(".json").write_text(json.dumps(sound))
    assert refused(table) == []
    table.with_suffix(".json").write_text(json.dumps(sound | change))
    assert lacks in refused(table)
