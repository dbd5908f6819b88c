"""What runs in a sandbox (see sandbox.py), by a bare interpreter: the standard library alone.

As "run" it runs the program and then answers calls of the program's functions. As "test" it runs the tests, whose calls
go there. Either is done by a child; the first process of the sandbox watches it. The exit status is the verdict.
"""

import ctypes
import errno
import json
import os
import platform
import resource
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from time import monotonic
from typing import Any, BinaryIO

REPORT_BYTES = 500
MESSAGE_BYTES = 2**24
MOST_FILES = 1000
WATCH_S = 0.01
PR_SET_DUMPABLE = 4
SYS_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}
KEYCTL_JOIN_SESSION_KEYRING = 1
MSG_INFO, SHM_INFO, SEM_INFO = 12, 14, 19
COLLECTIONS = {kind.__name__: kind for kind in (list, tuple, set, frozenset, dict, bytes)}
NUMBERS = {kind.__name__: kind for kind in (complex, Decimal, Fraction)}


def main(role: str) -> int:
    source, sink, words = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", 0), os.dup(2)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
    os.environ.clear()
    task = json.loads(source.readline())
    libc = _seal() if os.getpid() == 1 else None  # else there is no wall
    child = os.fork()
    if child == 0:
        os._exit(_work(role, task, source, sink, words))
    source.close()
    sink.close()
    word = _watch(libc, child, monotonic() + task["limits"]["wall_s"]) if libc else ""
    if word:
        os.write(words, f"{word}\n".encode())
    return 1 if word or os.waitpid(child, 0)[1] else 0


def _work(role: str, task: dict, source: BinaryIO, sink: BinaryIO, words: int) -> int:
    if role == "run":
        os.close(words)  # what it says goes through the tests
        _limit(task["limits"])
        return _run(task["source"], source, sink)
    _limit(task["limits"])
    word = _test(task["source"], source, sink)
    os.write(words, word.encode(errors="replace")[:REPORT_BYTES])
    return 1 if word else 0


def _seal() -> ctypes.CDLL:
    """Leave the caller's keys, and make this process one that its child cannot touch; returns the C library."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the first process gets no signal from within that it does not handle
    joined = libc.syscall(SYS_KEYCTL[platform.machine()], KEYCTL_JOIN_SESSION_KEYRING, None)
    if joined < 0 and ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM):  # where nobody has keys
        raise OSError(ctypes.get_errno(), "no keyring of its own")
    return libc


def _watch(libc: ctypes.CDLL, child: int, until: float) -> str:
    """Wait for the child's end; returns why it must not go on, if so. When this process ends, all in the sandbox do."""
    ended, numbers = os.pidfd_open(child), (ctypes.c_int * 64)()
    while True:
        over = select.select([ended], [], [], WATCH_S)[0]
        libc.shmctl(0, SHM_INFO, numbers)
        used = numbers[0]
        libc.msgctl(0, MSG_INFO, numbers)
        used += numbers[0]
        libc.semctl(0, 0, SEM_INFO, numbers)
        if used + numbers[7]:
            return "System V shared memory, queues and semaphores are refused"
        files = os.statvfs("/tmp")
        if files.f_files - files.f_ffree > MOST_FILES:
            return f"more than {MOST_FILES} files"
        if over:
            return ""
        if monotonic() > until:
            return "out of time"


def _limit(limits: dict) -> None:
    for name, most in (
        ("CPU", limits["cpu_s"]),
        ("AS", limits["memory_bytes"]),
        ("FSIZE", limits["disk_bytes"]),
        ("NPROC", limits["processes"] + 1),  # and the one that watches
        ("NOFILE", 24),
        ("MEMLOCK", 0),
        ("MSGQUEUE", 0),
        ("SIGPENDING", 64),
        ("CORE", 0),
    ):
        try:
            which = getattr(resource, f"RLIMIT_{name}")
            _, hard = resource.getrlimit(which)
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(which, (most, most))
        except (AttributeError, OSError, ValueError):
            if sys.platform == "linux":
                raise  # macOS lacks some


def _run(program: str, source: BinaryIO, sink: BinaryIO) -> int:
    """Run the program and answer calls, until no more come."""
    this = os.getpid()
    names: dict[str, Any] = {"__name__": "program"}

    def answer(what: Callable[[], Any]) -> bool:
        try:
            reply = {"value": _packed(what())}
        except BaseException as error:
            reply = {"error": _told(error)}
        if os.getpid() != this:
            os._exit(0)  # a copy that the program made of itself
        sink.write(json.dumps(reply).encode() + b"\n")
        return "value" in reply

    if not answer(lambda: exec(compile(program, "program.py", "exec"), names)):
        return 1
    for line in source:
        name, positional, named = _unpacked(json.loads(line))
        answer(lambda: names[name](*positional, **named))  # noqa: B023
    return 0


class ProgramError(Exception):
    """What the program raised, or why it said nothing: its own words."""


class _Program:
    """The program, as its tests see it."""

    def __init__(self, source: BinaryIO, sink: BinaryIO):
        self._source, self._sink = source, sink

    def _reply(self) -> Any:
        line = self._source.readline(MESSAGE_BYTES)
        if not line:
            raise ProgramError("died without a word")
        reply = json.loads(line)
        if "error" in reply:
            raise ProgramError(str(reply["error"]))
        return _unpacked(reply["value"])

    def __getattr__(self, name: str) -> Callable:
        def call(*positional: Any, **named: Any) -> Any:
            with suppress(BrokenPipeError):  # it died; its missing reply says so
                self._sink.write(json.dumps(_packed((name, positional, named))).encode() + b"\n")
            return self._reply()

        return call


def _test(tests: str, source: BinaryIO, sink: BinaryIO) -> str:
    """Run the tests, once the program has come to its end; returns why they fail, if they do."""
    program = _Program(source, sink)
    try:
        program._reply()
        exec(compile(tests, "tests.py", "exec"), {"__name__": "tests", "program": program})
    except BaseException as error:
        return _told(error)
    return ""


def _told(error: BaseException) -> str:
    try:
        return (str(error) if isinstance(error, ProgramError) else f"{type(error).__name__}: {error}")[:REPORT_BYTES]
    except BaseException:
        return "an exception without words"


def _packed(value: Any) -> Any:
    """JSON for a plain value; one of a subclass, as a Counter, becomes what it is made of. Raises TypeError for
    others."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {"dict": [_packed((key, item)) for key, item in dict.items(value)]}
    for name, kind in COLLECTIONS.items():
        if isinstance(value, kind):
            return {name: [_packed(item) for item in value]}
    for name, number in NUMBERS.items():
        if isinstance(value, number):
            return {name: str(value)}
    raise TypeError(f"a {type(value).__name__} is no plain value")


def _unpacked(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((name, content),) = value.items()
    if name in NUMBERS:
        return NUMBERS[name](content)
    return COLLECTIONS[name](_unpacked(item) for item in content)


if __name__ == "__main__":
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
    os._exit(main(sys.argv[1]))
