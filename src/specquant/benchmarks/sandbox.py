"""Running programs that a language model wrote, without trusting them.

The wall is bubblewrap. Each program is alone in new namespaces with no network, no file but Python and the system's
libraries, no environment, no privilege and no way to new namespaces, under limits on time, memory, files and processes.
For root, a user of its own without any privilege runs it. docs/sandbox.md says what holds what, and what nothing holds.

The tests of a program run apart from it, in a second sandbox. The program answers their calls with plain values. So
there is nothing in its process by which it could claim to have passed.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from time import monotonic

MEBIBYTE = 2**20
REPORT_BYTES = 500
INSIDE = Path(__file__).with_name("inside_sandbox.py")
FOLDER = "specquant-sandbox-"  # and behind it the number of the process that made it
SOME_USER = 61_184  # plus a number below 1000: an id that no account has
OVERHEAD_BYTES = 64 * MEBIBYTE  # of bubblewrap and the interpreter that watches


@dataclass(frozen=True)
class Limits:
    """What a program may use. memory_bytes: of address space for each process; where systemd runs, also of memory for
    all together. disk_bytes: of all its files together. processes: and threads, all together."""

    wall_s: float = 10.0
    cpu_s: int = 10
    memory_bytes: int = 512 * MEBIBYTE
    disk_bytes: int = MEBIBYTE
    processes: int = 4


@dataclass(frozen=True)
class Outcome:
    """passed: the program and its tests ran to their ends without an exception. reason: else why not, in a few
    words."""

    passed: bool
    reason: str


def wall() -> str | None:
    """What generated programs run behind on this machine: "bubblewrap", or None where they cannot be run safely."""
    return None if why_no_wall() else "bubblewrap"


@cache
def why_no_wall() -> str:
    """Why there is no wall on this machine, as a clause; empty where there is one. It is tried once."""
    if not shutil.which("bwrap"):
        return "bubblewrap is missing here (on Debian and Ubuntu: apt-get install bubblewrap)"
    outcome = run_program("import os\nassert not os.path.exists('/proc')")
    return "" if outcome.passed else f"bubblewrap, which must be 0.8 or newer, fails here ({outcome.reason})"


def run_program(program: str, limits: Limits | None = None, tests: str = "", unsafe: bool = False) -> Outcome:
    """Run Python source to its end, or to a limit; then its tests.

    tests: source that calls the program's functions as `program.NAME(...)`, with plain values: numbers, texts, and
    lists, tuples, sets and dictionaries of them. unsafe: run without a wall where there is none. Raises
    FileNotFoundError where bubblewrap is missing, and this was not asked for.
    """
    limits = limits or Limits()
    until = monotonic() + limits.wall_s
    _remove_left_folders()
    with ExitStack() as stack:
        folder, before = None, []
        if unsafe and not wall():
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{FOLDER}{os.getpid()}-"))
        else:
            before = [*_scope(limits), *_wall(limits)]
        calls, results, words = (
            tuple(stack.enter_context(open(end, mode, 0)) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
            for _ in range(3)
        )

        def start(role: str, source: str, listens: tuple, speaks: tuple) -> subprocess.Popen:
            process = subprocess.Popen(
                [*before, _python(), "-I", "-S", "-B", "-c", INSIDE.read_text(), role, str(os.getpid())],
                stdin=listens[0],
                stdout=speaks[1],
                stderr=words[1],
                cwd=folder,
                env=_bus() if before else {},
                start_new_session=True,
            )
            stack.callback(_end, process)
            listens[0].close()  # so that a write to a process that died fails
            with suppress(BrokenPipeError):
                listens[1].write(json.dumps({"source": source, "limits": asdict(limits)}).encode() + b"\n")
            return process

        processes = (start("test", tests, results, calls), start("run", program, calls, results))
        for pipe in (calls, results, words):
            pipe[1].close()
        try:
            passed = all(process.wait(max(0.0, until - monotonic())) == 0 for process in processes)
            late = False
        except subprocess.TimeoutExpired:
            passed, late = False, True
        for process in processes:
            _end(process)
        said = words[0].read()[:REPORT_BYTES].decode(errors="replace").partition("\n")[0]  # to the last one's end
    if late:
        said = f"stopped after {limits.wall_s:g} s"
    return Outcome(passed, "" if passed else said or "died without a word")


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@cache
def _remove_left_folders() -> None:
    """Remove what killed runs without a wall left in the temporary directory; behind the wall there is no folder."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER}*-*"):
        owner = folder.name.removeprefix(FOLDER).partition("-")[0]
        try:
            ours = owner.isdecimal() and folder.lstat().st_uid == os.getuid()
            if ours:
                os.kill(int(owner), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # it is gone, or its owner is another user's


def _python() -> str:
    """The interpreter itself, behind every virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _bwrap() -> str:
    if found := shutil.which("bwrap"):
        return found
    raise FileNotFoundError("bubblewrap is missing")


def _shown(places: list[str]) -> list[str]:
    """Options of bubblewrap that show these places, read-only, in folders that all may enter."""
    folders = sorted({str(folder) for place in places for folder in Path(place).parents} - {"/"})
    options = [word for folder in folders for word in ("--dir", folder)]
    return options + [word for place in places for word in ("--ro-bind-try", place, place)]


def _wall(limits: Limits) -> list[str]:
    """The command before a command that puts it behind the wall."""
    prefix = os.path.realpath(sys.base_prefix)
    places = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache"]
    places += [f"{prefix}/lib", f"{prefix}/lib64", _python()]
    command = [_bwrap(), "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"]
    command += ["--as-pid-1", "--clearenv", "--cap-drop", "ALL", "--hostname", "sandbox", *_shown(places)]
    command += ["--dev", "/dev", "--remount-ro", "/dev", "--size", str(limits.disk_bytes), "--tmpfs", "/tmp"]
    command += ["--remount-ro", "/", "--chdir", "/tmp", "--"]
    return [*as_some_user(places), *command] if os.getuid() == 0 else command


def as_some_user(places: list[str]) -> list[str]:
    """The command before a command that makes root a user without privilege, who sees these places and what the wall
    is made of: no limit on processes would hold for root, and no such user enters root's home, where Python may be."""
    user = SOME_USER + secrets.randbelow(1000)
    # The first process of the outer namespace takes the others with it. Without it the death of a parent would not
    # reach them: its signal, root's without privilege, is not allowed to another user's process.
    command = [_bwrap(), "--unshare-pid", "--die-with-parent", *_shown([*places, "/usr"])]
    command += ["--dev-bind", "/dev", "/dev", "--proc", "/proc", "--dir", "/tmp", "--"]
    return [*command, "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--"]


def _scope(limits: Limits) -> list[str]:
    """Where systemd runs, the command before a command that limits its memory, also what no process maps."""
    most = limits.memory_bytes + limits.disk_bytes + OVERHEAD_BYTES
    command = ["systemd-run", "--scope", "--quiet", "--collect", "--no-ask-password"]
    command += [] if os.getuid() == 0 else ["--user"]
    command += ["-p", f"MemoryMax={most}", "-p", "MemorySwapMax=0", "--"]
    return command if _works((*command, "true")) else []


@cache
def _works(command: tuple[str, ...]) -> bool:
    if not Path("/run/systemd/system").exists():
        return False
    try:
        return subprocess.run(command, env=_bus(), capture_output=True, timeout=5).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _bus() -> dict[str, str]:
    """What systemd-run needs of the environment; bubblewrap clears it."""
    return {name: os.environ[name] for name in ("DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR") if name in os.environ}
