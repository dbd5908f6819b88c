"""Honest programs pass; hostile ones reach nothing and leave nothing. All limits here are small."""

import ctypes
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from types import SimpleNamespace

import pytest

from specquant.benchmarks import sandbox
from specquant.benchmarks.inside_sandbox import SYS_KEYCTL
from specquant.benchmarks.sandbox import MEBIBYTE, Limits, Outcome, run_program, wall, why_no_wall
from tests.benchmarks.hostile import HOSTILE

LIMITS = Limits(wall_s=10, cpu_s=5, memory_bytes=128 * MEBIBYTE, disk_bytes=MEBIBYTE, processes=4)
SHORT = Limits(wall_s=0.7, cpu_s=5, memory_bytes=128 * MEBIBYTE, disk_bytes=MEBIBYTE, processes=4)
PR_SET_CHILD_SUBREAPER = 36
KEYCTL = SYS_KEYCTL.get(platform.machine())
AS_ANOTHER = """
import json, sys
sys.path.insert(0, sys.argv[1])
import sandbox
task = json.load(sys.stdin)
assert sandbox.os.getuid() != 0
outcome = sandbox.run_program(task["program"], sandbox.Limits(**task["limits"]), task["tests"])
print(json.dumps([outcome.passed, outcome.reason]))
"""


