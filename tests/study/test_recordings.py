import json
import shlex
import signal
from functools import partial
from importlib import import_module

import pytest
import torch

from specquant.cli import command_line, parsed
from specquant.commands.measures import NAMES
from specquant.errors import SpecquantError
from specquant.files import project_root
from specquant.measure import ceilings
from specquant.measure.executors import chosen
from specquant.study import recordings
from specquant.tables.results import read_provenance, read_results
from specquant.tables.sources import kernels_sha256

FILES = {command: file for file, command in NAMES.items()}
QUICK = "verify-cost --model data/tiny/target --weights synthetic --schemes fp16 --draft-sizes 1 --contexts 8"
QUICK += " --repeats 2 --processes 1 --blocks 1 --device cpu"


@pytest.mark.parametrize("card", ["h200", "cpu"])
def test_every_command_is_one_of_this_project(card):
    every = recordings.commands(card)
    assert len(set(every)) == len(every)
    for command in every:
        parsed(command_line(), ["bench", *shlex.split(command), "--out", "out"])


RECORDED = project_root() / "data/recorded"
# Tables that no command of the list writes, and what wrote them.
BY_THE_STUDY = {
    f"cpu/smollm2/{table}.csv": "specquant study --profile smollm2"
    for table in (
        *("01_acceptance/throughput", "03_hierarchical/throughput"),
        *("04_quality/quality", "04_quality/rounded/quality"),
    )
}


def written(command, folder):
    """The tables that a command of the list writes."""
    (_, name, *_), place = recordings.placed(command, folder)
    file = FILES.get(name, name.replace("-", "_"))
    module = import_module(f"specquant.measure.{file}")
    _, bound = parsed(command_line(), ["bench", *shlex.split(command)])
    if file == "tasks":
        return {place / f"{bound.kwargs['parameters'].benchmark}.csv"}
    tables = [*module.MEASURE.tables, *(ceilings.MEASURE.tables if file == "kernels" else ())]
    return {place / f"{table.name}.csv" for table in tables}


@pytest.mark.parametrize(
    "folder", sorted(path for path in RECORDED.iterdir() if path.is_dir()), ids=lambda path: path.name
)
def test_every_recorded_table_is_one_of_a_command(folder):
    """A table that no command of the list writes is never recorded again."""
    found = {table for command in recordings.commands(folder.name) for table in written(command, folder)}
    recorded = {path for path in folder.rglob("*.csv")}
    by_others = {RECORDED / name for name in BY_THE_STUDY if name.startswith(f"{folder.name}/")}
    assert recorded - found == by_others


@pytest.mark.parametrize("table", BY_THE_STUDY)
def test_what_the_study_wrote_says_so(table):
    assert BY_THE_STUDY[table] in read_provenance(RECORDED / table)["command"]


def test_tables_go_to_the_folder_that_a_command_names_below_the_card_s(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(recordings, "commands", lambda card: ["heads", "trees --out small/a --prompts-per-task 1"])
    monkeypatch.setattr(recordings, "_run", lambda words, card, ends: ran.append(words) or 0)
    recordings.record_card("cpu", tmp_path, tell=lambda line: None)
    assert ran == [
        ["bench", "heads", "--out", str(tmp_path)],
        ["bench", "trees", "--prompts-per-task", "1", "--out", str(tmp_path / "small/a")],
    ]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (
            '"throughput --prompts \'a"',
            r"\"throughput --prompts 'a\" of 'cpu' is no command \(No closing quotation\): corr",
        ),
        ('"  "', "a command of 'cpu' is blank: correct it"),
        ("5", "has no list 'cpu' of commands: give one"),
    ],
)
def test_what_is_no_command_is_refused_before_any_runs(tmp_path, written, said):
    (tmp_path / "commands.yaml").write_text(f"cpu:\n  - heads\n  - {written}\n")
    with pytest.raises(SpecquantError, match=rf"commands\.yaml:? {said}"):
        recordings.commands("cpu", tmp_path / "commands.yaml")


def test_a_cpu_is_called_so_in_capitals_too(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(recordings, "_run", lambda words, card, ends: ran.append(card) or 0)
    assert recordings.record_card("CPU", tmp_path, None, lambda line: None) == []
    assert set(ran) == {"cpu"}


@pytest.fixture
def told(monkeypatch, tmp_path):
    """Record by other commands into a folder; gives the table's folder, a function to run them, and what it told."""
    lines = []

    def run(*every, minutes=None):
        path = tmp_path / "commands.yaml"
        path.write_text("cpu:\n" + "".join(f"  - {command}\n" for command in every))
        monkeypatch.setattr(recordings, "commands", lambda card: given(card, path))
        return recordings.record_card("cpu", tmp_path / "cpu", minutes, lines.append)

    given = recordings.commands
    return tmp_path / "cpu", run, lines


def test_a_command_that_fails_does_not_stop_the_next_and_what_is_there_is_not_measured_again(told, preloaded):
    folder, run, lines = told
    assert run("nonsense", QUICK) == ["nonsense"]
    assert "  it failed with status 2; the next goes on" in lines
    table = folder / "verify_cost.csv"
    first = table.read_bytes()
    assert len(read_results(table)) == 1
    with chosen(jobs=2, for_several=True):  # what is timed then runs alone, and is not refused
        assert run(QUICK) == []
    assert table.read_bytes() == first
    assert not [line for line in lines if "lacks" in line]


@pytest.mark.parametrize("interrupts", [signal.default_int_handler, signal.SIG_IGN], ids=["heeded", "ignored"])
def test_when_the_time_is_over_the_rest_is_left(told, request, interrupts):
    folder, run, lines = told
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, interrupts)))
    endless = QUICK.replace("--repeats 2", "--repeats 1000000")  # Python loses an interrupt now and then as it starts
    assert run(endless, QUICK.replace("--draft-sizes 1", "--draft-sizes 3"), minutes=0.01) == []
    assert lines[-1] == "the time is over: 1 of 2 commands are left"
    assert not (folder / "verify_cost.csv").exists()


