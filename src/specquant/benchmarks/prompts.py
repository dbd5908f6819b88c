"""Our own prompts: 63 texts to continue, of seven tasks, in data/prompts. They have no right answers, nor turns."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from specquant.benchmarks.benchmark import Benchmark, Prompt, Question, is_text, text_field
from specquant.benchmarks.chat import message_prompt
from specquant.errors import SpecquantError
from specquant.files import read_text, resolve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPTS = "data/prompts/prompts.jsonl"
FIELDS = ("id", "task", "prompt")  # of a line of their file


def question(record: dict, number: int) -> Question:
    task = text_field(record, "task")
    return Question(text_field(record, "id"), task, task, (text_field(record, "prompt"),), {})


def prompt(question: Question, answers: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> Prompt:
    return message_prompt(question.turns[0], tokenizer)


def read_prompts(path: str | Path, per_task: int | None = None) -> list[dict[str, str]]:
    """The prompts in a JSON-lines file, at most `per_task` of each task; a relative path is below the project root.

    Raises SpecquantError where there is no file, no prompt in it, or a line that is none or has the id of another.
    """
    path = resolve(path)
    if not path.is_file():
        raise SpecquantError(f"there is no prompt file {path}")
    if per_task is not None and per_task < 1:
        raise SpecquantError(f"{per_task} prompts of each task were asked for: ask for at least 1")
    chosen, ids = [], set()
    counts: dict[str, int] = {}
    for number, line in enumerate(read_text(path, "the prompts in").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            prompt = json.loads(line)
            values = {field: prompt[field] for field in FIELDS}
        except (ValueError, KeyError, TypeError, RecursionError):
            raise SpecquantError(f"{path}, line {number}: not an object with {', '.join(FIELDS)}") from None
        for field, value in values.items():
            if not is_text(value):
                raise SpecquantError(f"{path}, line {number}: {field} is no text: write it in quotes")
        if values["id"] in ids:
            raise SpecquantError(f"{path}, line {number}: prompt {values['id']} is there twice: give it another id")
        ids.add(values["id"])
        task = values["task"]
        counts[task] = counts.get(task, 0) + 1
        if per_task is None or counts[task] <= per_task:
            chosen.append(prompt)
    if not chosen:
        raise SpecquantError(f"{path} holds no prompt")
    return chosen


def prompt_ids(prompt: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """A prompt's tokens: as a user's message where the tokenizer has a chat template, else as it is."""
    from specquant.models.texts import tokens_of

    text, special = message_prompt(prompt, tokenizer)
    return tokens_of(text, tokenizer, special)


BENCHMARK = Benchmark(
    name="prompts",
    file=PROMPTS,
    url=None,
    sha256="e2cd270df8284acde1d5a72c30688498f43b485e3dbd0d2dcf211052232f2ed2",
    max_new_tokens=64,
    question=question,
    prompt=prompt,
)
