"""Recording a benchmark: one JSON line for each question and method as it is answered, then the table.

An interrupted run goes on where it stopped: what the file of lines holds is not measured again.
"""

import errno
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from math import inf, isnan, nan
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from specquant.decoding import generate
from specquant.errors import SpecquantError
from specquant.experiments.benchmark import answer_question, benchmark_table, longest_prompt
from specquant.experiments.methods import METHODS, DraftSettings, Models
from specquant.experiments.sandbox import wall, why_no_wall
from specquant.experiments.tasks import Question, get_benchmark, prompt_tokens, read_questions
from specquant.files import resolve
from specquant.models.device import choose_device, dtype_parameters, named_dtype
from specquant.models.loading import load_tokenizer
from specquant.quant import SCHEMES
from specquant.study.record import CLOCK
from specquant.tables.provenance import device_name, without_local_paths
from specquant.tables.results import write_results

WARM_UP_TOKENS = 16
# Measurements that an answer which ended at its first token does not have.
NUMBERS = ("draft_size", "accepted_length", "inner_rounds", "inner_accepted_length")
NUMBERS += ("draft_ms", "verify_ms", "other_ms", "tokens_per_s")
TIMES = ("prefill_ms", "decode_ms")
COUNTS = ("new_tokens", "steps", "decoded_tokens", "cut_tokens")
WHAT_MAY_HAPPEN = (
    "programs that the model wrote may do all that you may do: read, change and delete your files, use the network and "
    "go on after the run"
)


def record_benchmark(
    name: str,
    methods: Sequence[str],
    target: str | Path,
    companions: Mapping[str, str | Path],
    data_dir: str | Path,
    out_dir: str | Path,
    scheme: str | None = None,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    settings: DraftSettings | None = None,
    context_length: int | None = None,
    head_options: Mapping[str, str | int | Path | None] | None = None,
    unsafe: bool = False,
) -> Path:
    """Answer a benchmark's questions greedily by each method; returns the table's path, NAME.csv below `out_dir`.

    target, companions, scheme, context_length, head_options (`head_scheme` and so on): as for `Models`. limit: of
    questions for each task. max_new_tokens: in one turn (default: the paper's). device: the GPU by default, if there is
    one; dtype: that models compute in (default: `models.device.default_dtype`). unsafe: run HumanEval's answers also
    where no sandbox can be made. Beside the table stand its provenance, NAME.json, and the lines with the answers,
    NAME.jsonl (`Lines`): several processes may answer into one folder, and a last line that broke off is measured
    again. Methods take turns on each question, so that a machine that grows slower slows all of them. Raises
    SpecquantError where there are lines that were measured otherwise than now asked for, or a file is missing, damaged
    or cannot be written.
    """
    benchmark = get_benchmark(name)
    questions, sha256 = read_questions(benchmark, data_dir, limit)
    every_question, _ = read_questions(benchmark, data_dir)
    max_new_tokens = benchmark.max_new_tokens if max_new_tokens is None else max_new_tokens
    device = choose_device(device)
    models = Models(
        target,
        scheme=scheme,
        dtype=named_dtype(dtype),
        device=device,
        context_length=context_length,
        **companions,
        **(head_options or {}),
    )
    settings = settings or DraftSettings()
    speculators = {method: models.speculator(method, settings) for method in methods}
    longest = longest_prompt(list(speculators.values()), max_new_tokens)
    tokenizer = load_tokenizer(target)
    parameters = {
        "benchmark": name,
        "questions_sha256": sha256,
        "as_published": sha256 == benchmark.sha256,
        "models": without_local_paths({"target": Path(target)} | dict(companions)),
        "max_new_tokens": max_new_tokens,
        "context_length": context_length,
        **dtype_parameters(device, dtype),
        "settings": asdict(settings),
        "head_scheme": models.head_scheme,
        "head_vocabulary": models.head_vocabulary,
        "head_text": Path(models.head_text).name if models.head_text else None,
        "device": device_name(device),
        "sandbox": _sandbox(unsafe) if name == "humaneval" else None,
    }
    lines = Lines(resolve(out_dir) / f"{name}.jsonl", parameters, every_question)
    with lines.locked():  # refuses what cannot be written before anything is measured
        lines.read()
    scheme = models.target.scheme.name
    todo = [
        (question, method)
        for question in questions
        for method in speculators
        if (scheme, method, question.id) not in lines.rows
    ]
    for method in dict.fromkeys(method for _, method in todo):
        prompt, _ = prompt_tokens(benchmark, todo[0][0], [], tokenizer, longest)
        generate(speculators[method], tokenizer, prompt, min(WARM_UP_TOKENS, max_new_tokens))
    for question, method in tqdm(todo, desc=f"{name}, {scheme}", unit="answer"):
        lines.read()
        if (scheme, method, question.id) in lines.rows:
            continue  # by another process, with the same command
        row = {"model": parameters["models"]["target"], "scheme": scheme, "method": method}
        row |= {"weights": "trained", "acceptance": "measured"}
        row |= answer_question(speculators[method], tokenizer, benchmark, question, max_new_tokens, longest, unsafe)
        lines.add(row | {"parameters": parameters})
    with lines.locked():  # so that the last of several processes writes the table of all lines
        lines.read()
        table = benchmark_table(pd.DataFrame(lines.in_order()))
        return write_results(table, lines.path.with_suffix(".csv"), parameters, device=device, repeats=1, clock=CLOCK)


