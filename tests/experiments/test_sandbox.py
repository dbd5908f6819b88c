"""Honest programs pass; hostile ones reach nothing and leave nothing. All limits here are small."""

import os
import socket
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

import pytest

from specquant.experiments import sandbox
from specquant.experiments.sandbox import MEBIBYTE, Limits, Outcome, run_program, wall

LIMITS = Limits(wall_s=10, cpu_s=5, memory_bytes=128 * MEBIBYTE, disk_bytes=MEBIBYTE, processes=4)
SHORT = Limits(wall_s=0.7, cpu_s=5, memory_bytes=128 * MEBIBYTE, disk_bytes=MEBIBYTE, processes=4)
WALLS = ("namespaces", "audit hook")


@pytest.fixture(params=WALLS)
def behind(request, monkeypatch, tmp_path):
    """Each wall; the sandbox's folder is below this test's, so that its processes are known by their command line."""
    if request.param == "namespaces" and wall() != "namespaces":
        pytest.skip("this machine permits no namespaces")
    (tmp_path / "sandboxes").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "sandboxes"))
    yield request.param
    assert not list((tmp_path / "sandboxes").iterdir())
    assert not survivors(tmp_path)


def survivors(tmp_path: Path) -> list[int]:
    """Processes of this test's sandboxes; one that is killed may take a moment to go."""
    for _ in range(20):
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it is gone
                if str(tmp_path).encode() in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
        if not found:
            break
        sleep(0.1)
    return found


def refused(program: str, behind: str, limits: Limits = LIMITS) -> str:
    outcome = run_program(program, limits, behind)
    assert not outcome.passed
    return outcome.reason


def test_a_program_passes_where_it_comes_to_its_end(behind):
    program = (
        "import collections, datetime, decimal, functools, hashlib, heapq, itertools, json, math, random, re, typing\n"
        "assert sorted([2, 1]) == [1, 2]\n"
        "open('a.txt', 'w').write('x'); assert open('a.txt').read() == 'x'\n"
        "import os; os.mkdir('b'); os.rename('a.txt', 'b/c'); assert os.listdir() == ['b']\n"
        "print('to nobody'); __import__('sys').stderr.write('to nobody')\n"
    )
    assert run_program(program, LIMITS, behind) == Outcome(True, "")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError: "),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("input()", "EOFError"),
        ("class E(Exception):\n    def __str__(self): raise self\nraise E", "an exception without words"),
        ("def f(): f()\nf()", "RecursionError"),
        ("import os; os._exit(0)", "died without a word"),
        ("print('x' * 10**6); raise ValueError('y' * 10**6)", "ValueError: yyy"),
        ("\0", "SyntaxError"),
    ],
)
def test_everything_else_fails_with_its_reason(behind, program, reason):
    assert refused(program, behind).startswith(reason)


def test_a_program_that_floods_its_report_is_cut_off(behind):
    assert len(refused("import os\nwhile True:\n    for fd in range(3, 9):\n        try: os.write(fd, b'x' * 65536)\n"
                       "        except OSError: pass", behind, SHORT)) <= 500  # fmt: skip


@pytest.mark.parametrize(
    "program",
    [
        "import time; time.sleep(60)",
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except Exception: pass\n"
        "while True: pass",
        "try:\n    while True: pass\nexcept BaseException:\n    while True: pass",
    ],
)
def test_an_endless_program_ends_within_two_seconds(behind, program):
    began = monotonic()
    assert refused(program, behind, SHORT) == "stopped after 0.7 s"
    assert monotonic() - began < 3  # on a machine that others use, too


def test_processor_time_is_limited(behind):
    limits = Limits(wall_s=60, cpu_s=1, memory_bytes=128 * MEBIBYTE)
    assert refused("while True: pass", behind, limits) == "died without a word"


def test_a_memory_hog_gets_none(behind):
    assert refused("x = bytearray(10**9)", behind).startswith("MemoryError")
    assert refused("x = []\nwhile True: x.append(bytes(10**6))", behind).startswith("MemoryError")


def test_files_are_limited(behind):
    assert (
        "File too large"
        in (
            reason := refused("with open('a', 'wb', 0) as f:\n    while True: assert f.write(bytes(65536)) > 0", behind)
        )
        or "No space left" in reason
    )
    if behind == "namespaces":
        many = "for i in range(99):\n    with open(f'{i}', 'wb', 0) as f: f.write(bytes(65536))"
        assert "No space left" in refused(many, behind)
        assert "No space left" in refused("for i in range(9999): open(f'{i}', 'w').close()", behind)


