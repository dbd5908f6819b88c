"""Our own prompts are a benchmark that needs no network."""

from specquant.benchmarks.benchmark import read_questions
from specquant.benchmarks.prompts import BENCHMARK, prompt_ids, read_prompts
from specquant.cli import main
from specquant.tables.results import read_provenance, read_results


def test_every_prompt_is_a_question_as_published(tmp_path):
    questions, sha256 = read_questions(BENCHMARK, tmp_path)
    prompts = read_prompts("data/prompts/prompts.jsonl")
    assert [(each.id, each.task, *each.turns) for each in questions] == [
        (each["id"], each["task"], each["prompt"]) for each in prompts
    ]
    assert sha256 == BENCHMARK.sha256
    assert BENCHMARK.is_right(questions[0], "anything") is None


def test_they_are_asked_as_throughput_asks_them(tmp_path, tokenizer, chat_tokenizer):
    question = read_questions(BENCHMARK, tmp_path)[0][0]
    for asked in (tokenizer, chat_tokenizer):
        text, special = BENCHMARK.prompt(question, [], asked)
        tokens = asked(text, add_special_tokens=special)["input_ids"]
        assert tokens == prompt_ids(question.turns[0], asked)


def test_the_command_answers_them_offline(small_models, tmp_path, capsys):
    command = ["bench", "tasks", "--benchmark", "prompts", "--model", str(small_models / "target"), "--limit", "1"]
    command += ["--max-new-tokens", "4", "--device", "cpu", "--methods", "autoregressive", "--out", str(tmp_path)]
    assert main(command) == 0
    assert "conversation" in capsys.readouterr().out
    table = read_results(tmp_path / "prompts.csv")
    assert len(table) == 7 + 1  # tasks, and over all of them
    assert table.correct_percent.isna().all()
    assert read_provenance(tmp_path / "prompts.csv")["parameters"]["as_published"] is True
