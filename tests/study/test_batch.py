import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from specquant.errors import SpecquantError
from specquant.study import batch

WRITE_TABLE = "open(results_dir + '/table.csv', 'w').write(f'weights,draft_size\\ntrained,{draft_size}\\n');"


def test_runs_all_in_order_and_skips_what_did_not_change(clone, run):
    clone.notebook("01_second", "print('drafts:', draft_size)")
    clone.notebook("00_first", WRITE_TABLE)
    assert run() == []
    assert clone.runs() == ["00_first", "01_second"]
    assert clone.executed("01_second").cells[-1].outputs[0].text == "drafts: 4\n"
    assert (clone.results / "tiny/table.csv").read_text() == "weights,draft_size\ntrained,4\n"

    assert run() == []
    assert len(clone.runs()) == 2  # nothing changed

    (clone.results / "tiny/table.csv").unlink()
    run()
    assert clone.runs()[2:] == ["00_first"]  # its table was gone

    clone.notebook("01_second", "print('other drafts:', draft_size)")
    run()
    assert clone.runs()[3:] == ["01_second"]

    run(only=["second"], force=True)
    assert clone.runs()[4:] == ["01_second"]

    report = (clone.results / "tiny/index.html").read_text()
    for link in ("notebooks/00_first.html", "notebooks/01_second.ipynb", 'href="table.csv"'):
        assert link in report
    assert "other drafts: 4" in (clone.results / "tiny/notebooks/01_second.html").read_text()
    leftovers = [path.name for path in (clone.results / "tiny").rglob(".*")]
    assert leftovers == []


@pytest.mark.parametrize("change", ["code", "data", "parameters"])
def test_inputs_decide(clone, run, change):
    clone.notebook("00_first", "print(draft_size)")
    run()
    if change == "parameters":
        clone.profile("tiny", "draft_size: 5\n")
    else:
        (clone.root / {"code": "src/code.py", "data": "data/new.txt"}[change]).write_text("changed\n")
    run()
    assert len(clone.runs()) == 2


def test_outputs_in_the_source_notebook_are_no_input(clone, run):
    clone.notebook("00_first", "print(draft_size)")
    run()
    source = clone.root / "notebooks/00_first.ipynb"
    content = json.loads(source.read_text())
    content["cells"][-1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "4"}]
    source.write_text(json.dumps(content))
    run()
    assert len(clone.runs()) == 1


def test_a_folder_that_cannot_be_written_any_more_is_named_once(clone, run):
    """Tidying up fails for the same reason, and does not hide the first error."""
    code = "import shutil; shutil.rmtree(results_dir); open(results_dir, 'w').close(); print(draft_size)"
    clone.notebook("00_first", code)
    with pytest.raises(SpecquantError, match=r"cannot write .*tiny/notebooks/00_first.ipynb: "):
        run()


def test_an_error_of_the_system_midway_is_one_sentence(clone, run, monkeypatch):
    def deny(*_):
        raise PermissionError(13, "Permission denied", "a record")

    clone.notebook("00_first", "print(draft_size)")
    monkeypatch.setattr(batch, "_run", deny)
    with pytest.raises(
        SpecquantError, match=r"cannot write to .*tiny/notebooks \(Permission denied\): make it writable"
    ):
        run()


def test_a_failing_notebook_is_kept_and_the_others_run(clone, run, capsys):
    clone.notebook("00_broken", "def verify():\n    raise ArithmeticError('tokens differ')\nverify()")
    clone.notebook("01_good", "print('fine')")
    assert run() == ["00_broken"]
    assert "00_broken: FAILED" in capsys.readouterr().err
    kept = clone.results / "tiny/notebooks/00_broken.html"
    outputs = [output for cell in clone.executed("00_broken").cells for output in cell.get("outputs", [])]
    error = next(output for output in outputs if output.output_type == "error")
    assert error.ename == "ArithmeticError"
    assert any("verify()" in line for line in error.traceback)
    assert "tokens differ" in kept.read_text()
    assert "tokens differ" in (clone.results / "tiny/index.html").read_text()

    assert run() == ["00_broken"]  # a failure is no good run: it runs again, the good one does not
    assert clone.runs() == ["00_broken", "01_good", "00_broken"]


