"""The texts that ship with the project: prompts and held-out evaluation text."""

import json
import re
from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest

from specquant.models.loading import load_tokenizer

DATA = Path(__file__).parents[1] / "data"
TASKS = ("conversation", "rewriting", "summarization", "question-answering", "mathematics", "retrieval", "code")
DOMAINS = ("mathematics", "code", "prose")

# A chain of numbers and operators with its result: `18 * $2 = $36`, but neither `3c - 30 = 60` nor `1 - 5/6 = 1/6`.
CALCULATION = re.compile(r"(?<![\w.])(?<![-+*/] )((?:\$?[\d.]+ [-+*/] )+\$?[\d.]+) = \$?([\d.]*\d)(?![\w/])")


@pytest.fixture(scope="module")
def prompts():
    with open(DATA / "prompts" / "prompts.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def held_out(domain):
    return (DATA / "text" / f"{domain}.txt").read_text(encoding="utf-8")


def documents(domain):
    return held_out(domain).split("\f\n")


def test_prompts_are_records_with_unique_ids_and_texts(prompts):
    assert all(set(prompt) == {"id", "task", "prompt"} for prompt in prompts)
    assert len({prompt["id"] for prompt in prompts}) == len(prompts)
    assert len({prompt["prompt"] for prompt in prompts}) == len(prompts)


def test_tasks_are_balanced_in_order_and_numbered(prompts):
    tasks = [prompt["task"] for prompt in prompts]
    assert tuple(task for task, _ in groupby(tasks)) == TASKS
    assert set(Counter(tasks).values()) == {9}
    for task in TASKS:
        ids = [prompt["id"] for prompt in prompts if prompt["task"] == task]
        assert ids == [f"{task}-{number:02d}" for number in range(1, len(ids) + 1)]


def test_prompts_have_40_to_250_tokens(prompts):
    tokenizer = load_tokenizer(DATA / "tiny/target")
    lengths = {prompt["id"]: len(tokenizer(prompt["prompt"])["input_ids"]) for prompt in prompts}
    assert not {prompt: length for prompt, length in lengths.items() if not 40 <= length <= 250}


def test_prompts_do_not_begin_or_end_with_white_space(prompts):
    assert not [prompt["id"] for prompt in prompts if prompt["prompt"] != prompt["prompt"].strip()]


def test_mathematics_prompts_stop_before_the_answer(prompts):
    for prompt in prompts:
        if prompt["task"] == "mathematics":
            assert re.fullmatch(r"Question: [^\n]+\?\nAnswer:", prompt["prompt"]), prompt["id"]


def test_no_prompt_text_is_in_the_held_out_text(prompts):
    """Neither a whole prompt nor one of its longer lines (a speaker's name may occur anywhere)."""
    everything = "\n".join(held_out(domain) for domain in DOMAINS)
    shared = {line for prompt in prompts for line in prompt["prompt"].splitlines() if len(line) > 40} & set(
        everything.splitlines()
    )
    assert not shared
    assert not [prompt["id"] for prompt in prompts if prompt["prompt"] in everything]


@pytest.mark.parametrize("domain", DOMAINS)
def test_held_out_text_has_its_size(domain):
    assert 24_000 <= len(held_out(domain).encode()) <= 30_000


@pytest.mark.parametrize("domain", DOMAINS)
def test_form_feeds_separate_documents(domain):
    text = held_out(domain)
    assert all(line == "\f" for line in text.split("\n") if "\f" in line)
    assert len(documents(domain)) >= 10
    for document in documents(domain):
        assert document.strip()
        assert document.startswith(document.lstrip())
        assert document.endswith("\n")
        assert not document.endswith("\n\n")
        assert not re.search(r"[ \t]$", document, re.MULTILINE)
    assert len(set(documents(domain))) == len(documents(domain))


def test_code_compiles():
    for number, document in enumerate(documents("code")):
        compile(document, f"code.txt, document {number}", "exec")


def test_word_problems_have_their_form():
    for document in documents("mathematics"):
        assert re.fullmatch(r"Question: [^\n]+\nAnswer: (?:[^\n]+\n)+#### [\d.]+\n", document), document


def test_arithmetic_is_right():
    """Every calculation that is written out, and the last line of a solution holds the final number."""
    calculations = 0
    for document in documents("mathematics"):
        solution, final = document.partition("\nAnswer: ")[2].split("\n#### ")
        for expression, result in CALCULATION.findall(solution):
            calculations += 1
            assert eval(expression.replace("$", "")) == pytest.approx(float(result)), document
        last_line = solution.split("\n")[-1]
        assert float(final) in [float(number) for number in re.findall(r"\d+(?:\.\d+)?", last_line)], document
    assert calculations > 200


def test_a_third_of_the_prose_is_dialogue():
    scenes = [document for document in documents("prose") if re.match(r"[A-Z][A-Za-z ]*:\n", document)]
    assert 0.25 < sum(map(len, scenes)) / len(held_out("prose")) < 0.4
