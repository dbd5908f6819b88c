import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specquant import files
from specquant.errors import SpecquantError
from specquant.models.companions import COMPANIONS
from specquant.study import batch, report, working
from tests.study.conftest import Clone

WRITE_TABLE = "open(results_dir + '/table.csv', 'w').write(f'weights,draft_size\\ntrained,{draft_size}\\n');"


def test_runs_all_in_order_and_skips_what_did_not_change(clone, run_in_kernel):
    clone.notebook("01_second", "print('drafts:', draft_size)")
    clone.notebook("00_first", WRITE_TABLE)
    assert run_in_kernel() == []
    assert clone.runs() == ["00_first", "01_second"]
    assert clone.executed("01_second").cells[-1].outputs[0].text == "drafts: 4\n"
    assert (clone.results / "tiny/table.csv").read_text() == "weights,draft_size\ntrained,4\n"

    assert run_in_kernel() == []
    assert len(clone.runs()) == 2  # nothing changed

    (clone.results / "tiny/table.csv").unlink()
    run_in_kernel()
    assert clone.runs()[2:] == ["00_first"]  # its table was gone

    clone.notebook("01_second", "print('other drafts:', draft_size)")
    run_in_kernel()
    assert clone.runs()[3:] == ["01_second"]

    run_in_kernel(only=["second"], force=True)
    assert clone.runs()[4:] == ["01_second"]

    report = (clone.results / "tiny/index.html").read_text()
    for link in ("notebooks/00_first.html", "notebooks/01_second.ipynb", 'href="table.csv"'):
        assert link in report
    assert "other drafts: 4" in (clone.results / "tiny/notebooks/01_second.html").read_text()
    leftovers = [path.name for path in (clone.results / "tiny").rglob(".*")]
    assert leftovers == []


def test_the_report_says_in_which_cell_a_notebook_is(clone, run_in_kernel):
    """The notebook itself reads it: cell 4 of 4, for the batch adds one with the parameters."""
    index = clone.results / "tiny/index.html"
    clone.notebook(
        "00_first", f"import re; print(re.findall('>((?:running|waiting).*?)<', open({str(index)!r}).read()))"
    )
    clone.notebook("01_second", "pass")
    assert run_in_kernel() == []
    assert clone.executed("00_first").cells[-1].outputs[0].text == "['running, cell 4 of 4', 'waiting']\n"
    assert "running" not in index.read_text()


def test_what_notebooks_find_and_where_they_ran_is_in_their_records_and_the_report(clone, run_in_kernel):
    code = "from specquant.study import check_findings\n"
    clone.notebook("00_first", code + "check_findings({'it is fast': True}, True)")
    clone.notebook("01_second", code + "check_findings({'it is small': True, 'it is good': False}, True)")
    assert run_in_kernel() == ["01_second"]
    kept = {
        name: json.loads((clone.results / f"tiny/notebooks/{name}.json").read_text())
        for name in ("00_first", "01_second")
    }
    assert kept["00_first"]["findings"] == {"it is fast": True}
    assert kept["01_second"]["findings"] == {"it is small": True, "it is good": False}
    assert kept["00_first"]["date"].startswith("20")
    assert kept["00_first"]["device"].endswith("threads")
    text = (clone.results / "tiny/index.html").read_text()
    assert text.count(">holds<") == 2
    assert text.count(">does not hold<") == 1
    assert "SPECQUANT_FINDINGS" not in os.environ


