"""Questions are read as published or refused with a sentence, and prompts that do not fit are cut."""

import gzip
import json

import pytest

from specquant.benchmarks.benchmark import prompt_tokens, read_questions
from specquant.benchmarks.registry import BENCHMARKS
from specquant.errors import SpecquantError
from tests.questions import NAMES, first_question


def test_every_benchmark_is_read(data_dir):
    read = {name: read_questions(BENCHMARKS[name], data_dir)[0] for name in NAMES}
    assert [len(questions) for questions in read.values()] == [2, 13, 1, 2]
    assert read["mt-bench"][0].turns == ("2 plus 3 makes", "And 4 plus")
    assert {question.task for question in read["mt-bench"]} == {"MT-Bench"}
    assert read["humaneval"][0].id == "HumanEval/0"
    assert [question.id for question in read["gsm8k"]] == ["1", "2"]
    assert read["gsm8k"][1].solution["answer"].endswith("#### 2,000")


def test_a_limit_is_for_each_task_and_spread_over_the_file(tmp_path):
    lines = [{"question_id": i, "category": ("qa", "rag")[i % 2], "turns": ["a"]} for i in range(20)]
    (tmp_path / "spec_bench.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    questions, _ = read_questions(BENCHMARKS["spec-bench"], tmp_path, 2)
    assert [question.id for question in questions] == ["0", "10", "1", "11"]
    assert len(read_questions(BENCHMARKS["spec-bench"], tmp_path, 99)[0]) == 20
    with pytest.raises(SpecquantError, match="the limit is 0 questions"):
        read_questions(BENCHMARKS["spec-bench"], tmp_path, 0)


@pytest.mark.parametrize("name", NAMES)
def test_missing_files_and_lines_that_are_no_questions_are_named(name, data_dir):
    benchmark = BENCHMARKS[name]
    file = data_dir / benchmark.file
    whole = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()

    def refused(content: bytes, says: str) -> None:
        file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
        with pytest.raises(SpecquantError, match=says) as error:
            read_questions(benchmark, data_dir)
        assert str(file) in str(error.value)

    number = len(whole.splitlines()) + 1
    for line in (b"{}", b"[]", b"3", whole.splitlines()[0][:-9]):
        refused(whole + line, f"line {number}: no question of {name}.*specquant data fetch {name}")
    refused(b"\n", "holds no question")
    refused(b"\xff", "is damaged")
    file.unlink()
    with pytest.raises(SpecquantError, match=rf"there is no {benchmark.file}.*specquant data fetch {name}"):
        read_questions(benchmark, data_dir)


def test_a_torn_archive_a_doubled_question_and_an_unknown_category_are_named(data_dir):
    file = data_dir / "HumanEval.jsonl.gz"
    for damaged in (file.read_bytes()[:-20], b"\x1f\x8b\x08" + b"x" * 50, b"no archive"):
        file.write_bytes(damaged)
        with pytest.raises(SpecquantError, match=r"HumanEval\.jsonl\.gz is damaged"):
            read_questions(BENCHMARKS["humaneval"], data_dir)
    file = data_dir / "mt_bench.jsonl"
    line = file.read_text().splitlines()[0]
    file.write_text(f"{line}\n{line}\n")
    with pytest.raises(SpecquantError, match="line 2: question 81 is there twice"):
        read_questions(BENCHMARKS["mt-bench"], data_dir)
    (data_dir / "spec_bench.jsonl").write_text(line.replace("writing", "painting"))
    with pytest.raises(SpecquantError, match="KeyError: 'painting'"):
        read_questions(BENCHMARKS["spec-bench"], data_dir)


def test_a_question_that_is_no_text_is_named(data_dir):
    file = data_dir / BENCHMARKS["gsm8k"].file
    file.write_text(file.read_text() + json.dumps({"question": "caf\ud83d", "answer": "#### 1"}) + "\n")
    with pytest.raises(SpecquantError, match=r"line 3: no question of gsm8k \(ValueError: question is no text"):
        read_questions(BENCHMARKS["gsm8k"], data_dir)


def test_what_does_not_fit_is_cut_from_the_middle_and_counted(data_dir, tokenizer):
    question = first_question("gsm8k", data_dir)
    whole, cut = prompt_tokens(BENCHMARKS["gsm8k"], question, [], tokenizer, 100_000)
    assert cut == 0
    for longest in (100, 101):
        tokens, cut = prompt_tokens(BENCHMARKS["gsm8k"], question, [], tokenizer, longest)
        assert (len(tokens), cut) == (longest, len(whole) - longest)
        assert tokens[:50] == whole[:50]
        assert tokens[50:] == whole[len(whole) - longest + 50 :]
    assert prompt_tokens(BENCHMARKS["gsm8k"], question, [], tokenizer, len(whole)) == (whole, 0)


@pytest.mark.parametrize(
    ("name", "field", "value", "says"),
    [
        ("mt-bench", "turns", "One turn a letter?", "turns is no list of texts"),
        ("spec-bench", "turns", "One turn a letter?", "turns is no list of texts"),
        ("mt-bench", "turns", {"a": 1}, "turns is no list of texts"),
        ("mt-bench", "turns", [], "turns is no list of texts"),
        ("mt-bench", "turns", ["fine", 3], "turns is no list of texts"),
        ("mt-bench", "turns", ["fine", "\ud800"], "turns is no list of texts"),
        ("mt-bench", "question_id", [81], "question_id is no whole number"),
        ("mt-bench", "question_id", 8.5, "question_id is no whole number"),
        ("mt-bench", "question_id", float("nan"), "question_id is no whole number"),
        ("spec-bench", "question_id", None, "question_id is no whole number"),
        ("spec-bench", "question_id", True, "question_id is no whole number"),
        ("mt-bench", "category", ["writing"], "category is no text"),
        ("spec-bench", "category", 3, "category is no text"),
        ("humaneval", "task_id", 0, "task_id is no text"),
        ("humaneval", "test", ["assert"], "test is no text"),
        ("humaneval", "entry_point", "a b", "entry_point is no function's name"),
        ("gsm8k", "question", 3, "question is no text"),
        ("gsm8k", "answer", "#### none", "the answer has no number behind ####"),
    ],
)
def test_a_field_of_a_wrong_type_is_named(data_dir, name, field, value, says):
    benchmark = BENCHMARKS[name]
    file = data_dir / benchmark.file
    packed = file.suffix == ".gz"
    whole = (gzip.decompress(file.read_bytes()) if packed else file.read_bytes()).decode()
    first, *rest = whole.splitlines()
    content = "\n".join([json.dumps(json.loads(first) | {field: value}), *rest]).encode()
    file.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(SpecquantError, match=rf"line 1: no question of {name} \(ValueError: {says}"):
        read_questions(benchmark, data_dir)


def test_a_question_that_is_nested_too_deeply_is_named(data_dir):
    (data_dir / "mt_bench.jsonl").write_text('{"turns": ' + "[" * 100_000)
    with pytest.raises(SpecquantError, match="line 1: no question of mt-bench"):
        read_questions(BENCHMARKS["mt-bench"], data_dir)