def children() -> set[int]:
    """The processes below this one; behind subreaping also those whose parents have ended. Zombies do nothing."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it is gone
            state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(process.name)] = int(parent)
    found = {os.getpid()}
    while more := {process for process, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


@pytest.fixture(scope="module", autouse=True)
def subreaper():
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        yield
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    else:
        yield


@pytest.fixture
def walled(monkeypatch, tmp_path):
    """There is a wall; and after the test nothing is left."""
    if why_no_wall():
        pytest.skip(why_no_wall())
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    before = children()
    yield
    assert not list((tmp_path / "temporary").iterdir())
    assert not survivors(before)


def survivors(before: set[int]) -> set[int]:
    """New processes; one that is killed may take a moment to go."""
    for _ in range(20):
        left = children() - before
        if not left:
            break
        sleep(0.1)
    return left


def refused(program: str, limits: Limits = LIMITS) -> str:
    outcome = run_program(program, limits)
    assert not outcome.passed
    return outcome.reason


def test_a_program_passes_where_it_comes_to_its_end(walled):
    program = (
        "import collections, datetime, decimal, functools, hashlib, heapq, itertools, json, math, random, re, typing\n"
        "assert sorted([2, 1]) == [1, 2]\n"
        "open('a.txt', 'w').write('x'); assert open('a.txt').read() == 'x'\n"
        "import os; os.mkdir('b'); os.rename('a.txt', 'b/c'); assert os.listdir() == ['b']\n"
        "print('to nobody'); __import__('sys').stderr.write('to nobody')\n"
    )
    assert run_program(program, LIMITS) == Outcome(True, "")


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
        ("raise ValueError('\\ud800')", "ValueError: "),
    ],
)
def test_everything_else_fails_with_its_reason(walled, program, reason):
    assert refused(program).startswith(reason)


@pytest.mark.parametrize(
    "value",
    [
        "None",
        "float('inf')",
        "10**5000",
        "'\\ud800\\n'",
        "[(True, [1.5]), {3}, frozenset({b'\\0x'}), []]",
        "{(1, 2): {'a': None}}",
        "1 + 2j",
        "__import__('decimal').Decimal('1.50')",
        "__import__('fractions').Fraction(1, 3)",
        "__import__('collections').Counter('aab')",
    ],
)
def test_plain_values_go_to_the_program_and_back(walled, value):
    tests = f"value = {value}\nassert program.f(value) == value == program.f(x=value)\n"
    assert run_program("def f(x): return x", LIMITS, tests + "assert str(program.g(1)) == '1'") == Outcome(
        False, "KeyError: 'g'"
    )
    assert run_program("def f(x): return x", LIMITS, tests) == Outcome(True, "")


def test_tests_fail_by_their_own_words_or_the_programs(walled):
    program = "def f(x):\n    if x: raise ValueError('not that')\n    return x"
    assert run_program(program, LIMITS, "assert program.f(0) == 1, 'it is 0'").reason == "AssertionError: it is 0"
    assert run_program(program, LIMITS, "program.f(1)").reason == "ValueError: not that"
    assert run_program("f = [lambda: 0]", LIMITS, "program.f()").reason == "TypeError: 'list' object is not callable"
    assert run_program("f = lambda: f", LIMITS, "program.f()").reason == "TypeError: a function is no plain value"


def test_a_program_that_floods_its_report_is_cut_off(walled):
    assert len(refused("import os\nwhile True:\n    for fd in range(3, 9):\n        try: os.write(fd, b'x' * 65536)\n"
                       "        except OSError: pass", SHORT)) <= 500  # fmt: skip


@pytest.mark.parametrize(
    "program",
    [
        "import time; time.sleep(60)",
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except Exception: pass\n"
        "while True: pass",
        "try:\n    while True: pass\nexcept BaseException:\n    while True: pass",
    ],
)
def test_an_endless_program_ends_within_two_seconds(walled, program):
    began = monotonic()
    assert refused(program, SHORT) == "stopped after 0.7 s"
    assert monotonic() - began < 3  # on a machine that others use, too


def test_processor_time_is_limited(walled):
    limits = Limits(wall_s=60, cpu_s=1, memory_bytes=128 * MEBIBYTE)
    assert refused("while True: pass", limits) == "died without a word"


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
def test_a_fork_bomb_is_small_and_leaves_nothing(walled, program):
    began = monotonic()
    run_program(program, SHORT)  # the fixture looks for survivors
    assert monotonic() - began < 3


def test_nothing_outside_is_written(walled, tmp_path):
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
        "open('../specquant-was-here', 'x')",
    ):
        refused(program)
    run_program("open('/tmp/specquant-was-here', 'x')", LIMITS)  # its own folder has that name
    assert precious.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious.txt", "temporary"]
    assert not Path("/tmp/specquant-was-here").exists()


def test_other_processes_are_safe(walled):
    """This process would be gone, or another in its group."""
    for target in (-1, 0, os.getpid(), os.getppid()):
        run_program(f"import os; os.kill({target}, 9)", SHORT)
        run_program(f"import os; os.killpg({abs(target)}, 9)", SHORT)


def test_the_environment_is_empty(walled, monkeypatch):
    monkeypatch.setenv("SPECQUANT_SECRET", "hunter2")
    program = (
        "import os, pathlib\n"
        "assert not os.environ\n"
        "for file in pathlib.Path('/proc').glob('[0-9]*/environ'):\n"
        "    assert b'hunter2' not in file.read_bytes()\n"
    )
    assert run_program(program, LIMITS) == Outcome(True, "")


def test_there_is_no_network(walled):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        refused(f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)")
        refused(f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}', timeout=1)")
        with pytest.raises(TimeoutError):
            server.accept()


def test_while_a_fork_bomb_runs_it_has_few_processes(walled):
    def most_processes(program: str) -> int:
        counts, done, before = [], threading.Event(), children()

        def watch():
            while not done.wait(0.05):
                counts.append(len(children() - before))

        watcher = threading.Thread(target=watch)
        watcher.start()
        refused(program, SHORT)
        done.set()
        watcher.join()
        return max(counts)

    assert most_processes(FORK_BOMBS[1]) == most_processes("while True: pass") + SHORT.processes - 1


@pytest.fixture(scope="module")
def world():
    """What hostile programs are after: files and a folder that all may write, servers, a process, a key."""
    with tempfile.TemporaryDirectory(prefix="specquant-test-") as folder, socket.socket(socket.AF_UNIX) as unix:
        os.chmod(folder, 0o777)
        precious = Path(folder, "precious")
        precious.write_text("precious")
        precious.chmod(0o666)
        name = f"specquant-test-{os.getpid()}"
        server = socket.create_server(("127.0.0.1", 0))
        victim = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        key = -1
        if sys.platform == "linux":
            unix.bind(f"\0{name}")
            unix.listen()
            key = ctypes.CDLL(None).syscall(KEYCTL - 2, b"user", name.encode(), b"secret", 6, -3)  # add_key
        words = {"PRECIOUS": precious, "FOLDER": folder, "PORT": server.getsockname()[1], "VICTIM": victim.pid}
        words |= {"NAME": name, "KEYCTL": KEYCTL, "KEY": name}

        def fill(program: str) -> str:
            return re.sub("|".join(words), lambda found: str(words[found[0]]), program)

        yield SimpleNamespace(
            folder=Path(folder), precious=precious, victim=victim, servers=(server, unix), fill=fill, key=key
        )
        server.close()
        victim.communicate()


def unharmed(world) -> bool:
    for server in world.servers:
        server.setblocking(False)
        with suppress(BlockingIOError):
            server.accept()
            return False
    return world.precious.read_text() == "precious" and len(list(world.folder.iterdir())) == 1


def as_another(program: str, limits: Limits, tests: str) -> Outcome:
    """Run a program as a user who sees the whole machine, but may not do more than others. Root's home, where Python
    and this code may be, is replaced by one that shows them."""
    code = str(Path(sandbox.__file__).parent)
    needed = [os.path.realpath(sys.base_prefix), sandbox._python(), code]
    closed = {folder for place in needed for folder in Path(place).parents if not folder.stat().st_mode & 1}
    topmost = sorted(str(folder) for folder in closed if not closed.intersection(folder.parents))
    hidden = [word for folder in topmost for word in ("--tmpfs", folder)]
    view = [
        sandbox.shutil.which("bwrap"),
        "--die-with-parent",
        "--dev-bind",
        "/",
        "/",
        *hidden,
        *sandbox._shown(needed),
    ]
    user = ["--", "setpriv", "--reuid=61000", "--regid=61000", "--clear-groups", "--"]
    done = subprocess.run(
        [*view, *user, sandbox._python(), "-I", "-S", "-B", "-c", AS_ANOTHER, code],
        input=json.dumps({"program": program, "tests": tests, "limits": vars(limits)}),
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    return Outcome(*json.loads(done.stdout))


@pytest.mark.parametrize("user", ["as root", "as another user"])
@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.name)
def test_hostile_programs_are_contained(walled, world, hostile, user, monkeypatch):
    if user == "as root" and os.getuid() != 0:
        pytest.skip("these tests do not run as root")
    monkeypatch.setenv("SECRET", "hunter2")
    with open(world.precious) as inherited:
        os.set_inheritable(inherited.fileno(), True)
        began = monotonic()
        run = as_another if user == "as another user" and os.getuid() == 0 else run_program
        outcome = run(world.fill(hostile.program), SHORT, hostile.tests)
    assert monotonic() - began < 5
    if hostile.fails:
        assert not outcome.passed
        assert re.match(hostile.fails, outcome.reason), outcome.reason
    assert unharmed(world)
    assert world.victim.poll() is None


@pytest.mark.parametrize("hostile", [hostile for hostile in HOSTILE if hostile.free], ids=lambda hostile: hostile.name)
def test_without_the_wall_they_reach_what_they_want(world, hostile, monkeypatch):
    """So what they want is there."""
    if sys.platform != "linux":
        pytest.skip("this is about Linux")
    if "KEY'" in hostile.program and world.key < 0:
        pytest.skip("the kernel or a container refuses keys to all")
    monkeypatch.setattr(sandbox, "wall", lambda: None)
    assert run_program(world.fill(hostile.program), LIMITS, hostile.tests, unsafe=True) == Outcome(True, "")
    for server in world.servers:
        server.setblocking(False)
        with suppress(BlockingIOError):
            server.accept()


def test_the_documentation_names_every_hostile_program_and_what_holds_it():
    text = Path(__file__).parents[2].joinpath("docs/sandbox.md").read_text()
    rows = re.findall(r"^\| (.+) \| (.+) \|$", text, re.MULTILINE)
    assert [row for row in rows if row in {(h.name, h.held_by) for h in HOSTILE}] == [
        (hostile.name, hostile.held_by) for hostile in HOSTILE
    ]
    assert len(HOSTILE) >= 40


def test_behind_the_wall_only_libraries_are_seen_and_root_is_no_root(walled):
    program = (
        "import os\n"
        "assert os.listdir('/etc') in ([], ['ld.so.cache']) and not os.path.exists('/proc') and not os.listdir('.')\n"
        "assert not os.path.exists('/usr/bin/env') and not os.path.exists('/home') and not os.path.exists('/var')\n"
        f"assert not os.path.exists({__file__!r})\n"
        "assert os.getuid() != 0 and os.getpid() == 2 and not os.environ\n"
        "for forbidden in (lambda: os.setuid(0), lambda: os.chroot('.'), lambda: os.mkdir('/new')):\n"
        "    try: forbidden()\n"
        "    except OSError: continue\n"
        "    raise AssertionError\n"
    )
    assert run_program(program, LIMITS) == Outcome(True, "")


CALLER = """
import sys
from specquant.benchmarks import sandbox
if sys.argv[1] == "unsafe":
    sandbox.wall = lambda: None
