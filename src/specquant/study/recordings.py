"""Every recorded table of a card by one command: `specquant record` runs those of data/recorded/commands.yaml."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import torch

from specquant import measure as package
from specquant.errors import SpecquantError
from specquant.files import project_root, read_text, resolve
from specquant.measure import executors, measure
from specquant.measure.executors import Slurm
from specquant.measure.measure import Measure
from specquant.tables.plain_yaml import plain_yaml
from specquant.tables.provenance import device_name
from specquant.tables.results import read_provenance, read_results
from specquant.tables.sources import kernels_sha256, measured_with_others, needs_kernels

COMMANDS = "data/recorded/commands.yaml"
CPU = "cpu"
INTERRUPTED = 130  # the exit status of a command that was interrupted, and keeps what had finished
TIMES_TO_STOP, TIME_TO_STOP_S = 4, 15  # how often a command is interrupted, and how long it may then take


def commands(card: str, path: str | Path = COMMANDS) -> list[str]:
    """What is run for a card, without `specquant bench`. What is behind --out is a folder below the card's (`placed`).

    Args:
        card: "cpu", or a GPU's name.
        path: a YAML file with lists of commands, `gpu` and `cpu`.

    Raises:
        SpecquantError: where the file holds something else.
    """
    path = resolve(path)
    lists = plain_yaml(read_text(path, "the commands to record by"), str(path))
    kind = CPU if card == CPU else "gpu"
    found = lists.get(kind) if isinstance(lists, dict) else None
    if not (isinstance(found, list) and found and all(isinstance(each, str) and each for each in found)):
        raise SpecquantError(f"{path} has no list {kind!r} of commands: give one")
    for command in found:
        try:
            words = shlex.split(command)
        except ValueError as error:  # a quotation that does not end
            raise SpecquantError(f"{path}: {command!r} of {kind!r} is no command ({error}): correct it") from None
        if not words:
            raise SpecquantError(f"{path}: a command of {kind!r} is blank: correct it")
    return found


def placed(command: str, folder: Path) -> tuple[list[str], Path]:
    """The words of a command, and where its tables go: below a card's folder, if its --out names a place there."""
    words, place = shlex.split(command), folder
    if "--out" in words:
        at = words.index("--out")
        place = folder.joinpath(*words[at + 1 : at + 2])
        words[at : at + 2] = []
    return ["bench", *words, "--out", str(place)], place


def require_card(card: str) -> None:
    """Raises SpecquantError where this machine has another card than the tables are of, so that none are mixed.

    Where jobs do the work, each looks at its own (`measure.serve`).
    """
    executor = executors.current()
    if isinstance(executor, Slurm):
        if (executor.options.device == CPU) != (card == CPU):
            has = "have no GPU: ask for one by gres" if card != CPU else "have a GPU: leave gres out"
            raise SpecquantError(f"the tables are to be of the card {card}, and the jobs {has} in Slurm's options")
        return
    measure.require_card(card, device_name("cuda") if torch.cuda.is_available() else None)


def known_before(folder: Path, every: Sequence[str], card: str) -> list[str]:
    """What is to be told of the tables that are there before any command runs.

    It is a line for each table of a GPU that was measured with other kernels than are here, and for each table that
    lacks what its commands write now.
    """
    lines = []
    places = {folder, *(placed(command, folder)[1] for command in every)}
    for table in sorted(table for place in places for table in place.glob("*.csv")):
        name = table.relative_to(folder)
        with suppress(SpecquantError):  # of a table or a JSON that is missing or broken the table's command tells
            record = read_provenance(table)
            needs = card != CPU and needs_kernels("cuda", record.get("clock"))
            if told := measured_with_others(record, kernels_sha256() if needs else None):
                lines.append(f"{name} is stale, so its commands will be refused: its rows were {told}")
            if table.stem not in written_now():
                continue
            (parameters, columns), rows = written_now()[table.stem], read_results(table)
            if lacks := _told("parameter", parameters, record["parameters"]):
                lines.append(f"{name} lacks {lacks}, so its commands may be refused")
            if lacks := _told("column", columns, rows.columns):
                lines.append(f"{name} lacks {lacks}, which only new rows will have")
    return lines


def _told(what: str, names: Iterable[str], recorded: Collection[str]) -> str:
    """Those of the names that are not recorded, in words; "" for none."""
    lacking = [name for name in names if name not in recorded]
    return f"the {what}{'s' * (len(lacking) > 1)} {', '.join(lacking)}" if lacking else ""


@cache
def written_now() -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Of each table that a question of `measure/` fills: which parameters its rows share, and its columns."""
    modules = [import_module(f"{package.__name__}.{module.name}") for module in iter_modules(package.__path__)]
    every = [each for module in modules for each in vars(module).values() if isinstance(each, Measure)]
    return {
        table.name: (each.parameters.shared, tuple(table.schema.columns)) for each in every for table in each.tables
    }


def record_card(
    card: str, out_dir: str | Path | None = None, minutes: float | None = None, tell: Callable[[str], None] = print
) -> list[str]:
    """Run every command of a card in turn. Each goes on with what its table lacks, so that all may be run again.

    It first tells which tables were measured with other kernels, and which lack what is written now, also on a machine
    that cannot record them.

    Args:
        card: "cpu", or a word of the GPU's name, such as h200. Their tables are in data/recorded/CARD.
        out_dir: where tables go (default: data/recorded/CARD).
        minutes: for how long; then the command that runs is interrupted. None: until all have ended.
        tell: takes a line about each command.

    Returns:
        The commands that failed. The others do not wait for them.

    Raises:
        SpecquantError: where this machine has another card, and for a time that is none.
    """
    if minutes is not None and not 0 < minutes < float("inf"):
        raise SpecquantError(f"the time is {minutes} minutes: give more than 0")
    if not card.strip(" .") or Path(card).name != card:
        raise SpecquantError(f"--card is {card!r}: give cpu, or a word of the GPU's name, such as h200")
    card = CPU if card.lower() == CPU else card
    out, every = resolve(out_dir or f"data/recorded/{card.lower()}"), commands(card)
    for line in known_before(out, every, card):
        tell(line)
    require_card(card)
    ends = None if minutes is None else time.monotonic() + 60 * minutes
    failed = []
    for number, command in enumerate(every, start=1):
        if ends is not None and time.monotonic() >= ends:
            tell(f"the time is over: {len(every) - number + 1} of {len(every)} commands are left")
            break
        tell(f"{number} of {len(every)}: specquant bench {command}")
        status = _run(placed(command, out)[0], card, ends)
        if status == INTERRUPTED:
            tell("  the time is over: it goes on from here when the same is asked for again")
        elif status:
            failed.append(command)
            tell(f"  it failed with status {status}; the next goes on")
    return failed


def _heed_interrupts() -> None:
    """Lets a process be interrupted, also one that nohup started, which passes on that interrupts are ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run(words: Sequence[str], card: str, ends: float | None) -> int:
    """The exit status of a command of this project, which is interrupted when the time is over."""
    command = [sys.executable, "-m", "specquant.cli", *words]
    process = subprocess.Popen(
        command, cwd=project_root(), env=os.environ | {executors.CARD: card}, preexec_fn=_heed_interrupts
    )
    try:
        return process.wait(None if ends is None else max(0, ends - time.monotonic()))
    except subprocess.TimeoutExpired:
        for _ in range(TIMES_TO_STOP):  # Python loses an interrupt now and then as it starts
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(TIME_TO_STOP_S)
                break
        return INTERRUPTED  # whatever it says: at its start Python ends otherwise
    finally:
        process.terminate()
