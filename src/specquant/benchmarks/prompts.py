"""Our own prompts: 63 texts to continue, of seven tasks, in data/prompts. They have no right answers, nor turns."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from specquant.benchmarks.benchmark import Benchmark, Prompt, Question, text_field
from specquant.benchmarks.chat import message_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def question(record: dict, number: int) -> Question:
    task = text_field(record, "task")
    return Question(text_field(record, "id"), task, task, (text_field(record, "prompt"),), {})


def prompt(question: Question, answers: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> Prompt:
    return message_prompt(question.turns[0], tokenizer)


BENCHMARK = Benchmark(
    name="prompts",
    file="data/prompts/prompts.jsonl",
    url=None,
    sha256="e2cd270df8284acde1d5a72c30688498f43b485e3dbd0d2dcf211052232f2ed2",
    max_new_tokens=64,
    question=question,
    prompt=prompt,
)
