"""Units run as jobs, or several at a time: each in a process of its own, wholly in the table or not at all."""

import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

import specquant.measure
from specquant.errors import SpecquantError
from specquant.measure import executors
from specquant.measure.executors import CARD, Here, Slurm, SlurmOptions, chosen, current, read_options
from specquant.measure.measure import Measure, _task, record, serve
from specquant.measure.parameters import Common
from specquant.tables.parts import Parts
from specquant.tables.provenance import DEVICE_OF_JOBS
from specquant.tables.results import read_provenance, read_results
from tests.measure.sleeping import MEASURE, TABLE, TIMED, Parameters

pytest.importorskip("submitit")
pytestmark = pytest.mark.usefixtures("preloaded")


@pytest.fixture
def notes(tmp_path) -> Path:
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


def local(cluster: str = "local") -> Slurm:
    return Slurm(SlurmOptions(time=5), cluster, poll_s=0.1, grace_s=2.0)


def use(monkeypatch, executor) -> None:
    monkeypatch.setattr(executors, "current", lambda: executor)


def begun(notes: Path) -> dict[int, int]:
    """How often each unit began."""
    return {int(path.name): len(path.read_text().split()) for path in sorted(notes.iterdir())}


@pytest.mark.parametrize(
    "executor", [Here(), Here(2), local("debug"), local()], ids=["here", "two here", "debug", "local"]
)
def test_a_unit_that_dies_stops_no_other_and_the_same_command_goes_on(executor, tmp_path, notes, monkeypatch):
    """By every executor: which unit died is said, with its log; what it lacks is measured later, and nothing else."""
    monkeypatch.setenv("SLURMD_NODENAME", "node7")  # of this machine; another's processes do not inherit it
    use(monkeypatch, executor)
    with pytest.raises(SpecquantError, match=r"status 3.*: what had finished is kept") as error:
        record(MEASURE, Parameters(count=2, notes=notes, dying=(0,)), tmp_path / "out")
    path = tmp_path / "out/sleeping.csv"
    assert read_results(path).process.tolist() == [1, 1]
    if executor == Here():
        assert str(error.value).startswith("the process that measured sleeping ended with status 3: ")
    else:
        said = r"sleeping synthetic 0 failed \(ended with status 3; its log is (.*?)\): what"
        log = Path(re.match(said, str(error.value))[1])
        if executor != local("debug"):  # of which all is on the terminal
            assert "the reason why it died" in log.read_text()
        kept = {path.stem for path in (tmp_path / "out/sleeping.jobs").rglob("*log*")}
        assert kept == {log.stem}  # those of others are gone
    assert record(MEASURE, Parameters(count=2, notes=notes), tmp_path / "out") == path
    node = "" if executor.elsewhere else ",node7"
    assert read_results(path).to_csv(index=False) == (
        f"weights,process,size,square{',node' if node else ''}\n"
        + "".join(f"synthetic,{n},{size},{n * n}{node}\n" for n in range(2) for size in (1, 2))
    )
    assert begun(notes) == {0: 2, 1: 1}
    assert read_provenance(path).get("node") == (None if executor.elsewhere else "node7")
    assert read_provenance(path)["device"] == read_provenance(path)["parameters"]["device"]


def test_the_sentence_of_a_job_is_that_of_the_command_also_for_another_card(tmp_path, notes, monkeypatch):
    use(monkeypatch, local())
    sentence = r"^2 processes failed, the first of them: sleeping synthetic [12]: this unit cannot be measured"
    with pytest.raises(SpecquantError, match=sentence):
        record(MEASURE, Parameters(count=3, notes=notes, refusing=(1, 2)), tmp_path / "out")
    assert not (tmp_path / "out/sleeping.jobs").exists()  # no log says more than these sentences
    (tmp_path / "out/sleeping.parts/.device").write_text("NVIDIA A100")
    with pytest.raises(SpecquantError, match=r"sleeping synthetic 1: sleeping\.csv is of NVIDIA A100, and this is "):
        record(MEASURE, Parameters(count=2, notes=notes), tmp_path / "out")
    assert read_results(tmp_path / "out/sleeping.csv").process.tolist() == [0, 0]


def test_two_commands_at_once_never_count_a_unit_twice(tmp_path, notes, monkeypatch):
    use(monkeypatch, local())
    parameters = Parameters(count=2, seconds=0.1, notes=notes)
    with ThreadPoolExecutor(2) as both:
        running = [both.submit(record, MEASURE, parameters, tmp_path / "out") for _ in range(2)]
        path, _ = (each.result() for each in running)
    assert read_results(path).process.tolist() == [0, 0, 1, 1]
    assert not list((tmp_path / "out").rglob("*.tmp"))
    # The second's jobs may also wait until the first's are done, and then do nothing again.
    before = begun(notes), {part: part.read_bytes() for part in (tmp_path / "out/sleeping.parts").glob("*.json")}
    monkeypatch.setattr(Parts, "missing", lambda self, units: list(units)[:1])  # as it was when the second began
    record(MEASURE, parameters, tmp_path / "out")
    assert before == (begun(notes), {part: part.read_bytes() for part in before[1]})


