"""Answers are recorded one by one; an interrupted run goes on, and other measurements are not mixed in."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest

from specquant.benchmarks import humaneval, sandbox
from specquant.benchmarks.sandbox import wall
from specquant.cli import main
from specquant.errors import SpecquantError
from specquant.measure import tasks as recording
from specquant.measure.tasks import Parameters, record_benchmark
from specquant.models.options import ModelOptions
from specquant.study import read_provenance, read_results
from tests.questions import NAMES

METHODS = ("autoregressive", "eagle2")


@pytest.fixture
def call(small_models, data_dir, tmp_path):
    def run(name="mt-bench", methods=METHODS, **options):
        options = {"data_dir": data_dir, "out_dir": tmp_path / "out", "max_new_tokens": 6} | options
        out_dir, of_models = options.pop("out_dir"), {field.name for field in fields(ModelOptions)} & set(options)
        named = {"eagle_target": small_models / "eagle-target", "device": "cpu"}
        models = ModelOptions(small_models / "target", **named | {which: options.pop(which) for which in of_models})
        return record_benchmark(Parameters(name, models, methods, **options), out_dir)

    return run


@pytest.fixture
def asked(monkeypatch):
    """The questions that are answered, in their order; asked.stop_at raises Ctrl-C before that many."""

    class Asked(list):
        stop_at = None

    asked, original = Asked(), recording.answer_question

    def answer(asker, question, *rest):
        if len(asked) == asked.stop_at:
            raise KeyboardInterrupt
        asked.append(question.id)
        return original(asker, question, *rest)

    monkeypatch.setattr(recording, "answer_question", answer)
    return asked


def lines(tmp_path, name="mt-bench"):
    return [json.loads(line) for line in (tmp_path / f"out/{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_runs_and_says_what_was_measured_and_how(call, tmp_path, name, data_dir):
    path = call(name)
    assert path == tmp_path / f"out/{name}.csv"
    table, rows = read_results(path), lines(tmp_path, name)
    assert set(table.method) == set(METHODS)
    assert len(table.task.unique()) == (7 if name == "spec-bench" else 1)
    assert len(rows) == 2 * table[(table.method == "eagle2") & (table.task != "overall")].questions.sum()
    assert all(len(row["answers"]) == (2 if name == "mt-bench" else 1) for row in rows)
    judged = ("humaneval", "gsm8k") if wall() else ("gsm8k",)
    assert (table.correct_percent.notna() == (name in judged)).all()
    parameters = read_provenance(path)["parameters"]
    assert (parameters["max_new_tokens"], parameters["as_published"]) == (6, False)
    assert parameters["sandbox"] == (wall() if name == "humaneval" else None)
    assert str(data_dir) not in path.with_suffix(".json").read_text()
    assert [row["answers"] for row in rows if row["method"] == "eagle2"] == [
        row["answers"] for row in rows if row["method"] == "autoregressive"
    ]


def test_a_line_is_there_as_soon_as_its_question_is_answered(call, asked, tmp_path):
    asked.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        call()
    assert [(row["id"], row["method"]) for row in lines(tmp_path)] == [
        ("81", "autoregressive"),
        ("81", "eagle2"),
        ("82", "autoregressive"),
    ]
    assert not (tmp_path / "out/mt-bench.csv").exists()


def test_an_interrupted_run_goes_on_and_gives_the_same_table(call, asked, tmp_path):
    asked.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        call()
    before = (tmp_path / "out/mt-bench.jsonl").read_bytes()
    asked.stop_at = None
    path = call()
    assert asked == ["81", "81", "82", "82"]
    assert (tmp_path / "out/mt-bench.jsonl").read_bytes().startswith(before)
    table = read_results(path)
    call()
    assert len(asked) == 4  # all were there
    assert read_results(path).equals(table)


def test_lines_are_json_that_every_program_reads(call, tmp_path):
    """Without NaN, which only some read."""
    call()
    for line in (tmp_path / "out/mt-bench.jsonl").read_text().splitlines():
        row = json.loads(line, parse_constant=pytest.fail)
        assert row["inner_accepted_length"] is None


@pytest.mark.parametrize("keep", [1, 100, -1])
def test_a_last_line_that_broke_off_is_measured_again(call, asked, tmp_path, keep):
    call()
    file = tmp_path / "out/mt-bench.jsonl"
    *whole, last = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(whole) + last[:keep])
    asked.clear()
    path = call()
    assert asked == ["82"]
    assert len(lines(tmp_path)) == 4
    assert (read_results(path).questions == 2).all()


def test_more_methods_questions_and_schemes_are_added(call, asked, tmp_path):
    call(methods=["autoregressive"], limit=1)
    assert asked == ["81"]
    call(limit=1)
    assert asked == ["81", "81"]
    call()
    assert asked == ["81", "81", "82", "82"]
    path = call(scheme="w8a8", limit=1)
    table, parameters = read_results(path), read_provenance(path)["parameters"]
    assert list(table.scheme) == ["fp16", "fp16", "w8a8", "w8a8"]
    assert (parameters["dtype"], parameters["dtype_of_8_bit_activations"]) == ("float32", "float64")
    assert len(asked) == 6


def test_measurements_of_other_parameters_are_not_mixed(call, tmp_path, data_dir):
    call()
    with pytest.raises(SpecquantError, match=r"mt-bench.jsonl, line 1: measured with max_new_tokens 6, not 7"):
        call(max_new_tokens=7)
    with pytest.raises(SpecquantError, match=r"line 1: measured with dtype float32, not float64"):
        call(dtype="float64")
    with pytest.raises(SpecquantError, match=r"measured with dtype_of_8_bit_activations float64, not float32"):
        call(dtype="float32")
    (tmp_path / "mt_bench.jsonl").write_text((data_dir / "mt_bench.jsonl").read_text() + "\n")
    with pytest.raises(SpecquantError, match=r"line 1: measured with questions_sha256 \w+, not"):
        call(data_dir=tmp_path)


@pytest.mark.parametrize("damage", [b"{}", b"[]", b"half a line", b"\xff", b'{"scheme": "fp16"}'])
def test_a_damaged_line_is_named(call, tmp_path, damage):
    call()
    file = tmp_path / "out/mt-bench.jsonl"
    first, *rest = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + damage + b"\n" + b"".join(rest))
    with pytest.raises(SpecquantError, match=r"mt-bench.jsonl, line 2: no answer of this benchmark: remove the line"):
        call()


def test_a_folder_that_cannot_be_written_is_named(call, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SpecquantError, match=r"cannot read .*file/out/mt-bench.jsonl"):
        call(out_dir=tmp_path / "file/out")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_a_full_disk_is_a_sentence(call, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mt-bench.jsonl").symlink_to("/dev/full")
    with pytest.raises(SpecquantError, match=r"cannot write .*No space left on device; the same command goes on"):
        call()


@pytest.mark.parametrize("unsafe", [False, True])
def test_without_a_sandbox_programs_run_by_choice_alone_and_it_is_said(
    small_models, data_dir, tmp_path, capsys, monkeypatch, unsafe
):
    for module in (humaneval, sandbox, recording):
        monkeypatch.setattr(module, "wall", lambda: None)
    monkeypatch.setattr(recording, "why_no_wall", lambda: "bubblewrap is missing here (apt-get install bubblewrap)")
    command = [
        "bench",
        "tasks",
        "--model",
        str(small_models / "target"),
        "--data-dir",
        str(data_dir),
        "--device",
        "cpu",
    ]
    command += ["--benchmark", "humaneval", "--max-new-tokens", "4", "--methods", "autoregressive", "--out"]
    assert main([*command, str(tmp_path / "out"), *(["--unsafe"] if unsafe else [])]) == 0
    output = capsys.readouterr()
    said = [line for line in output.err.splitlines() if line.startswith("specquant: ")]
    assert len(said) == 1
    assert "apt-get install bubblewrap" in said[0]
    assert "programs that the model wrote may do all that you may do" in said[0]
    assert ("answers are recorded, but not judged" in said[0]) == (not unsafe)
    assert ("correct percent" in output.out) == unsafe
    assert [row["correct"] for row in lines(tmp_path, "humaneval")] == [False if unsafe else None]
    parameters = read_provenance(tmp_path / "out/humaneval.csv")["parameters"]
    assert parameters["sandbox"] == ("unsafe" if unsafe else None)


def test_the_command_prints_the_table_and_refuses_with_one_line(small_models, data_dir, tmp_path, capsys):
    def run(*options):
        command = ["bench", "tasks", "--model", str(small_models / "target"), "--data-dir", str(data_dir)]
        status = main([*command, "--max-new-tokens", "4", "--device", "cpu", "--out", str(tmp_path / "out"), *options])
        return status, capsys.readouterr()

    status, output = run("--benchmark", "gsm8k", "--limit", "1", "--draft-size", "8", "--iterations", "2")
    assert status == 0
    assert read_results(tmp_path / "out/gsm8k.csv").accepted_length.max() <= 3
    assert read_provenance(tmp_path / "out/gsm8k.csv")["parameters"]["settings"]["draft_size"] == 8
    assert "accepted length" in output.out
    assert "correct percent" in output.out
    assert output.out.splitlines()[-1] == str(tmp_path / "out/gsm8k.csv")
    for options, says in (
        (["--benchmark", "mmlu"], "unknown benchmark 'mmlu'"),
        (["--benchmark", "gsm8k", "--draft-size", "0"], "draft size"),
        (["--benchmark", "gsm8k", "--device", "tpu"], "there is no device 'tpu' here"),
        (["--benchmark", "gsm8k", "--methods", "medusa"], "unknown method 'medusa'"),
        (["--benchmark", "gsm8k", "--limit", "0"], "the limit is 0"),
        (["--benchmark", "mt-bench", "--max-new-tokens", "1024"], "1024 new tokens leave no room"),
        (["--benchmark", "mt-bench", "--data-dir", "nowhere"], "get it by `specquant data fetch mt-bench --data-dir"),
    ):
        status, output = run(*options)
        assert (status, output.out) == (2, "")
        assert says in output.err
        assert output.err.count("\n") == 1


def test_a_shorter_context_is_another_measurement(call):
    call(context_length=100)
    with pytest.raises(SpecquantError, match=r"line 1: measured with context_length 100, not None: choose another"):
        call()


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("id", "999", "by its id"),
        ("id", 81, "by its id"),
        ("id", [81], "by its id"),
        ("method", "medusa", "by its method"),
        ("method", ["eagle2"], "by its method"),
        ("scheme", "w3a16", "by its scheme"),
        ("scheme", 16, "by its scheme"),
        ("model", "another", "by its model"),
        ("task", "GSM8K", "by its task"),
        ("category", "stem", "by its task"),
        ("weights", "synthetic", "by its weights"),
        ("answers", "text", "by its answers"),
        ("answers", ["one turn of two"], "by its answers"),
        ("answers", [1, 2], "by its answers"),
        ("correct", "yes", "by its correct"),
        ("new_tokens", 1.5, "by its new_tokens"),
        ("new_tokens", True, "by its new_tokens"),
        ("new_tokens", -1, "by its new_tokens"),
        ("decoded_tokens", "12", "by its decoded_tokens"),
        ("tokens_per_s", "fast", "by its tokens_per_s"),
        ("tokens_per_s", -1.0, "by its tokens_per_s"),
        ("decode_ms", None, "by its decode_ms"),
        ("decode_ms", float("nan"), "no answer of this benchmark: remove"),
        ("decode_ms", float("inf"), "no answer of this benchmark: remove"),
        ("parameters", [], "no answer of this benchmark: remove"),
        ("parameters", {}, "no answer of this benchmark: remove"),
    ],
)
def test_a_foreign_line_is_named_with_what_is_foreign(call, tmp_path, field, value, says):
    call(methods=["autoregressive"])
    file = tmp_path / "out/mt-bench.jsonl"
    first, second = file.read_text().splitlines()
    file.write_text(f"{first}\n{json.dumps(json.loads(second) | {field: value})}\n")
    with pytest.raises(SpecquantError, match=rf"mt-bench.jsonl, line 2: .*{says}"):
        call(methods=["autoregressive"])
    file.write_text(f"{first}\n{json.dumps({k: v for k, v in json.loads(second).items() if k != field})}\n")
    with pytest.raises(SpecquantError, match=r"line 2: no answer of this benchmark: remove the line"):
        call(methods=["autoregressive"])


def test_lines_that_name_the_mean_draft_size_as_older_ones_did_are_read(call, tmp_path):
    before = read_results(call(methods=["autoregressive"]))
    file = tmp_path / "out/mt-bench.jsonl"
    file.write_text(file.read_text().replace('"mean_draft_size"', '"draft_size"'))
    pd.testing.assert_frame_equal(read_results(call(methods=["autoregressive"])), before)


def test_a_unit_that_is_there_twice_counts_once(call, asked, tmp_path, capsys):
    before = read_results(call())
    file = tmp_path / "out/mt-bench.jsonl"
    whole = file.read_text()
    file.write_text(whole + whole)
    asked.clear()
    table = read_results(call())
    assert asked == []
    assert table.equals(before)
    assert (table.questions == 2).all()
    assert capsys.readouterr().err.count("is there twice, and counts once") == 4


def test_what_another_process_has_answered_meanwhile_is_not_asked_again(call, asked, tmp_path, monkeypatch):
    call()
    file = tmp_path / "out/mt-bench.jsonl"
    first, *rest = file.read_text().splitlines(keepends=True)
    file.write_text(first)
    asked.clear()
    answer = recording.answer_question

    def meanwhile(*arguments):
        with open(file, "a") as other:
            other.write("".join(rest))
        return answer(*arguments)

    monkeypatch.setattr(recording, "answer_question", meanwhile)
    table = read_results(call())
    assert len(asked) == 1
    assert file.read_text() == "".join([first, *rest])
    assert (table.questions == 2).all()


PROCESS = """
import sys, time
from pathlib import Path
from specquant.cli import main
from specquant.measure import tasks

