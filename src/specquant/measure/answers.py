"""The file of a benchmark's answers: one JSON line for each question and method as it is answered."""

import errno
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import inf, isnan, nan
from pathlib import Path
from typing import Any

from specquant.benchmarks.benchmark import Question
from specquant.decoding.drafters import METHODS
from specquant.errors import SpecquantError
from specquant.files import hold
from specquant.models.digest import DIGEST, by_name_alone
from specquant.quant import SCHEMES
from specquant.tables.parts import measured_otherwise

# Measurements that an answer which ended at its first token does not have.
NUMBERS = (
    *("mean_draft_size", "accepted_length", "inner_rounds", "inner_accepted_length"),
    *("draft_ms", "verify_ms", "other_ms", "tokens_per_s"),
)
TIMES = ("prefill_ms", "decode_ms")
OF_A_NODE = ("device", "sandbox")  # parameters of all answers that only the process knows which answers
UNNAMED = {"row_invariant": False, "share_cache": False}  # in answers from before all of them named these
COUNTS = ("new_tokens", "steps", "decoded_tokens", "cut_tokens")


class Lines:
    """The file of answers: a JSON line for each unit (scheme, method, id of the question), none of which counts twice.

    Several processes may add to it at once: each takes turns with the others, and reads what they have added. A last
    line that broke off is cut from the file. rows: by unit, in the order of the file. Where `parameters` lack some of
    `OF_A_NODE`, they are those of the first line. Raises SpecquantError for a line that is no answer to one of
    `questions`, or was measured with other parameters.
    """

    def __init__(self, path: Path, parameters: dict, questions: Sequence[Question]):
        self.path, self.parameters = path, parameters
        self.rows: dict[tuple[str, str, str], dict] = {}
        self._questions = {question.id: question for question in questions}
        self._read, self._number, self._locks = 0, 0, 0
        self._older = False  # whether a line was there that tells models apart by their names alone

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from adding lines meanwhile. Raises SpecquantError where the file cannot be made."""
        if self._locks:
            yield
            return
        with ExitStack() as stack:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(open(self.path, "ab"))
                hold(file)
            except OSError as error:
                raise SpecquantError(
                    f"cannot read and write {self.path}: {error.strerror}; choose another folder"
                ) from None
            self._locks += 1
            try:
                yield
            finally:
                self._locks -= 1

    def read(self) -> None:
        """Take in the lines that were added since the last time."""
        if not self.path.is_file():
            return
        with self.locked():
            try:
                with open(self.path, "r+b") as file:
                    file.seek(self._read)
                    content = file.read()
                    whole = content[: content.rfind(b"\n") + 1]
                    if whole != content:
                        file.truncate(self._read + len(whole))
            except OSError as error:
                raise SpecquantError(f"cannot read {self.path}: {error.strerror}; choose another folder") from None
            for line in whole.split(b"\n")[:-1]:
                self._number += 1
                self._take(line)
            self._read += len(whole)

    def add(self, row: dict) -> None:
        """Write a row, unless another process has written its unit."""
        with self.locked():
            self.read()
            if (row["scheme"], row["method"], row["id"]) in self.rows:
                return
            line = json.dumps({name: _null(value) for name, value in row.items()}, allow_nan=False) + "\n"
            try:
                with open(self.path, "ab", buffering=0) as file:
                    if file.write(line.encode()) != len(line.encode()):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                raise SpecquantError(
                    f"cannot write {self.path}: {error.strerror}; the same command goes on from what is there"
                ) from None
            self.read()

    def take(self, path: Path) -> None:
        """Add the answers of another file, if it is there."""
        theirs = Lines(path, dict(self.parameters), [*self._questions.values()])
        theirs.read()
        for row in theirs.rows.values():
            self.add(row)

    def missing(self, scheme: str, questions: Sequence[Question], methods: Sequence[str]) -> list[tuple[Question, str]]:
        """The questions, each with a method, that are not answered in a scheme yet; methods take turns."""
        todo = [(question, method) for question in questions for method in dict.fromkeys(methods)]
        return [(question, method) for question, method in todo if (scheme, method, question.id) not in self.rows]

    def in_order(self) -> list[dict]:
        """The rows in the order of the questions, whichever process was first."""
        order = {number: place for place, number in enumerate(self._questions)}
        return sorted(self.rows.values(), key=lambda row: order[row["id"]])

    def _take(self, line: bytes) -> None:
        """Take in one line."""
        place = f"{self.path}, line {self._number}"
        try:
            row = json.loads(line, parse_constant=_no_number)
            if "mean_draft_size" not in row:
                row["mean_draft_size"] = row.pop("draft_size")  # as it was called before 0.2
            wrong = _wrong_field(row, self._questions)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise SpecquantError(f"{place}: no answer of this benchmark: remove the line") from None
        if wrong:
            raise SpecquantError(f"{place}: no answer of this benchmark, by its {wrong}: remove the line")
        self.parameters = {name: row["parameters"].get(name) for name in OF_A_NODE} | self.parameters
        digests = {name: value for name, value in self.parameters.items() if name.startswith(DIGEST)}
        if told := measured_otherwise(self.parameters, UNNAMED | digests | row["parameters"]):
            raise SpecquantError(f"{place}: {told}: choose another folder, or remove the file")
        if (older := [name for name in digests if name not in row["parameters"]]) and not self._older:
            print(f"specquant: {place}: {by_name_alone(older)}", file=sys.stderr)
        self._older |= bool(older)
        unit = (row["scheme"], row["method"], row["id"])
        if unit in self.rows:
            print(f"specquant: {place}: {', '.join(unit)} is there twice, and counts once", file=sys.stderr)
        else:
            self.rows[unit] = {name: nan if value is None and name in NUMBERS else value for name, value in row.items()}


def _wrong_field(row: dict, questions: Mapping[str, Question]) -> str | None:
    """The first field of a line that an answer to one of these questions does not have so; None where all are right.

    Raises KeyError or TypeError where it has not even these fields.
    """
    question = questions.get(row["id"]) if isinstance(row["id"], str) else None
    about = (question.task, question.category) if question else None
    turns = len(question.turns) if question else 0
    right = {
        "id": question is not None,
        "parameters": isinstance(row["parameters"], dict),
        "model": row["model"] == row["parameters"]["models"]["target"],
        "scheme": isinstance(row["scheme"], str) and row["scheme"] in SCHEMES,
        "method": isinstance(row["method"], str) and row["method"] in METHODS,
        "task": (row["task"], row["category"]) == about,
        "weights": row["weights"] == "trained",
        "acceptance": row["acceptance"] == "measured",
        "answers": isinstance(row["answers"], list)
        and len(row["answers"]) == turns
        and all(isinstance(answer, str) for answer in row["answers"]),
        "correct": row["correct"] is None or isinstance(row["correct"], bool),
    }
    right |= {name: _is_count(row[name]) for name in COUNTS}
    right |= {name: row[name] is None or _is_number(row[name]) for name in NUMBERS}
    right |= {name: _is_number(row[name]) for name in TIMES}
    return next((name for name, holds in right.items() if not holds), None)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < inf


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _null(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and isnan(value) else value