@pytest.mark.parametrize(("unit", "more"), [(0, " for 2.50 GiB more"), (1, "")])
def test_a_unit_that_does_not_fit_the_gpu_is_named_in_a_sentence(in_process, tmp_path, notes, unit, more):
    with pytest.raises(
        SpecquantError, match=rf"^sleeping synthetic {unit} did not fit: the GPU's memory has no room{more}: let fewer"
    ):
        record(MEASURE, Parameters(count=2, notes=notes, full=(unit,)), tmp_path / "out")
    assert (tmp_path / "out/sleeping.csv").is_file() == (unit == 1)  # what had finished is kept


def test_jobs_of_two_cards_are_not_mixed(tmp_path):
    def of(card: str) -> Parts:
        return Parts(TABLE, tmp_path / "sleeping.csv", {"seconds": 0.0, "device": card})

    of("NVIDIA H200").claim_device()
    of("NVIDIA H200").claim_device()
    with pytest.raises(
        SpecquantError, match=r"sleeping\.csv is of NVIDIA H200, and this is NVIDIA A100: ask for one kind"
    ):
        of("NVIDIA A100").claim_device()
    of("NVIDIA A100").forget_device()  # no row came of it
    of("NVIDIA A100").claim_device()
    assert [path.name for path in (tmp_path / "sleeping.parts").iterdir()] == [".device"]


def test_no_table_of_any_measure_mixes_cards(tmp_path):
    """Neither where jobs begin nor where parts are there already."""
    modules = [import_module(f"specquant.measure.{each.name}") for each in iter_modules(specquant.measure.__path__)]
    every = {each.name: each for module in modules for each in vars(module).values() if isinstance(each, Measure)}
    assert len(every) > 20
    for measure in every.values():
        assert "device" in {each.name for each in fields(measure.parameters)}
        assert issubclass(measure.parameters, Common)
        for table in measure.tables:
            mine, theirs = (Parts(table, tmp_path / f"{table.name}.csv", {"device": card}) for card in "AB")
            mine.claim_device()
            with pytest.raises(SpecquantError, match=rf"{table.name}\.csv is of A, and this is B: ask for one kind"):
                theirs.claim_device()
            part = {"unit": dict.fromkeys(table.unit, 0), "rows": [], "provenance": {"device": "A", "parameters": {}}}
            (mine.folder / "a.json").write_text(json.dumps(part))
            with pytest.raises(SpecquantError, match="holds rows measured with device A, not B"):
                theirs.missing([])


def test_a_job_on_another_card_than_the_tables_are_to_be_of_measures_nothing(tmp_path, notes, monkeypatch):
    parameters, told = Parameters(count=1, notes=notes), []
    parts = Parts(TABLE, tmp_path / "sleeping.csv", {"seconds": 0.0})
    task = _task(MEASURE, parameters, parameters.units(), [parts])
    monkeypatch.setenv(CARD, "h200")
    serve(json.loads(task.order), told.append)
    assert [list(each) for each in told] == [["error"]]
    assert told[0]["error"].startswith("the tables are to be of the card h200, and this machine is ")
    assert begun(notes) == {}


@pytest.mark.parametrize(
    ("trace", "reason"),
    [
        (
            "Traceback\n  File x\nUncompletedJobError: timed-out too many times.",
            "its time is over",
        ),
        ("Traceback\n  File x\nFileNotFoundError: no file 'a'", "FileNotFoundError: no file 'a'"),
    ],
)
def test_why_a_job_has_no_result_is_said_in_a_few_words(tmp_path, trace, reason):
    """It is what submitit's exception says, without its advice for Python."""
    from submitit.core import utils
    from submitit.local.local import LocalJob

    job = LocalJob(tmp_path, "7")
    utils.cloudpickle_dump(("error", trace), job.paths.result_pickle)
    assert executors._ended(job) == [{"ended": None, "log": str(job.paths.stderr), "why": reason}]


def test_what_is_timed_has_this_machine_to_itself(tmp_path, notes, monkeypatch):
    use(monkeypatch, Here(2))
    with pytest.raises(
        SpecquantError, match="sleeping takes times, which need this machine to themselves: leave --jobs"
    ):
        record(TIMED, Parameters(count=1, notes=notes), tmp_path / "out")