ready, name, *command = sys.argv[1:]
answer, met = tasks.answer_question, []

def answer_together(*arguments):
    if not met:  # both have read the file, and answer the same unit now
        met.append(Path(ready, name).touch())
        until = time.monotonic() + 120
        while len(list(Path(ready).iterdir())) < 2 and time.monotonic() < until:
            time.sleep(0.01)
    return answer(*arguments)

tasks.answer_question = answer_together
sys.exit(main(command))
"""


def test_two_processes_that_answer_into_one_folder_count_nothing_twice(small_models, data_dir, tmp_path, preloaded):
    ready = tmp_path / "ready"
    ready.mkdir()
    command = ["bench", "tasks", "--model", str(small_models / "target"), "--benchmark", "mt-bench"]
    command += ["--data-dir", str(data_dir), "--max-new-tokens", "6", "--device", "cpu", "--out", str(tmp_path / "out")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(ready), name, *command], stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for name in ("one", "two")
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert len(list(ready.iterdir())) == 2
    units = [(row["scheme"], row["method"], row["id"]) for row in lines(tmp_path)]
    assert sorted(units) == sorted(("fp16", method, number) for method in METHODS for number in ("81", "82"))
    table = read_results(tmp_path / "out/mt-bench.csv")
    assert (table.questions == 2).all()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"mt-bench.{kind}" for kind in ("csv", "json", "jsonl")
    ]


def test_a_folder_that_turns_read_only_midway_is_a_sentence(call, tmp_path, monkeypatch):
    """Root may write anywhere: another file takes the folder's place."""
    answer, answered = recording.answer_question, []

    def moved(*arguments):
        answered.append(arguments)
        if len(answered) == 2:
            (tmp_path / "out").rename(tmp_path / "elsewhere")
            (tmp_path / "out").touch()
        return answer(*arguments)

    monkeypatch.setattr(recording, "answer_question", moved)
    with pytest.raises(SpecquantError, match=r"cannot read and write .*mt-bench.jsonl: "):
        call()
    (tmp_path / "out").unlink()
    (tmp_path / "elsewhere").rename(tmp_path / "out")
    assert (read_results(call()).questions == 2).all()


@pytest.mark.parametrize("option", ["row_invariant", "share_cache"])
def test_answers_with_an_option_of_models_are_not_gone_on_with_without_it(call, tmp_path, option):
    """Nor the other way round; answers from before all of them named it are without it."""
    own = {"methods": ("vanilla",), "intermediate": "self:w4a16-g128"}
    for first in (True, False):
        path = call(**own, **{option: first}, out_dir=tmp_path / str(first))
        assert read_provenance(path)["parameters"][option] is first
        with pytest.raises(SpecquantError, match=f"measured with {option} {first}, not {not first}: choose another"):
            call(**own, **{option: not first}, out_dir=tmp_path / str(first))
    file = path.with_suffix(".jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        del row["parameters"][option]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert call(**own, **{option: False}, out_dir=tmp_path / "False") == path
