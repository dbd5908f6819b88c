"""A benchmark's questions answered by jobs of Slurm. Each job answers some questions, into a file of its own.

That file is NAME.parts/JOB/NAME.jsonl below the folder of results. The command adds its lines to NAME.jsonl. So a job
that is requeued goes on behind its last answer, and so does a command that is repeated.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from specquant.benchmarks.benchmark import Question, read_questions
from specquant.benchmarks.registry import get_benchmark
from specquant.decoding.drafters import get_method
from specquant.decoding.models import Models
from specquant.errors import SpecquantError, full_memory_told
from specquant.files import resolve, wait_until_seen, write_file
from specquant.measure import executors
from specquant.measure.answers import Lines
from specquant.measure.executors import Slurm, Task
from specquant.measure.measure import require_card
from specquant.measure.parameters import from_json
from specquant.measure.states import States
from specquant.measure.tasks import Parameters, record_benchmark, what_is_shared, write_table
from specquant.models.config import load_config
from specquant.models.device import choose_device
from specquant.models.hub import locate, resolve_model
from specquant.models.loading import stored_scheme
from specquant.progress import tell, tqdm
from specquant.quant import get_scheme
from specquant.tables.parts import claim_device, forget_device, joined_provenance
from specquant.tables.provenance import COMMAND, command_line, device_name
from specquant.tables.results import read_provenance

QUESTIONS_OF_A_JOB = 20
OF_A_NODE = ("device", "sandbox")  # what all answers of a file share, and what only a job knows


def record_by_jobs(parameters: Parameters, out_dir: str | Path, executor: Slurm) -> Path:
    """As `tasks.record_benchmark`, but by jobs: this process loads no model.

    Raises:
        SpecquantError: as there, and where a job failed; what others have answered is kept.
    """
    for method in parameters.methods:
        get_method(method)  # refuses what is none
    Models.of(parameters.models)  # refuses what no job could use
    benchmark = get_benchmark(parameters.benchmark)
    questions, _ = read_questions(benchmark, parameters.data_dir, parameters.limit)
    every_question, _ = read_questions(benchmark, parameters.data_dir)
    answers = _Answers(resolve(out_dir) / f"{benchmark.name}.jsonl", _asked(parameters), every_question)
    for file in sorted(answers.folder.glob(f"*/{benchmark.name}.jsonl")):
        answers.take(file)
    answers.forget_device()
    scheme = _scheme(parameters)
    lacking = answers.missing(scheme, questions, parameters.methods)
    tasks = {
        _task(parameters, scheme, some, answers.folder): some
        for some in (lacking[n : n + QUESTIONS_OF_A_JOB] for n in range(0, len(lacking), QUESTIONS_OF_A_JOB))
    }
    failed, states = [], States(benchmark.name, list(tasks))
    with tqdm(total=len(lacking), desc=f"{benchmark.name}, {scheme}", unit="question") as bar, states:
        for task, told in executor.run(list(tasks), resolve(out_dir) / f"{benchmark.name}.jobs"):
            states.take(task, told)
            bar.set_postfix_str(str(states), refresh="state" in told)
            if "error" in told:
                failed.append(f"{task.name}: {told['error']}")
            elif "ended" in told:
                try:
                    answers.take(_folder(task) / f"{benchmark.name}.jsonl")
                except SpecquantError as error:  # such as of a node with another sandbox: the others go on
                    failed.append(f"{task.name}: {error}")
                bar.update(len(tasks[task]))
                if told["ended"] != 0:
                    why = told.get("why") or f"ended with status {told['ended']}"
                    failed.append(f"{task.name} failed ({why}; its log is {told['log']})")
                    tell(failed[-1])
    if failed:
        number = f"{len(failed)} jobs failed, the first of them: " if len(failed) > 1 else ""
        raise SpecquantError(f"{number}{failed[0]}: what was answered is kept, and the same command goes on from there")

    def unanswered() -> int:
        for task in tasks:
            answers.take(_folder(task) / f"{benchmark.name}.jsonl")
        return len(answers.missing(scheme, questions, parameters.methods))

    wait_until_seen(unanswered, answers.folder)
    path = write_table(answers.lines())
    records = [read_provenance(file) for file in sorted(answers.folder.glob(f"*/{benchmark.name}.csv"))]
    write_file(path.with_suffix(".json"), json.dumps(joined_provenance(records), indent=2) + "\n", by_several=True)
    return path


class _Answers:
    """The file of answers, as this machine knows it. Its first answer says from which device all are."""

    def __init__(self, path: Path, asked: dict[str, Any], questions: Sequence[Question]):
        self.path, self.folder, self.asked, self.questions = path, path.with_suffix(".parts"), asked, questions
        self._lines: Lines | None = None

    def take(self, file: Path) -> None:
        """Add the answers of a job's file, if it has written any. Raises SpecquantError where its node was another."""
        if (same := self._same(file)) is not None:
            theirs, mine = Lines(file, same, self.questions), self.lines(same)
            for name in OF_A_NODE:
                if same[name] != mine.parameters[name]:
                    raise SpecquantError(
                        f"{file} was measured with {name} {same[name]}, not {mine.parameters[name]} as "
                        f"{self.path.name}: choose another folder, or remove that file"
                    )
            theirs.read()
            for row in theirs.rows.values():
                mine.add(row)

    def forget_device(self) -> None:
        """Forget of which device answers are to be, where none came of it."""
        files = [self.path, *self.folder.glob(f"*/{self.path.name}")]
        if all(self._same(file) is None for file in files):
            forget_device(self.folder)

    def missing(self, scheme: str, questions: Sequence[Question], methods: Sequence[str]) -> list[Question]:
        """The questions that lack an answer by some method."""
        same = self._same(self.path)
        if same is None:
            return list(questions)
        lacking = {question.id for question, _ in self.lines(same).missing(scheme, questions, methods)}
        return [question for question in questions if question.id in lacking]

    def lines(self, same: dict[str, Any] | None = None) -> Lines:
        if self._lines is None:
            self._lines = Lines(self.path, self._same(self.path) or same or self.asked, self.questions)
        self._lines.read()
        return self._lines

    def _same(self, file: Path) -> dict[str, Any] | None:
        """What is asked for, with what the node of a file's answers was; None if the file holds none."""
        try:
            with open(file, encoding="utf-8") as lines:
                theirs = json.loads(lines.readline())["parameters"]
            return self.asked | {name: theirs[name] for name in OF_A_NODE}
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _asked(parameters: Parameters) -> dict[str, Any]:
    same = what_is_shared(parameters, choose_device(parameters.models.device), None)
    return {name: value for name, value in same.items() if name not in OF_A_NODE}