def test_a_choice_is_handed_on_and_ends(tmp_path):
    file = tmp_path / "slurm.yaml"
    file.write_text("partition: gpu\ngres: gpu:h200:1\nsetup: [module load cuda]\nnotebooks: {gres: null, time: 600}\n")
    with chosen("slurm", slurm=file):
        executor = current()
        assert isinstance(executor, Slurm)
        assert executor.options == read_options(file)
        assert os.environ[DEVICE_OF_JOBS] == "cuda"
        notebooks = executor.of_notebooks()
        assert (notebooks.options.partition, notebooks.options.gres, notebooks.options.time) == ("gpu", None, 600)
    assert current() == Here()
    assert DEVICE_OF_JOBS not in os.environ
    with chosen(jobs=4):
        assert current() == Here(4)


def test_options_are_those_of_sbatch(tmp_path):
    from submitit import AutoExecutor

    options = SlurmOptions("gpu", "us", "high", "gpu:1", "h200", True, 90, 8, 64, 16, ("module load cuda",))
    executor = AutoExecutor(tmp_path, cluster="debug")
    executor.update_parameters(**options.parameters())  # refuses what it does not know
    from submitit.slurm import slurm

    script = slurm._make_sbatch_string(
        "true",
        tmp_path,
        time=90,
        **{name.removeprefix("slurm_"): value for name, value in options.parameters().items() if "slurm_" in name},
    )
    for line in ("--partition=gpu", "--account=us", "--qos=high", "--gres=gpu:1", "--constraint=h200", "--exclusive"):
        assert f"#SBATCH {line}\n" in script
    assert "module load cuda" in script


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("partion: gpu", "there is no option 'partion': did you mean partition"),
        ("42: gpu", "there is no option '42': choose from partition, account"),
        ("time: soon", "time is 'soon': give a whole number"),
        ("time: 0", "time is 0: give at least 1"),
        ("exclusive: 1", "exclusive is 1: give true or false"),
        ("notebooks: {gras: 1}", "notebooks: there is no option 'gras': did you mean gres"),
        ("notebooks: {notebooks: {time: 1}}", "notebooks: there is no option 'notebooks': choose from"),
        ("notebooks: [time]", "notebooks must hold lines of the form"),
        ('partition: ""', "partition is '': give one word, or leave it out"),
        ('account: "a\\nb"', r"account is 'a\\nb': give one word"),
        ("constraint: h200 or h100", "constraint is 'h200 or h100': give one word"),
        ("gres: 1", "gres is 1: give text or nothing"),
        ("setup: module load cuda", "setup is 'module load cuda': give a list"),
        ("at_once: 0", "at_once is 0: give at least 1"),
        ("mem_gb: 1.5", "mem_gb is 1.5: give a whole number or nothing"),
        ("- gpu", "must hold lines of the form"),
        ("a: [", "is not valid YAML"),
        ("time: 1:00:00", "time is '1:00:00': give a whole number"),
        ("time: 2026-13-45", "time is '2026-13-45': give a whole number"),
        (f"time: {'9' * 5000}", "is not valid YAML: Exceeds the limit"),
        ("time: 60\ntime: 90", "line 2: time is there twice"),
        ("notebooks: &all {notebooks: *all}", "line 1: anchors, aliases and tags are not for options"),
    ],
)
def test_options_that_are_none_are_refused_in_a_sentence(tmp_path, text, sentence):
    (tmp_path / "slurm.yaml").write_text(text)
    with pytest.raises(SpecquantError, match=sentence):
        read_options(tmp_path / "slurm.yaml")


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ({"executor": "slurm", "jobs": 2}, "--jobs is for --executor here"),
        ({"slurm": "x.yaml"}, "--slurm is for --executor slurm"),
        ({"executor": "slurm", "slurm": "/no/such.yaml"}, "cannot read Slurm's options"),
    ],
)
def test_choices_that_do_not_belong_together_are_refused(choice, sentence):
    with pytest.raises(SpecquantError, match=sentence), chosen(**choice):
        pass


def test_the_file_that_comes_with_the_project_is_read():
    options = read_options(executors.SLURM_FILE)
    assert options.device == "cuda"
    assert Slurm(options).of_notebooks().options.device == "cpu"


def test_without_submitit_what_to_do_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with (
        pytest.raises(SpecquantError, match=r"jobs of Slurm need submitit: pip install 'specquant\[slurm\]'"),
        chosen("slurm"),
    ):
        pass


def test_without_slurm_the_command_says_so(tmp_path, notes, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    use(monkeypatch, Slurm(SlurmOptions()))
    with pytest.raises(SpecquantError, match=r"Slurm took no jobs .*srun.*: mend the options, or leave --executor out"):
        record(MEASURE, Parameters(count=1, notes=notes), tmp_path / "out")
