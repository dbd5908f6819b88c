"""Small benchmark files in the form of the published ones, with questions of our own."""

import gzip
import json
from pathlib import Path

from specquant.benchmarks.benchmark import Prompt, Question, read_questions
from specquant.benchmarks.registry import BENCHMARKS
from specquant.benchmarks.spec_bench import TASKS

SUM = {
    "task_id": "HumanEval/0",
    "prompt": 'from math import floor\n\n\ndef whole(x):\n    """Integer part.\n    >>> whole(1.5)\n    1\n    """\n',
    "entry_point": "whole",
    "canonical_solution": "    return floor(x)\n",
    "test": "def check(candidate):\n    assert candidate(1.5) == 1\n    assert candidate(2) == 2\n",
}


# The paper's benchmarks, of which `write_questions` writes files.
NAMES = ("mt-bench", "spec-bench", "humaneval", "gsm8k")


def write_questions(folder: Path) -> Path:
    """Write a file for each benchmark: two conversations; one question of each category; one program; two sums."""
    conversation = {"category": "writing", "turns": ["2 plus 3 makes", "And 4 plus"]}
    spec_bench = [
        {"question_id": number, "category": category, "turns": ["7 times 8 makes"]}
        for number, category in enumerate(TASKS)
    ]
    sums = [
        {"question": "Ann has 3 pens and buys 4. How many has she?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"},
        {"question": "A ship costs $1,000 and a boat twice as much.", "answer": "2 * 1000 = 2000\n#### 2,000"},
    ]
    records = {
        "mt-bench": [{"question_id": 81 + i} | conversation for i in range(2)],
        "spec-bench": spec_bench,
        "humaneval": [SUM],
        "gsm8k": sums,
    }
    folder.mkdir(parents=True, exist_ok=True)
    assert tuple(records) == NAMES
    for name, lines in records.items():
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        file = folder / BENCHMARKS[name].file
        file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return folder


def first_question(name: str, folder: Path) -> Question:
    """The first question of a file that `write_questions` wrote."""
    return read_questions(BENCHMARKS[name], folder)[0][0]


def prompt_of(name: str, folder: Path, tokenizer, answers=()) -> Prompt:
    """The prompt of the first question."""
    return BENCHMARKS[name].prompt(first_question(name, folder), answers, tokenizer)