print(flush=True)
sandbox.run_program("while True: pass", sandbox.Limits(wall_s=60, cpu_s=5), unsafe=sys.argv[1] == "unsafe")
"""


def killed_caller(folder: Path, how: str) -> int:
    """Kill a process while it runs a program; returns its number."""
    environment, before = os.environ | {"TMPDIR": str(folder)}, children()
    with subprocess.Popen([sys.executable, "-c", CALLER, how], stdout=subprocess.PIPE, env=environment) as caller:
        caller.stdout.readline()
        for _ in range(100):
            if len(children() - before) > (4 if how == "unsafe" else 6):  # the caller and those below it
                break
            sleep(0.05)
        sleep(0.2)
        caller.send_signal(signal.SIGKILL)
    return caller.pid


def test_a_program_ends_with_its_killed_caller_and_leaves_no_folder(walled, tmp_path):
    killed_caller(tmp_path / "temporary", "walled")  # the fixture looks for both


def test_what_a_killed_caller_left_is_removed_by_the_next_run_and_nothing_else(tmp_path, monkeypatch):
    if sys.platform != "linux":
        pytest.skip("the program of a killed caller goes on for its 5 s")
    before = children()
    killed = killed_caller(tmp_path, "unsafe")
    for process in children() - before:
        os.kill(process, signal.SIGKILL)  # nothing else ends them without a wall
    kept = {f"{sandbox.FOLDER}{os.getpid()}-x", f"{sandbox.FOLDER}mine-x", f"another-{killed}-x"}
    for name in kept:
        (tmp_path / name).mkdir()
    assert any(path.name.startswith(f"{sandbox.FOLDER}{killed}-") for path in tmp_path.iterdir())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sandbox, "wall", lambda: None)
    sandbox._remove_left_folders.cache_clear()
    run_program("", LIMITS, unsafe=True)
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_without_bubblewrap_nothing_runs_but_by_choice(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    monkeypatch.setattr(sandbox, "why_no_wall", why_no_wall.__wrapped__)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get install bubblewrap" in sandbox.why_no_wall()
    assert wall() is None
    with pytest.raises(FileNotFoundError):
        run_program(f"open({str(tmp_path / 'ran')!r}, 'w')", LIMITS)
    assert not (tmp_path / "ran").exists()
    assert run_program(f"open({str(tmp_path / 'ran')!r}, 'w')", LIMITS, unsafe=True) == Outcome(True, "")
    assert (tmp_path / "ran").exists()


def test_a_bubblewrap_that_cannot_make_namespaces_is_no_wall(monkeypatch, tmp_path):
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert why_no_wall.__wrapped__() == (
        "bubblewrap, which must be 0.8 or newer, fails here (bwrap: No permissions to create new namespace)"
    )


def test_where_systemd_runs_memory_is_limited_for_all_together(walled):
    if not sandbox._scope(LIMITS):
        pytest.skip("systemd does not run here, or not for this user")
    program = "import os\nkept = []\nfor i in range(12):\n    kept.append(os.memfd_create('x'))\n"
    program += "    assert os.write(kept[-1], bytes(2**24)) == 2**24\n"
    limits = Limits(wall_s=10, memory_bytes=64 * MEBIBYTE, disk_bytes=16 * MEBIBYTE)
    assert not run_program(program, limits).passed