def _scheme(parameters: Parameters) -> str:
    models = parameters.models
    if models.scheme:
        return get_scheme(models.scheme).name
    path = locate(resolve_model(models.model))  # from the hub once, before many jobs ask for it
    return stored_scheme(load_config(path), path)


def _task(parameters: Parameters, scheme: str, questions: Sequence[Question], folder: Path) -> Task:
    ids = [question.id for question in questions]
    name = hashlib.sha256(json.dumps([scheme, parameters.methods, ids]).encode()).hexdigest()[:12]
    order = {"served_by": __name__, "parameters": asdict(parameters), "ids": ids, "folder": folder / name}
    environment = {**executors.OF_ITSELF, COMMAND: command_line() or ""}
    first_to_last = f"questions {ids[0]} to {ids[-1]}"
    text = json.dumps(order, default=str)
    return Task(f"{parameters.benchmark} {scheme} {first_to_last}", "specquant.measure", text, environment)


def _folder(task: Task) -> Path:
    return Path(json.loads(task.order)["folder"])


def serve(order: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """What a job does: answer the questions of an order."""
    parameters, folder = from_json(Parameters, order["parameters"]), Path(order["folder"])
    try:
        device = device_name(choose_device(parameters.models.device))
        require_card(os.environ.get(executors.CARD), device)
        claim_device(folder.parent, device, f"{parameters.benchmark}.csv")
        with full_memory_told():
            record_benchmark(parameters, folder, order["ids"])
    except SpecquantError as error:
        tell({"error": str(error)})
