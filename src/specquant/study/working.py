"""The hidden folder of a notebook that a batch runs: what is unfinished, and what tells the batch where it is.

It is named after the batch, so that two batches at once share none. One that a killed batch left is removed by the next
on the same machine.
"""

import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from specquant.errors import SpecquantError
from specquant.files import write_file

JOBS = "jobs"  # the folder in it where commands tell what their jobs are doing
CELL = "cell.json"
OURS = re.compile(r"\..+\.running-(?P<machine>.+)-(?P<process>\d+)")
OLD_S = 3600.0  # of a hidden file: what is being written is younger


@contextmanager
def working_folder(executed: Path, name: str) -> Iterator[Path]:
    """A folder for what a notebook has not finished, until the end of the block. Raises SpecquantError without one."""
    folder = (executed / f".{name}.running-{_machine()}-{os.getpid()}").absolute()
    try:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / JOBS).mkdir(parents=True)
    except OSError as error:
        raise SpecquantError(f"cannot write to {executed} ({error.strerror}): choose another folder") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def note_cell(folder: Path, cell: int, cells: int) -> None:
    """Have the batch know in which cell of how many a notebook is."""
    with suppress(SpecquantError):
        write_file(folder / CELL, json.dumps([cell, cells]))


def read_cell(folder: Path) -> tuple[int, int]:
    """What was noted last; two zeros where nothing was."""
    try:
        cell, cells = json.loads((folder / CELL).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return 0, 0
    return int(cell), int(cells)


def remove_abandoned(executed: Path) -> None:
    """Remove what batches left that were killed: on this machine, for nobody sees whether those of others still run."""
    for path in executed.glob(".*"):
        with suppress(OSError):  # in the way of nobody
            if path.is_file():
                if time.time() - path.stat().st_mtime > OLD_S:
                    path.unlink()
            elif (of := OURS.fullmatch(path.name)) and of["machine"] == _machine() and not _runs(of["process"]):
                shutil.rmtree(path, ignore_errors=True)


def _machine() -> str:
    return re.sub(r"\W+", "_", platform.node()) or "machine"


def _runs(process: str) -> bool:
    """Whether a process of this machine is there. This one has only begun, so what bears its number is older."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return int(process) != os.getpid()