def test_tables_of_notebooks_say_which_command_made_them(clone, run_in_kernel, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/opt/bin/specquant", "study", "--profile", "tiny"])
    clone.notebook("00_first", "from specquant.tables.provenance import provenance; print(provenance({})['command'])")
    assert run_in_kernel() == []
    assert clone.executed("00_first").cells[-1].outputs[0].text == "specquant study --profile tiny\n"
    assert "SPECQUANT_COMMAND" not in os.environ


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


@pytest.mark.parametrize("changed", ["target/config.json", "head/config.json", "calibration.txt"])
def test_models_and_texts_that_a_profile_names_decide_wherever_they_are(clone, run, tmp_path, monkeypatch, changed):
    monkeypatch.setattr("specquant.measure.family.Family", lambda **options: None)
    declared = "target: str = ''\neagle_target: str = ''\ncalibration_text: str = ''"
    clone.notebook("00_first", "pass", parameters=declared)
    named = {"target": "target", "eagle_target": "head", "calibration_text": "calibration.txt"}
    clone.profile("tiny", "".join(f"{name}: {tmp_path}/elsewhere/{file}\n" for name, file in named.items()))
    for file in ("target/config.json", "head/config.json", "calibration.txt"):
        (tmp_path / "elsewhere" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "elsewhere" / file).write_text("{}")
    for content, runs in (("{}", 1), ("{}", 1), ("{} ", 2)):
        (tmp_path / "elsewhere" / changed).write_text(content)
        assert run() == []
        assert len(clone.runs()) == runs


@pytest.mark.parametrize(
    ("after", "runs"),
    [
        ('"""Other words."""\n\n\ndef size():\n    """Of what?"""\n    # of this\n    return (\n        4\n    )\n', 1),
        ('"""Words."""\n\n\ndef size():\n    return 5\n', 2),
        ('"""Words."""\n\n\ndef size():\n    x = """Of what?"""\n    return 4\n', 2),
        ('"""Words."""\n\n\ndef size(:\n    return 4\n', 2),
    ],
    ids=["words", "code", "text that is no docstring", "no code at all"],
)
def test_comments_and_docstrings_are_no_input(clone, run, after, runs):
    (clone.root / "src/sizes.py").write_text('"""Words."""\n\n\ndef size():\n    return 4\n')
    clone.notebook("00_first", "print(draft_size)")
    run()
    (clone.root / "src/sizes.py").write_text(after)
    run()
    assert len(clone.runs()) == runs


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


def test_a_failing_notebook_is_kept_and_the_others_run(clone, run_in_kernel, capsys):
    clone.notebook("00_broken", "def verify():\n    raise ArithmeticError('tokens differ')\nverify()")
    clone.notebook("01_good", "print('fine')")
    assert run_in_kernel() == ["00_broken"]
    assert "00_broken: FAILED" in capsys.readouterr().err
    kept = clone.results / "tiny/notebooks/00_broken.html"
    outputs = [output for cell in clone.executed("00_broken").cells for output in cell.get("outputs", [])]
    error = next(output for output in outputs if output.output_type == "error")
    assert error.ename == "ArithmeticError"
    assert any("verify()" in line for line in error.traceback)
    assert "tokens differ" in kept.read_text()
    assert "tokens differ" in (clone.results / "tiny/index.html").read_text()

    assert run_in_kernel() == ["00_broken"]  # a failure is no good run: it runs again, the good one does not
    assert clone.runs() == ["00_broken", "01_good", "00_broken"]


def test_a_dead_kernel_is_a_failure(clone, run_in_kernel):
    clone.notebook("00_dies", "import os; os.kill(os.getpid(), 9)")
    assert run_in_kernel() == ["00_dies"]
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
    unfinished = {f".01_second.running-{working._machine()}-{process.pid}"} if how == signal.SIGKILL else set()
    assert names == {"00_first.ipynb", "00_first.html", "00_first.json"} | unfinished

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


def test_executed_notebooks_hold_no_progress_bars(clone, run_in_kernel, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    code = "import os; from tqdm import tqdm; list(tqdm(range(3))); print(os.environ['TQDM_DISABLE'])"
    clone.notebook("00_a", code)
    assert run_in_kernel() == []
    (*_, cell) = clone.executed("00_a").cells
    assert [(output.name, output.text) for output in cell.outputs] == [("stdout", "1\n")]
    assert "TQDM_DISABLE" not in os.environ


@pytest.mark.parametrize("damage", ["ipynb", "html", "table", "same size"])
def test_an_output_that_was_damaged_on_disk_is_made_again(clone, run, damage):
    clone.notebook("00_first", WRITE_TABLE)
    run()
    folder = clone.results / "tiny"
    path = folder / ("table.csv" if damage in ("table", "same size") else f"notebooks/00_first.{damage}")
    whole = path.read_bytes()
    path.write_bytes(bytes(len(whole)) if damage == "same size" else whole[: len(whole) // 2])
    assert run() == []
    assert len(clone.runs()) == 2
    assert not path.read_bytes().startswith(b"\0")
    assert len(path.read_bytes()) >= len(whole) // 2 + 1
    run()
    assert len(clone.runs()) == 2


@pytest.mark.parametrize("content", ["", '{"cells": [', "[" * 100_000])
def test_a_scratch_file_beside_the_study_stops_nothing(clone, run, capsys, content):
    clone.notebook("00_first", "pass")
    (clone.root / "notebooks/Untitled.ipynb").write_text(content)
    assert run(only=["first"]) == []
    assert "Untitled" not in capsys.readouterr().err
    assert run(force=True) == []
    assert clone.runs() == ["00_first", "00_first"]
    assert "Untitled: skipped: " in capsys.readouterr().err
    with pytest.raises(SpecquantError, match=r"Untitled\.ipynb is no notebook .*: remove it, or take it"):
        run(only=["Untitled"])
    assert "Untitled" not in (clone.results / "tiny/index.html").read_text()


def test_a_damaged_notebook_that_was_not_chosen_is_named_only_where_it_may_matter(clone, run):
    clone.notebook("00_first", "pass")
    (clone.root / "notebooks/01_torn.ipynb").write_text('{"cells": [')
    assert run(only=["first"]) == []
    clone.profile("tiny", "top_k: 4\n")
    with pytest.raises(SpecquantError, match=r"no notebook has a parameter 'top_k'; 01_torn\.ipynb could not be read"):
        run(only=["first"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("draft_size: 010", "draft_size is '010'; give a value of the type int"),
        ("draft_size: 0x10", "draft_size is '0x10'"),
        ("draft_size: 1:30", "draft_size is '1:30'"),
        ("draft_size: 2026-11-29", "draft_size is '2026-11-29'"),
        ("draft_size: yes", "draft_size is True"),
        ("draft_size: .inf", "draft_size is inf"),
        ("draft_size: 99999999999999999999", "draft_size is 99999999999999999999"),
        (f"draft_size: {'9' * 5000}", "is not valid YAML: Exceeds the limit"),
        ("chance: .nan", "chance is nan; give a value of the type float"),
        ("chance: -.inf", "chance is -inf"),
        ("chance: 1.0e+400", "chance is inf"),
        ("name: no", "name is False; give a value of the type str, in quotes if it is text"),
        ("name: 70", "name is 70; give a value of the type str, in quotes if it is text"),
        ('name: "a\\0b"', "name is "),
        ('name: "\\ud800"', "name is "),
        ("things: {when: .nan}", "things is "),
        ("things: {1: 2}", "things is "),
        ("draft_size: 4\nname: a\ndraft_size: 5", "line 3: draft_size is there twice: keep one"),
        ("things: {a: 1, a: 2}", "line 1: a is there twice"),
        ("things: &a [1]\nname: *a", "line 1: anchors, aliases and tags are not for options"),
        ("draft_size: !!int '4'", "line 1: anchors, aliases and tags"),
        ("draft_size: !!python/object:os.system 4", "line 1: anchors, aliases and tags"),
        ("<<: {draft_size: 4}", "no notebook has a parameter '<<'"),
        ("? [draft_size]\n: 4", "is not valid YAML: .* unhashable key"),
        ("\tdraft_size: 4", "is not valid YAML: .* cannot start any token"),
        ("draft_size: 4\n---\ndraft_size: 5", "is not valid YAML: expected a single document"),
        ("things: " + "[" * 5000, "is not valid YAML: it is nested too deeply"),
        ("things: " + "[" * 5000 + "]" * 5000, "is not valid YAML: it is nested too deeply"),
        ("things: " + "{a: " * 5000, "is not valid YAML: it is nested too deeply"),
    ],
)
def test_what_yaml_would_read_otherwise_than_it_looks_is_refused(clone, run, text, sentence):
    declared = "draft_size: int = 1\nchance: float = 0.5\nname: str = 'a'\nthings: dict = {}"
    clone.notebook("00_first", "pass", parameters=declared)
    clone.profile("tiny", text + "\n")
    with pytest.raises(SpecquantError) as raised:
        run()
    assert re.search(sentence, " ".join(str(raised.value).split()))
    assert str(raised.value).startswith("notebooks/profiles/tiny.yaml")
    assert not clone.results.exists()


def test_ten_lines_do_not_stand_for_a_billion_values(clone, run):
    lines = ["a0: &a0 [lol, lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    clone.notebook("00_first", "pass")
    clone.profile("tiny", "\n".join(lines) + "\n")
    with pytest.raises(SpecquantError, match="anchors, aliases and tags are not for options"):
        run()


def test_plain_text_that_looks_like_a_date_or_a_time_stays_text(clone):
    clone.profile("tiny", "a: 2026-11-29\nb: 12:30\nc: 007\nd: 1_000\ne: y\n")
    types = dict.fromkeys("abcde", "str")
    assert list(batch.read_profile("tiny", types).values()) == ["2026-11-29", "12:30", "007", "1_000", "y"]


@settings(max_examples=300)
@given(st.text(alphabet="a:-[]{}&*!?#|>'\"%@`,. \n\t01eE+_~<=", max_size=40))
def test_any_profile_is_values_of_their_types_or_one_sentence(tmp_path_factory, text):
    clone = Clone(tmp_path_factory.mktemp("fuzz") / "clone")
    clone.profile("tiny", text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "project_root", lambda: clone.root)
        try:
            values = batch.read_profile("tiny", {"a": "int", "aa": "Any"})
        except SpecquantError:
            return
    assert isinstance(values.get("a", 0), int)
    json.dumps(values, allow_nan=False)


def test_what_ends_a_batch_is_what_the_user_sees(clone, run, monkeypatch):
    """A folder that turns read-only midway: the first sentence, not that the report cannot be written either."""
    clone.notebook("00_first", "pass")
    clone.notebook("01_second", "pass")
    original, written = files.write_file, []

    def read_only(path, content, by_several=False):
        written.append(path)
        if sum(name.suffix != ".html" or name.stem != "index" for name in written) > 4:
            raise SpecquantError(f"cannot write {path}: Read-only file system; choose a folder you can write to")
        return original(path, content, by_several)

    for module in (batch, report):
        monkeypatch.setattr(module, "write_file", read_only)
    with pytest.raises(SpecquantError, match=r"cannot write .*notebooks/01_second\.html: Read-only file system"):
        run()
    assert written[-1].name == "index.html"


@pytest.mark.parametrize("name", ["unlink", "write_bytes"])
def test_a_folder_that_turns_read_only_is_a_sentence(clone, run, monkeypatch, name):
    clone.notebook("00_first", "pass")
    run()

    def read_only(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, name, read_only)
    with pytest.raises(SpecquantError, match=r"cannot write .*Permission denied"):
        run(force=True)
    monkeypatch.undo()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_a_full_disk_is_a_sentence_and_the_notebook_runs_again(clone, run):
    clone.notebook("00_first", "pass")
    run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "uuid4", lambda: SimpleNamespace(hex="12345678"))  # of what is unfinished
        (clone.results / "tiny/notebooks/.00_first.html.12345678.tmp").symlink_to("/dev/full")
        with pytest.raises(SpecquantError, match=r"cannot write .*00_first\.html: No space left on device; free some"):
            run(force=True)
    assert run() == []
    assert clone.runs() == ["00_first"] * 3


def test_a_torn_execution_is_a_failure_that_is_kept(clone, run, monkeypatch):
    clone.notebook("00_first", "pass")

    def torn(notebook, partial, *_, **__):
        partial.write_text('{"cells": [')
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(batch.papermill, "execute_notebook", torn)
    assert run() == ["00_first"]
    assert "No space left on device" in (clone.results / "tiny/index.html").read_text()
    assert len(clone.executed("00_first").cells) == 3


@pytest.mark.parametrize("record", [{"seconds": "long"}, {"files": [1]}, {"files": "a"}, {"error": 3}, {"written": []}])
def test_a_record_of_other_types_is_none(clone, run, record):
    clone.notebook("00_first", "pass")
    run()
    path = clone.results / "tiny/notebooks/00_first.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | record))
    assert run() == []
    assert len(clone.runs()) == (1 if "seconds" in record else 2)


def test_without_a_home_folder_there_is_one_sentence(tmp_path):
    program = (
        "import pwd, sys; from specquant.cli import main\n"
        "def unknown(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = unknown\n"
        "sys.exit(main(['study', '--only', '07_paper_figures', '--results', sys.argv[1]]))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    command = [sys.executable, "-c", program, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "set HOME to a folder that you can write to" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_home_that_jupyter_cannot_use_is_refused_before_anything_runs(clone, run, monkeypatch, tmp_path):
    clone.notebook("00_first", "pass")
    (tmp_path / "file").touch()
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "file/runtime"))
    with pytest.raises(SpecquantError, match=r"Jupyter cannot write to .*file/runtime: set HOME or"):
        run()
    assert not clone.results.exists()


def test_a_profile_that_names_a_target_names_what_drafts_for_it(clone, run, monkeypatch):
    families = []
    monkeypatch.setattr("specquant.measure.family.Family", lambda **named: families.append(named))
    declared = "target: str = 'tiny'\neagle_target: str = 'tiny head'\nintermediate: str = 'tiny small'"
    clone.notebook("00_first", "print([target, eagle_target, intermediate])", parameters=declared)
    clone.profile("tiny", "target: mine\nintermediate: small\n")
    assert run() == []
    assert families == [dict.fromkeys(COMPANIONS, "") | {"target": "mine", "intermediate": "small"}]
    assert clone.executed("00_first").cells[-1].outputs[0].text == "['mine', '', 'small']\n"


def test_a_damaged_caption_and_an_unreadable_input_are_no_tracebacks(clone, run, monkeypatch):
    drawn = "open(results_dir + '/a.png', 'w').close(); open(results_dir + '/a.txt', 'wb').write(b'5 \\xc2')"
    clone.notebook("00_first", drawn)
    assert run() == []
    assert "5 \ufffd" in (clone.results / "tiny/index.html").read_text(encoding="utf-8")
    (clone.root / "data/new.txt").touch()
    original = Path.open

    def refuse(self, *rest, **more):
        if self.name == "new.txt":
            raise PermissionError(13, "Permission denied", str(self))
        return original(self, *rest, **more)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SpecquantError, match=r"cannot read .*data/new\.txt \(Permission denied\)"):
        run()


def test_notebooks_run_as_jobs_in_their_order_and_the_report_follows(clone, run, monkeypatch, preloaded):
    """What they measure are jobs as well, which the report shows while they run, where they failed, and at the end."""
    pytest.importorskip("submitit")
    from specquant.measure import executors
    from specquant.measure.executors import Slurm, SlurmOptions

    monkeypatch.setenv(executors.EXECUTOR, json.dumps({"options": {}, "cluster": "local", "poll_s": 0.1}))
    monkeypatch.setattr(executors, "current", lambda: Slurm(SlurmOptions(time=5), "local", poll_s=0.1, grace_s=5.0))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    clone.results = clone.root.parent / "out"  # an absolute path: a job's folder is that of the project itself
    (clone.root / "notes").mkdir()
    shown = []
    monkeypatch.setattr(batch, "write_report", lambda *of: shown.append(of[3:]) or report.write_report(*of))
    clone.notebook("00_first", WRITE_TABLE)
    measured = (
        "from specquant.measure.measure import record\n"
        "from tests.measure.sleeping import MEASURE, Parameters\n"
        f"notes = {str(clone.root / 'notes')!r}\n"
        "record(MEASURE, Parameters(count=2, seconds=1.0, notes=notes, dying=(1,)), results_dir)"
    )
    clone.notebook("01_second", measured)
    assert run() == ["01_second"]
    assert clone.runs() == ["00_first", "01_second"]
    assert (clone.results / "tiny/table.csv").read_text() == "weights,draft_size\ntrained,4\n"
    states = [(live.name, live.state(live.name), live.waiting, live.log) for (live,) in filter(None, shown)]
    (log,) = {log for name, state, waiting, log in states if (name, state) == ("00_first", "running")}
    assert re.fullmatch(r"notebooks/00_first\.jobs/[\w-]+/\w+_log\.err", log)
    assert ("00_first", "running", ("01_second",), log) in states
    assert "running, cell 4 of 4" in [state for name, state, *_ in states if name == "01_second"]
    counts = [command["counts"] for (live,) in filter(None, shown) for command in live.jobs]
    assert {"running": 2} in counts
    assert {"running": 1, "failed": 1} in counts or {"done": 1, "failed": 1} in counts
    page = (clone.results / "tiny/index.html").read_text()
    assert "Jobs of sleeping: 1 done, 1 failed" in page
    (log,) = re.findall(r'sleeping synthetic 1: ended with status 3 \(<a href="(sleeping.jobs/.*_log.err)"', page)
    assert "the reason why it died" in (clone.results / "tiny" / log).read_text()
    clone.notebook("01_second", "import os; print('dying'); raise ValueError('no')")
    assert run() == ["01_second"]
    assert "ValueError: no" in (clone.results / "tiny/index.html").read_text()
    assert clone.runs() == ["00_first", "01_second", "01_second"]  # what was good is not run again
    assert not list((clone.results / "tiny/notebooks").glob("*.jobs"))  # a notebook that failed has its traceback
    assert not list((clone.results / "tiny").rglob(".*running*"))


def test_two_batches_at_once_do_not_disturb_each_other(clone, run, preloaded):
    """Both run the notebook, and each ends well: what one has not finished is not the other's."""
    both = clone.root / "both"
    clone.notebook(
        "00_first",
        f"import os, pathlib, time; both = pathlib.Path({str(both)!r}); both.mkdir(exist_ok=True)\n"
        "(both / str(os.getpid())).touch()\n"
        "while len(list(both.iterdir())) < 2: time.sleep(0.05)\n" + WRITE_TABLE,
    )
    program = (
        "import pathlib, sys; from specquant.study import batch; from specquant.cli import main;"
        f"batch.project_root = lambda: pathlib.Path({str(clone.root)!r});"
        f"sys.exit(main(['study', '--results', {str(clone.results)!r}]))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert clone.runs() == ["00_first"] * 2
    assert len(clone.executed("00_first").cells) == 4
    assert "done in" in (clone.results / "tiny/index.html").read_text()
    assert (clone.results / "tiny/table.csv").read_text() == "weights,draft_size\ntrained,4\n"
    assert not list((clone.results / "tiny").rglob(".*"))
    assert run() == []


def test_what_batches_of_others_have_not_finished_stays(clone, run):
    executed = clone.results / "tiny/notebooks"
    theirs = [f".00_first.running-elsewhere-{os.getpid()}", f".00_first.running-{working._machine()}-{os.getppid()}"]
    abandoned = f".00_first.running-{working._machine()}-{2**22 + 1}"  # no process of Linux has such a number
    for name in (*theirs, abandoned):
        (executed / name / "jobs").mkdir(parents=True)
    (executed / ".young.tmp").touch()
    (executed / ".old.tmp").touch()
    os.utime(executed / ".old.tmp", (0, 0))
    clone.notebook("00_first", "pass")
    assert run() == []
    assert sorted(path.name for path in executed.glob(".*")) == sorted([*theirs, ".young.tmp"])