def test_tables_of_other_kernels_are_told_first(tmp_path, monkeypatch):
    monkeypatch.setattr(recordings, "require_card", lambda card: None)
    monkeypatch.setattr(recordings, "commands", lambda card: ["replay --out traced"])
    times = {"device": "a GPU", "clock": "events", "commit": "c0ffee"}
    for name, record in {
        "attention": times | {"kernels_sha256": kernels_sha256()},
        "drafting": times,
        "traced/replayed": times | {"kernels_sha256": "0" * 64},
        "traces": times | {"clock": "none"},
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.csv").touch()
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    (tmp_path / "rounds.csv").touch()  # its command will say that it has no JSON
    lines = []
    monkeypatch.setattr(recordings, "_run", lambda words, card, ends: 0)
    assert recordings.record_card("h200", tmp_path, tell=lines.append) == []
    refused = "is stale, so its commands will be refused: its rows were measured with"
    assert lines[:-1] == [
        f"drafting.csv {refused} kernels that its JSON does not name (commit c0ffee)",
        f"traced/replayed.csv {refused} other kernels (commit c0ffee)",
    ]
    recordings.record_card("cpu", tmp_path, tell=lines.append)
    assert len(lines) == 4


def test_tables_from_before_a_parameter_or_a_column_are_told_first(told, preloaded):
    folder, run, lines = told
    table = folder / "verify_cost.csv"
    assert run(QUICK) == []
    read_results(table).drop(columns="launch_us").to_csv(table, index=False)
    record = read_provenance(table)
    assert record["parameters"].pop("seed") == record["parameters"].pop("blocks") - 1 == 0
    table.with_suffix(".json").write_text(json.dumps(record))
    lines.clear()
    run(QUICK)
    first = f"1 of 1: specquant bench {QUICK}"
    assert lines[: lines.index(first)] == [
        "verify_cost.csv lacks the parameters blocks, seed, so its commands may be refused",
        "verify_cost.csv lacks the column launch_us, which only new rows will have",
    ]


def test_a_machine_without_a_gpu_names_stale_tables_too(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "attention.csv").touch()
    record = {"device": "a GPU", "clock": "events", "commit": "c0ffee", "kernels_sha256": "0" * 64}
    (tmp_path / "attention.json").write_text(json.dumps(record))
    lines = []
    with pytest.raises(SpecquantError, match="card h200, and this machine has no GPU"):
        recordings.record_card("h200", tmp_path, tell=lines.append)
    assert [line.split(":")[0] for line in lines] == ["attention.csv is stale, so its commands will be refused"]


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(minutes):
    with pytest.raises(SpecquantError, match="give more than 0"):
        recordings.record_card("cpu", minutes=minutes)


def test_tables_of_another_card_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SpecquantError, match="card h200, and this machine has no GPU"):
        recordings.record_card("h200")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(recordings, "device_name", lambda device: "NVIDIA H100 80GB HBM3")
    with pytest.raises(SpecquantError, match="card h200, and this machine is NVIDIA H100"):
        recordings.record_card("h200")
    recordings.require_card("H100")


@pytest.mark.parametrize("card", ["", " ", "..", "h200/..", "/tmp"])
def test_a_card_that_is_no_word_is_refused(card):
    with pytest.raises(SpecquantError, match=r"--card is .*: give cpu, or a word of the GPU's name, such as h200"):
        recordings.record_card(card)


def test_the_options_of_executors_are_taken_and_jobs_have_the_kind_of_card(tmp_path):
    pytest.importorskip("submitit")
    file = tmp_path / "slurm.yaml"
    _, bound = parsed(command_line(), ["record", "--card", "h200", "--executor", "slurm", "--slurm", str(file)])
    assert (bound.arguments["executor"], bound.arguments["slurm"]) == ("slurm", file)
    file.write_text("partition: cpu\n")
    with chosen("slurm", slurm=file):
        recordings.require_card("cpu")
        with pytest.raises(SpecquantError, match="card h200, and the jobs have no GPU: ask for one by gres"):
            recordings.record_card("h200")
    file.write_text("gres: gpu:1\n")
    with chosen("slurm", slurm=file):
        recordings.require_card("h200")
        with pytest.raises(SpecquantError, match="card cpu, and the jobs have a GPU: leave gres out"):
            recordings.record_card("cpu")


@pytest.mark.parametrize("text", ["gpu: [", "gpu: kernels", "gpu: [1]", "cpu: [kernels]", "- kernels", "gpu: []"])
def test_commands_that_are_none_are_refused(text, tmp_path):
    path = tmp_path / "commands.yaml"
    path.write_text(text)
    with pytest.raises(SpecquantError, match=r"commands\.yaml"):
        recordings.commands("h200", path)