def test_a_dead_kernel_is_a_failure(clone, run):
    clone.notebook("00_dies", "import os; os.kill(os.getpid(), 9)")
    assert run() == ["00_dies"]
    assert "DeadKernel" in json.loads((clone.results / "tiny/notebooks/00_dies.json").read_text())["error"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_batch_continues_where_it_stopped(clone, run, how):
    clone.notebook("00_first", WRITE_TABLE)
    waiting, go_on = clone.root / "waiting", clone.root / "go_on"
    clone.notebook(
        "01_second",
        f"import pathlib, time\npathlib.Path({str(waiting)!r}).touch()\n"
        f"while not pathlib.Path({str(go_on)!r}).exists(): time.sleep(0.05)",
    )
    program = (
        "import pathlib, signal, sys; from specquant.study import batch; from specquant.cli import main;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"  # a shell's background jobs ignore it
        f"batch.project_root = lambda: pathlib.Path({str(clone.root)!r});"
        f"sys.exit(main(['study', '--results', {str(clone.results)!r}]))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not waiting.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(process.pid, how)
    status = process.wait(timeout=60)
    go_on.touch()
    assert status == (130 if how == signal.SIGINT else -signal.SIGKILL)
    names = {path.name for path in (clone.results / "tiny/notebooks").iterdir()}
    partial = {".01_second.partial.ipynb"} if how == signal.SIGKILL else set()
    assert names == {"00_first.ipynb", "00_first.html", "00_first.json"} | partial

    assert run() == []
    assert clone.runs() == ["00_first", "01_second", "01_second"]
    assert not list((clone.results / "tiny").rglob(".*"))


def test_an_unknown_parameter_is_refused_before_anything_runs(clone, run):
    clone.notebook("00_first", "print(draft_size)")
    clone.profile("tiny", "draft_sise: 4\n")
    with pytest.raises(SpecquantError, match=r"tiny\.yaml: .*'draft_sise'.*did you mean 'draft_size'"):
        run()
    assert clone.runs() == []
    assert not clone.results.exists()


@pytest.mark.parametrize(
    ("declared", "wrong", "right"),
    [
        ("draft_size = 1", "many", 8),
        ("draft_size: int = 1", "1.5", 8),
        ("draft_size: int = 1", "true", 8),
        ("draft_size: int = 1", "", 8),
        ("draft_size: float = 1", "1e-3", 0.5),  # YAML 1.1 reads 1e-3 as text
        ("draft_size = 0.5", "[0.5]", 1),
        ("draft_size = 'small'", "3", "large"),
        ("draft_size: bool = True", "1", False),
        ("draft_size: list[int] = [1]", "[1, two]", [1, 2]),
        ("draft_size = [1]", "3", ["anything"]),
        ("draft_size: dict = {}", "[]", {"any": "thing"}),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_before_anything_runs(clone, run, declared, wrong, right):
    clone.notebook("00_first", "print(draft_size)", parameters=declared)
    clone.profile("tiny", f"draft_size: {wrong}\n")
    type_name = batch.parameter_types(clone.root / "notebooks/00_first.ipynb")["draft_size"]
    with pytest.raises(SpecquantError, match=re.escape(f"give a value of the type {type_name}")):
        run()
    assert clone.runs() == []
    assert not clone.results.exists()
    clone.profile("tiny", f"draft_size: {json.dumps(right)}\n")
    assert batch.read_profile("tiny", {"draft_size": type_name}) == {"draft_size": right}


def test_a_default_that_is_computed_may_be_anything(clone):
    clone.notebook("00_first", "pass", parameters="draft_size = max(1, 2)")
    assert batch.parameter_types(clone.root / "notebooks/00_first.ipynb") == {"draft_size": "Any"}
    assert batch.read_profile("tiny", {"draft_size": "Any"}) == {"draft_size": 4}


def test_a_file_that_is_no_notebook_is_refused(clone, run):
    clone.notebook("00_first", "pass")
    (clone.root / "notebooks/01_torn.ipynb").write_text('{"cells": [')
    with pytest.raises(SpecquantError, match=r"01_torn\.ipynb is no notebook"):
        run()
    assert clone.runs() == []


def test_a_notebook_gets_only_the_parameters_it_declares(clone, run):
    clone.notebook("00_first", "print(sorted(set(globals()) & {'draft_size', 'top_k', 'results_dir'}))")
    clone.notebook("01_second", "print(top_k)", parameters="top_k = 2")
    clone.profile("tiny", "draft_size: 4\ntop_k: 10\n")
    assert run() == []
    assert clone.executed("00_first").cells[-1].outputs[0].text == "['draft_size', 'results_dir']\n"
    assert clone.executed("01_second").cells[-1].outputs[0].text == "10\n"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"profile": "huge"}, "unknown profile 'huge': notebooks/profiles/ has listed, tiny"),
        ({"profile": "listed"}, "listed.yaml must hold lines of the form"),
        ({"only": ["02_missing"]}, "no notebook '02_missing': choose from 00_first"),
    ],
)
def test_bad_requests_are_refused(clone, run, options, sentence):
    clone.notebook("00_first", "pass")
    clone.profile("listed", "- draft_size\n")
    with pytest.raises(SpecquantError, match=sentence.replace(".", r"\.")):
        run(**options)
    assert clone.runs() == []


def test_broken_yaml_is_refused(clone, run):
    clone.notebook("00_first", "pass")
    for damaged in (b"draft_size: [1, 2\n", b"\xff\xfe"):
        (clone.root / "notebooks/profiles/tiny.yaml").write_bytes(damaged)
        with pytest.raises(SpecquantError, match=r"tiny\.yaml is not valid YAML"):
            run()


def test_an_unwritable_output_folder_is_refused_before_anything_runs(clone, tmp_path):
    clone.notebook("00_first", "pass")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SpecquantError, match=r"cannot write .*file"):
        batch.run_study(results=tmp_path / "file")
    (clone.results / "tiny").mkdir(parents=True)
    (clone.results / "tiny/notebooks").write_text("in the way")
    with pytest.raises(SpecquantError, match=r"cannot write .*notebooks"):
        batch.run_study(results=clone.results)
    assert clone.runs() == []


def test_damaged_records_and_checkpoints_of_jupyterlab_do_no_harm(clone, run):
    clone.notebook("00_first", "pass")
    run()
    record = clone.results / "tiny/notebooks/00_first.json"
    (record.parent / ".ipynb_checkpoints").mkdir()
    (record.parent / ".ipynb_checkpoints/00_first-checkpoint.ipynb").touch()
    for runs, damaged in enumerate(("{", "[]", "{}", '"text"'), start=2):
        record.write_text(damaged)
        assert run() == []
        assert len(clone.runs()) == runs
    assert json.loads(record.read_text())["files"] == []


def test_executed_notebooks_hold_no_progress_bars(clone, run, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    code = "import os; from tqdm import tqdm; list(tqdm(range(3))); print(os.environ['TQDM_DISABLE'])"
    clone.notebook("00_a", code)
    assert run() == []
    (*_, cell) = clone.executed("00_a").cells
    assert [(output.name, output.text) for output in cell.outputs] == [("stdout", "1\n")]
    assert "TQDM_DISABLE" not in os.environ
