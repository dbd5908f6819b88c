"""What a result rests on: recorded as one JSON beside each table, so that a number can be traced and measured again."""

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from specquant.files import project_root
from specquant.tables.sources import FIELD, kernels_sha256, needs_kernels

_revisions: dict[str, str] = {}  # of models taken from the hub by this process: name -> commit
_tuned: dict[str, list[int]] = {}  # configurations of kernels by this user, not by the project: name -> numbers
COMMAND = "SPECQUANT_COMMAND"  # how a process that a command starts knows which one
# Where jobs do the work, and on which kind of device: cuda or cpu. This machine then need not have it.
DEVICE_OF_JOBS = "SPECQUANT_DEVICE_OF_JOBS"
LIBRARIES = ("specquant", "torch", "triton", "transformers", "tokenizers", "numpy", "pandas", "matplotlib", "seaborn")


def note_revision(name: str, commit: str) -> None:
    """Have what this process records from now on say which commit of a hub's model it used."""
    _revisions[name] = commit


def note_configuration(name: str, numbers: list[int]) -> None:
    """Have what this process records from now on say that a kernel ran as this user had tuned it (`specquant tune`)."""
    _tuned[name] = numbers


def used_revisions() -> dict[str, str]:
    """The commits of the hub's models that this process used, by name."""
    return dict(_revisions)


def provenance(
    parameters: Mapping[str, Any], device: str = "cpu", repeats: int | None = None, clock: str | None = None
) -> dict[str, Any]:
    """Everything that the JSON beside a table says; it holds no local path.

    `device` is where the measurement ran, as torch names it ("cpu", "cuda", "cuda:1"). `repeats` is how often each row
    was measured and `clock` what measured it, such as "time.perf_counter, median"; None where a table holds no time.
    `command` is that of the command line; None in a notebook. `kernels_sha256` is there for a GPU's times
    (`tables.sources`), `hub_revisions` if models were taken from the hub: name -> commit, `tuned_configurations` (name
    -> numbers) if kernels ran as this user had tuned them, and `node` if it was a job of Slurm.
    """
    commit, dirty = _commit()
    record = {
        "command": command_line(),
        "commit": commit,
        "uncommitted_changes": dirty,
        **({FIELD: kernels_sha256()} if needs_kernels(str(device), clock) else {}),
        "parameters": without_local_paths(dict(parameters)),
        "device": device_name(device),
        "driver": _driver() if str(device).startswith("cuda") else None,
        "platform": platform.platform(),
        "versions": {"python": platform.python_version(), **_versions()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "repeats": repeats,
        "clock": clock,
    }
    record |= node_of_job()
    if _tuned:
        record["tuned_configurations"] = dict(_tuned)
    return record | ({"hub_revisions": revisions} if (revisions := used_revisions()) else {})


def node_of_job() -> dict[str, str]:
    """`node`: the name of the node on which this process is a job of Slurm; nothing where it is none."""
    node = os.environ.get("SLURMD_NODENAME")
    return {"node": node} if node else {}


def command_line() -> str | None:
    """The command of this project that runs, or that started this process, without local paths; None where none did."""
    if handed_on := os.environ.get(COMMAND):
        return handed_on
    if not re.search(r"(^|[/\\])specquant(\.exe|[/\\](cli|__main__)\b.*)?$", sys.argv[0]):
        return None
    told = []
    for word in sys.argv[1:]:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        told.append(f"{option}{equals}{without_local_paths(value)}")
    return shlex.join(["specquant", *told])


def device_name(device: str = "cpu") -> str:
    """What people call the device: the GPU's name, or the processor's model and how many threads torch uses on it."""
    import torch

    if str(device).startswith("cuda"):
        if os.environ.get(DEVICE_OF_JOBS) and not torch.cuda.is_available():
            return "the GPU of a job"  # which knows its name
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def without_local_paths(value: Any) -> Any:
    """The value with each absolute path made relative to the project root or, if elsewhere, cut to its name."""
    if isinstance(value, Mapping):
        return {str(key): without_local_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_local_paths(item) for item in value]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str) and os.path.isabs(os.path.expanduser(value)):
        path, root = Path(value).expanduser(), project_root()
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    return value


def _commit() -> tuple[str | None, bool | None]:
    """The commit of the clone and whether files differ from it; (None, None) where there is no git or no clone.

    A copy of the clone without git takes both from the variable SPECQUANT_COMMIT: a commit, and "+" behind it where
    files differ.
    """
    if carried := os.environ.get("SPECQUANT_COMMIT"):
        return carried.removesuffix("+"), carried.endswith("+")
    head = _output("git", "-C", str(project_root()), "rev-parse", "HEAD")
    changes = _output("git", "-C", str(project_root()), "status", "--porcelain")
    return head, None if head is None or changes is None else bool(changes)


def _driver() -> str | None:
    printed = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return printed.splitlines()[0] if printed else None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        if names:
            return names[0]
    return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue  # no triton on macOS
    return found


def _output(*command: str) -> str | None:
    """What a command prints, or None where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