def _sandbox(unsafe: bool) -> str | None:
    """What HumanEval's answers run behind, None where they do not run; says so where it is not a sandbox."""
    if wall():
        return wall()
    if unsafe:
        print(f"specquant: {why_no_wall()}: {WHAT_MAY_HAPPEN}", file=sys.stderr)
        return "unsafe"
    print(
        f"specquant: answers are recorded, but not judged: {why_no_wall()}; --unsafe runs them all the same, but then "
        f"{WHAT_MAY_HAPPEN}",
        file=sys.stderr,
    )
    return None


class Lines:
    """The file of answers: a JSON line for each unit (scheme, method, id of the question), none of which counts twice.

    Several processes may add to it at once: each takes turns with the others, and reads what they have added. A last
    line that broke off is cut from the file. rows: by unit, in the order of the file. Raises SpecquantError for a line
    that is no answer to one of `questions`, or was measured with other parameters.
    """

    def __init__(self, path: Path, parameters: dict, questions: Sequence[Question]):
        self.path, self.parameters = path, parameters
        self.rows: dict[tuple[str, str, str], dict] = {}
        self._questions = {question.id: question for question in questions}
        self._read, self._number, self._locks = 0, 0, 0

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
                with _without_errors(errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):  # some file systems have no locks
                    fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed, and by a process that dies
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

    def in_order(self) -> list[dict]:
        """The rows in the order of the questions, whichever process was first."""
        order = {number: place for place, number in enumerate(self._questions)}
        return sorted(self.rows.values(), key=lambda row: order[row["id"]])

    def _take(self, line: bytes) -> None:
        """Take in one line."""
        place = f"{self.path}, line {self._number}"
        try:
            row = json.loads(line, parse_constant=_no_number)
            wrong = _wrong_field(row, self._questions)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise SpecquantError(f"{place}: no answer of this benchmark: remove the line") from None
        if wrong:
            raise SpecquantError(f"{place}: no answer of this benchmark, by its {wrong}: remove the line")
        for name, value in self.parameters.items():
            if row["parameters"].get(name) != value:
                raise SpecquantError(
                    f"{place}: measured with {name} {row['parameters'].get(name)}, not {value}: choose another folder, "
                    "or remove the file"
                )
        unit = (row["scheme"], row["method"], row["id"])
        if unit in self.rows:
            print(f"specquant: {place}: {', '.join(unit)} is there twice, and counts once", file=sys.stderr)
        else:
            self.rows[unit] = {name: nan if value is None and name in NUMBERS else value for name, value in row.items()}


@contextmanager
def _without_errors(*numbers: int) -> Iterator[None]:
    """Go on after an OSError of one of these kinds."""
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise


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
