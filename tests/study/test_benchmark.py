"""Answers are recorded one by one; an interrupted run goes on, and other measurements are not mixed in."""

import json
from pathlib import Path

import pytest

from specquant.cli import main
from specquant.errors import SpecquantError
from specquant.experiments.tasks import BENCHMARKS
from specquant.study import benchmark as recording
from specquant.study import read_provenance, read_results
from specquant.study.benchmark import record_benchmark
from tests.questions import write_questions

METHODS = ("autoregressive", "eagle2")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_questions(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture
def call(small_models, data_dir, tmp_path):
    def run(name="mt-bench", methods=METHODS, **options):
        companions = {"eagle_target": small_models / "eagle-target"}
        options = {"data_dir": data_dir, "out_dir": tmp_path / "out", "max_new_tokens": 6, "device": "cpu"} | options
        return record_benchmark(name, methods, small_models / "target", companions, **options)

    return run


@pytest.fixture
def asked(monkeypatch):
    """The questions that are answered, in their order; asked.stop_at raises Ctrl-C before that many."""

    class Asked(list):
        stop_at = None

    asked, original = Asked(), recording.answer_question

    def answer(speculator, tokenizer, benchmark, question, *rest):
        if len(asked) == asked.stop_at:
            raise KeyboardInterrupt
        asked.append(question.id)
        return original(speculator, tokenizer, benchmark, question, *rest)

    monkeypatch.setattr(recording, "answer_question", answer)
    return asked


def lines(tmp_path, name="mt-bench"):
    return [json.loads(line) for line in (tmp_path / f"out/{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_runs_and_says_what_was_measured_and_how(call, tmp_path, name, data_dir):
    path = call(name)
    assert path == tmp_path / f"out/{name}.csv"
    table, rows = read_results(path), lines(tmp_path, name)
    assert set(table.method) == set(METHODS)
    assert len(table.task.unique()) == (7 if name == "spec-bench" else 1)
    assert len(rows) == 2 * table[(table.method == "eagle2") & (table.task != "overall")].questions.sum()
    assert all(len(row["answers"]) == (2 if name == "mt-bench" else 1) for row in rows)
    assert (table.correct_percent.notna() == (name in ("humaneval", "gsm8k"))).all()
    parameters = read_provenance(path)["parameters"]
    assert (parameters["max_new_tokens"], parameters["as_published"]) == (6, False)
    assert (parameters["sandbox"] is None) == (name != "humaneval")
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
def test_a_full_disk_is_a_sentence(call, tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "_read_lines", lambda *_: [])  # it reads as endless zeros
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mt-bench.jsonl").symlink_to("/dev/full")
    with pytest.raises(SpecquantError, match=r"cannot write .*No space left on device; the same command goes on"):
        call()


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