FORK_BOMBS = (
    "import os\nwhile True: os.fork()",
    "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    # Each child leaves the group and the session and lives on while its parent ends.
    "import os, time\nfor i in range(3):\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n"
    "            time.sleep(60)\n        os._exit(0)\n",
    "import threading\nwhile True: threading.Thread(target=threading.Event().wait).start()",
    "import subprocess, sys\nwhile True: subprocess.Popen([sys.executable, '-c', 'while True: pass'])",
    "import multiprocessing\nwhile True: multiprocessing.Process(target=input).start()",
)


@pytest.mark.parametrize("program", FORK_BOMBS)
def test_a_fork_bomb_is_small_and_leaves_nothing(behind, program):
    began = monotonic()
    run_program(program, SHORT, behind)  # the fixture looks for survivors
    assert monotonic() - began < 3


def test_while_a_fork_bomb_runs_it_has_few_processes(behind, tmp_path):
    most, done = 0, threading.Event()

    def watch():
        nonlocal most
        while not done.wait(0.05):
            processes = 0
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    processes += str(tmp_path).encode() in (process / "cmdline").read_bytes()
            most = max(most, processes)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run_program(FORK_BOMBS[1], SHORT, behind)
    done.set()
    watcher.join()
    assert most <= SHORT.processes + 1  # and the one that waits for them


def test_nothing_outside_is_written(behind, tmp_path):
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    for program in (
        f"open({str(precious)!r}, 'w')",
        f"open({str(tmp_path / 'new')!r}, 'x')",
        f"import os; os.remove({str(precious)!r})",
        f"import os; os.truncate({str(precious)!r}, 0)",
        f"import pathlib; pathlib.Path({str(precious)!r}).rename('here')",
        f"import os; os.open({str(precious)!r}, os.O_WRONLY | os.O_TRUNC)",
        f"import os; os.chmod({str(precious)!r}, 0)",
        f"import os; os.symlink({str(tmp_path)!r}, 'link'); open('link/new', 'w')",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
        f"import sqlite3; sqlite3.connect({str(tmp_path / 'new')!r}).execute('create table t (x)')",
        "open('/tmp/specquant-was-here', 'x')",
        "open('../specquant-was-here', 'x')",
    ):
        refused(program, behind)
    assert precious.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious.txt", "sandboxes"]
    assert not Path("/tmp/specquant-was-here").exists()


def test_the_environment_is_empty(behind, monkeypatch):
    monkeypatch.setenv("SPECQUANT_SECRET", "hunter2")
    program = (
        "import os, pathlib\n"
        "seen = [repr(dict(os.environ)).encode()]\n"
        "for file in pathlib.Path('/proc').glob('[0-9]*/environ'):\n"
        "    try: seen.append(file.read_bytes())\n"
        "    except OSError: pass\n"
        "assert b'hunter2' not in seen[0]\n"
    )
    if behind == "namespaces":
        program += "assert not any(b'hunter2' in text for text in seen) and len(seen) == 1\n"
    assert run_program(program, LIMITS, behind) == Outcome(True, "")


def test_there_is_no_network(behind):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        refused(f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)", behind)
        refused(f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}', timeout=1)", behind)
        with pytest.raises(TimeoutError):
            server.accept()


def test_other_processes_are_safe(behind):
    """This process would be gone, or another in its group."""
    for target in (-1, 0, os.getpid(), os.getppid()):
        run_program(f"import os; os.kill({target}, 9)", SHORT, behind)
        run_program(f"import os; os.killpg({abs(target)}, 9)", SHORT, behind)


def test_behind_namespaces_only_libraries_are_seen_and_root_is_no_root(behind):
    if behind == "audit hook":
        pytest.skip("the audit hook lets files be read")
    program = (
        "import os\n"
        "assert not os.path.exists('/etc') and not os.path.exists('/proc') and not os.listdir('.')\n"
        f"assert not os.path.exists({__file__!r})\n"
        "assert os.getuid() != 0 and os.getpid() == 1\n"
        "for forbidden in (lambda: os.setuid(0), lambda: os.chroot('.'), lambda: os.mkdir('/new')):\n"
        "    try: forbidden()\n"
        "    except OSError: continue\n"
        "    raise AssertionError\n"
    )
    assert run_program(program, LIMITS, behind) == Outcome(True, "")


def test_where_namespaces_are_not_permitted_the_audit_hook_stands_in(monkeypatch):
    monkeypatch.setattr(sandbox, "run_program", lambda program, behind: Outcome(False, "no sandbox: not permitted"))
    assert sandbox.wall.__wrapped__() == "audit hook"
