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

from specquant.benchmarks.benchmark import Question
from specquant.errors import SpecquantError, full_memory_told
from specquant.files import wait_until_seen, write_file
from specquant.measure import executors
from specquant.measure.answers import OF_A_NODE
from specquant.measure.executors import Slurm, Task
from specquant.measure.measure import raise_failures, require_card, watched
from specquant.measure.parameters import from_json
from specquant.measure.tasks import Parameters, record_benchmark, write_table
from specquant.models.config import load_config
from specquant.models.device import choose_device
from specquant.models.hub import locate
from specquant.models.loading import stored_scheme
from specquant.progress import tqdm
from specquant.quant import get_scheme
from specquant.tables.parts import claim_device, forget_device, joined_provenance
from specquant.tables.provenance import COMMAND, command_line, device_name
from specquant.tables.results import read_provenance

QUESTIONS_OF_A_JOB = 20


def record_by_jobs(parameters: Parameters, out_dir: str | Path, executor: Slurm) -> Path:
    """As `tasks.record_benchmark`, but by jobs: this process loads no model.

    Raises:
        SpecquantError: as there, and where a job failed; what others have answered is kept.
    """
    same = parameters.same(choose_device(parameters.models.device))
    lines = parameters.lines(out_dir, {name: value for name, value in same.items() if name not in OF_A_NODE})
    name, folder = lines.path.name, lines.path.with_suffix(".parts")
    lines.read()
    for file in sorted(folder.glob(f"*/{name}")):
        lines.take(file)
    if not lines.rows:
        forget_device(folder)  # no answer came of a job that had begun
    scheme = _scheme(parameters)
    missing = lines.missing(scheme, parameters.questions(), parameters.methods)
    lacking = [*{question.id: question for question, _ in missing}.values()]
    tasks = {
        _task(parameters, scheme, some, folder): some
        for some in (lacking[n : n + QUESTIONS_OF_A_JOB] for n in range(0, len(lacking), QUESTIONS_OF_A_JOB))
    }
    refused: list[str] = []
    with tqdm(total=len(lacking), desc=f"{parameters.benchmark}, {scheme}", unit="question") as bar:

        def heard(task: Task, told: dict[str, Any]) -> None:
            if "ended" in told:
                try:
                    lines.take(_folder(task) / name)
                except SpecquantError as error:  # such as of a node with another sandbox: the others go on
                    refused.append(f"{task.name}: {error}")
                bar.update(len(tasks[task]))

        failed = watched(executor, list(tasks), lines.path.with_suffix(".jobs"), bar, heard)
    raise_failures([*failed, *refused], "jobs")

    def unanswered() -> int:
        for task in tasks:
            lines.take(_folder(task) / name)
        return len(lines.missing(scheme, lacking, parameters.methods))

    wait_until_seen(unanswered, folder)
    path = write_table(lines)
    records = [read_provenance(file) for file in sorted(folder.glob(f"*/{path.name}"))]
    write_file(path.with_suffix(".json"), json.dumps(joined_provenance(records), indent=2) + "\n", by_several=True)
    return path


def _scheme(parameters: Parameters) -> str:
    models = parameters.models
    if models.scheme:
        return get_scheme(models.scheme).name
    path = locate(models.model)  # from the hub once, before many jobs ask for it
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
