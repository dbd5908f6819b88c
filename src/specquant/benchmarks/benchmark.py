"""What a benchmark is, and how its questions are read from a file as published."""

import gzip
import hashlib
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from specquant.errors import SpecquantError
from specquant.files import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GITHUB = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class Question:
    """One question of a benchmark: what the user says, turn by turn, and the fields that its answer is judged by."""

    id: str
    task: str
    category: str
    turns: tuple[str, ...]
    solution: dict[str, str]


class Prompt(NamedTuple):
    """A prompt as text, and whether the tokenizer adds its special tokens to it."""

    text: str
    special_tokens: bool


@dataclass(frozen=True)
class Benchmark:
    """A set of questions, how they are asked, and how answers are judged.

    Attributes:
        name: On the command line and in tables.
        file: Of the questions, one JSON object a line, in the folder of benchmarks; gzipped where it ends in .gz.
            Where there is no address, its path below the project root.
        url: Address of the file as its authors published it, at a fixed commit; None for a file of this project.
        sha256: Of the published file.
        max_new_tokens: The most in one turn. For the paper's benchmarks as in its authors' scripts: 1024 is their
            default, the others stand in their scripts for the 8B model.
        question: Makes a question from one line of the file and its number. What it raises (ValueError, KeyError)
            says why the line is none.
        prompt: Makes the prompt of a question's next turn from the question and the answers to its turns so far.
        judge: Whether an answer to the last turn is right, None where that cannot be found out; None for
            benchmarks whose questions have no right answer. Its last argument is `unsafe`, as of `is_right`.
        runs_programs: Whether judging runs programs that the model wrote.
    """

    name: str
    file: str
    url: str | None
    sha256: str
    max_new_tokens: int
    question: Callable[[dict, int], Question]
    prompt: Callable[[Question, Sequence[str], "PreTrainedTokenizerBase"], Prompt]
    judge: Callable[[Question, str, bool], bool | None] | None = None
    runs_programs: bool = False

    def path(self, data_dir: str | Path) -> Path:
        """Where its file is, if `data_dir` is the folder of benchmarks; a relative folder is below the project root."""
        return resolve(data_dir) / self.file if self.url else resolve(self.file)

    def remedy(self, data_dir: str | Path) -> str:
        """From where to get its file."""
        return f"by `specquant data fetch {self.name} --data-dir {data_dir}`" if self.url else "from the repository"

    def is_right(self, question: Question, answer: str, unsafe: bool = False) -> bool | None:
        """Whether an answer is right; None where it cannot be: in conversations, and for programs without a sandbox.

        Args:
            question: One of this benchmark.
            answer: To its last turn.
            unsafe: Run programs also where no sandbox can be made.
        """
        return self.judge(question, answer, unsafe) if self.judge else None


def read_questions(benchmark: Benchmark, data_dir: str | Path, limit: int | None = None) -> tuple[list[Question], str]:
    """The questions in a benchmark's file, and the file's SHA-256. A relative folder is below the project root.

    limit: take at most so many of each task, spread evenly over the file. Raises SpecquantError where the file is
    missing or damaged, or a line is no question of this benchmark.
    """
    if limit is not None and limit < 1:
        raise SpecquantError(f"the limit is {limit} questions of each task; it must be at least 1")
    path, remedy = benchmark.path(data_dir), benchmark.remedy(data_dir)
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except FileNotFoundError:
        where = f" in {data_dir}" if benchmark.url else ""
        raise SpecquantError(f"there is no {benchmark.file}{where}: get it {remedy}") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise SpecquantError(f"{path} is damaged ({error}): get it again {remedy}") from None
    tasks: dict[str, list[Question]] = defaultdict(list)
    ids = set()
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            question = benchmark.question(json.loads(line), number)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SpecquantError(
                f"{path}, line {number}: no question of {benchmark.name} ({type(error).__name__}: {error}): get the "
                f"file again {remedy}"
            ) from None
        if question.id in ids:
            raise SpecquantError(f"{path}, line {number}: question {question.id} is there twice")
        ids.add(question.id)
        tasks[question.task].append(question)
    if not ids:
        raise SpecquantError(f"{path} holds no question: get it again {remedy}")
    return [question for some in tasks.values() for question in _spread(some, limit)], hashlib.sha256(
        content
    ).hexdigest()


def prompt_tokens(
    benchmark: Benchmark,
    question: Question,
    answers: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    longest: int,
) -> tuple[list[int], int]:
    """The prompt of the turn that follows `answers`, and how many tokens were cut from its middle to fit `longest`."""
    from specquant.decoding import tokens_of

    text, special = benchmark.prompt(question, answers, tokenizer)
    tokens = tokens_of(text, tokenizer, special)
    cut = max(0, len(tokens) - longest)
    if cut:  # its beginning holds the template's head, its end the question
        tokens = tokens[: longest // 2] + tokens[len(tokens) - (longest - longest // 2) :]
    return tokens, cut


def _spread(questions: list[Question], limit: int | None) -> list[Question]:
    count = min(limit or len(questions), len(questions))
    return [questions[i * len(questions) // count] for i in range(count)]


def is_text(value: object) -> bool:
    """Whether a value of a JSON file is a text that says something and that a file can hold: escapes in JSON can stand
    for half a character."""
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= c <= "\udfff" for c in value)


def turns_field(record: dict) -> tuple[str, ...]:
    turns = record["turns"]
    if not isinstance(turns, list) or not turns or not all(map(is_text, turns)):
        raise ValueError("turns is no list of texts")
    return tuple(turns)


def text_field(record: dict, field: str) -> str:
    if not is_text(record[field]):
        raise ValueError(f"{field} is no text")
    return record[field]


def id_field(record: dict) -> str:
    number = record["question_id"]
    if isinstance(number, bool) or not (isinstance(number, int) or is_text(number)):
        raise ValueError("question_id is no whole number")
    return str(number)
