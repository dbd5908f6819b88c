"""Running programs that a language model wrote, without trusting them.

Each program runs in a process of its own, with an empty environment, in an empty folder that vanishes with it, under
limits on processor time, wall-clock time, memory, files and processes. There are two walls:

* "namespaces", where Linux permits them (mount_setattr needs 5.12). No network; nothing of the file system but Python
  and the system's libraries, read-only, and the empty folder, in memory; no sight of other processes; no privilege,
  for root neither, who becomes a user without any. Whatever the program started ends with it, by the kernel.
* "audit hook", elsewhere (macOS, most containers). The interpreter itself refuses sockets, processes, ctypes, and
  writing outside the folder. This holds against what models write by mistake, not against an attack on the
  interpreter from within, and files can be read.

Behind both, memory is limited for each process (there may be `Limits.processes`), not for all together, and a kernel
bug is no wall. A program can find out how success is reported and claim it: what is measured is whether honest attempts
pass.

This file is run as a script by a bare interpreter, so it imports the standard library alone.
"""

import ctypes
import errno
import json
import os
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

MEBIBYTE = 2**20
REPORT_BYTES = 500


@dataclass(frozen=True)
class Limits:
    """What a program may use. memory_bytes: of address space for each process. disk_bytes: of all its files together,
    for a single file behind the audit hook."""

    wall_s: float = 10.0
    cpu_s: int = 10
    memory_bytes: int = 512 * MEBIBYTE
    disk_bytes: int = 16 * MEBIBYTE
    processes: int = 8


@dataclass(frozen=True)
class Outcome:
    """passed: the program ran to its end without an exception. reason: else why not, in a few words."""

    passed: bool
    reason: str


@cache
def wall() -> str:
    """The strongest wall that this machine permits: "namespaces" or "audit hook"."""
    probe = "import os, socket\nassert not os.path.exists('/etc')"
    return "namespaces" if run_program(probe, behind="namespaces").passed else "audit hook"


def run_program(program: str, limits: Limits | None = None, behind: str | None = None) -> Outcome:
    """Run Python source to its end, or to a limit. behind: a wall (default: the strongest)."""
    limits, behind = limits or Limits(), behind or wall()
    success = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="specquant-sandbox-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", __file__, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        late = threading.Event()

        def end() -> None:
            late.set()
            os.killpg(process.pid, signal.SIGKILL)  # not yet waited for, so the number is still its own

        timer = threading.Timer(limits.wall_s, end)
        timer.start()
        try:
            task = {"program": program, "success": success, "behind": behind, "limits": asdict(limits)}
            try:
                process.stdin.write(json.dumps(task).encode())
                process.stdin.close()
            except BrokenPipeError:
                pass  # it died; the missing report says so
            report = process.stdout.read(REPORT_BYTES).decode(errors="replace")
        finally:
            timer.cancel()
            timer.join()
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()
    if report == success:
        return Outcome(True, "")
    return Outcome(False, report or (f"stopped after {limits.wall_s:g} s" if late.is_set() else "died without a word"))


# What follows runs in the sandbox's own process.

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
SYS_MOUNT_SETATTR = 442  # the same on every architecture
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
CAPABILITY_VERSION = 0x20080522
SOME_USER = 61_184  # plus a process number below 1000: an id that no account has


def main(folder: str) -> None:
    task = json.load(sys.stdin)
    limits = Limits(**task["limits"])
    report = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    try:
        if task["behind"] == "namespaces":
            _enter_namespaces(folder, limits)
        _limit(limits)
        if task["behind"] == "audit hook":
            sys.addaudithook(_Refusals(os.path.realpath(folder)))
    except OSError as error:
        word = f"no sandbox: {error}"
    else:
        word = _run(task["program"], task["success"])
    os.write(report, word.encode(errors="replace")[:REPORT_BYTES])
    os._exit(0)


def _run(program: str, success: str) -> str:
    try:
        exec(compile(program, "program.py", "exec"), {"__name__": "program"})
    except BaseException as error:
        try:
            return f"{type(error).__name__}: {error}"
        except BaseException:
            return "an exception without words"
    return success


def _limit(limits: Limits) -> None:
    for which, most in (
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_FSIZE, limits.disk_bytes),
        (resource.RLIMIT_NPROC, limits.processes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(which)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(which, (most, most))
        except (OSError, ValueError):
            if sys.platform == "linux":
                raise  # macOS knows no limit of the address space


class _Refusals:
    """An audit hook that refuses all but computing, reading files, and writing below a folder."""

    EVENTS = ("socket.", "subprocess.", "ctypes.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system")
    EVENTS += ("os.kill", "os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate", "os.utime", "pty.", "signal.")
    # They reach processes, memory and files without asking.
    MODULES = ("ctypes", "_ctypes", "_posixsubprocess", "_multiprocessing", "_posixshmem", "_socket")
    MODULES += ("_sqlite3", "_dbm", "_gdbm", "_tkinter", "readline")
    PATHS = ("os.mkdir", "os.remove", "os.rename", "os.rmdir")

    def __init__(self, folder: str):
        self.inside = folder + os.sep
        for module in self.MODULES:
            sys.modules.pop(module, None)  # this file imported some

    def __call__(self, event: str, details: tuple) -> None:
        if event == "open":
            path, _, flags = details
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            refused = writes and (isinstance(path, int) or not self._inside(path))
        elif event in self.PATHS:
            refused = not all(
                self._inside(path) for path in details if not isinstance(path, int)
            )  # or a folder's number
        elif event == "import":
            refused = details[0].partition(".")[0] in self.MODULES
        else:
            refused = event.startswith(self.EVENTS)
        if refused:
            raise PermissionError(f"the sandbox refuses {event}")

    def _inside(self, path: str | bytes) -> bool:
        return os.path.realpath(os.fsdecode(path)).startswith(self.inside)


def _enter_namespaces(folder: str, limits: Limits) -> None:
    """Return in a child that is alone in its namespaces; this process waits for it and goes with it."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(function: str, *arguments: object) -> None:
        if getattr(libc, function)(*arguments) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"{function}: {os.strerror(code)}")

    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    user, group, root = os.getuid(), os.getgid(), os.getuid() == 0
    call(
        "unshare",
        CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | (0 if root else CLONE_NEWUSER),
    )
    if not root:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _change_root(call, libc, folder, limits)

    ready, go = os.pipe()
    child = os.fork()
    if child:
        os.close(ready)
        os.write(go, b"!")
        os.waitpid(child, 0)
        os._exit(0)
    os.close(go)
    if root:
        # A user of its own: for root no limit on processes would hold.
        some_user = SOME_USER + secrets.randbelow(1000)
        os.setgroups([])
        os.setresgid(some_user, some_user, some_user)
        os.setresuid(some_user, some_user, some_user)
    call("capset", (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)())
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # after the change of user, which clears it
    if os.read(ready, 1) != b"!":
        os._exit(0)  # the waiting process died before this one was bound to it
    os.close(ready)


def _change_root(call, libc, folder: str, limits: Limits) -> None:
    """Make a file system in memory with Python's and the system's libraries, read-only, and an empty folder to work
    in; then leave the old one."""
    call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    call("mount", b"none", folder.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, b"size=1m,mode=755")
    bound: list[str] = []
    libraries = {"/lib", "/lib64", "/usr/lib", "/usr/lib64", f"{sys.base_prefix}/lib", *sys.path}
    for path in sorted(path for path in libraries if os.path.isdir(path)):
        if any(path.startswith(f"{other}/") for other in bound):
            continue
        here = folder + path
        if os.path.islink(path):
            os.makedirs(os.path.dirname(here), exist_ok=True)
            os.symlink(os.readlink(path), here)
            continue
        os.makedirs(here, exist_ok=True)
        call("mount", path.encode(), here.encode(), None, MS_BIND | MS_REC, None)
        bound.append(path)
    os.mkdir(f"{folder}/work")
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
    if libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, folder.encode(), AT_RECURSIVE, attributes, ctypes.sizeof(attributes)):
        raise OSError(ctypes.get_errno() or errno.ENOSYS, "mount_setattr failed")
    work = f"size={limits.disk_bytes},nr_inodes=1000,mode=777".encode()
    call("mount", b"none", f"{folder}/work".encode(), b"tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, work)
    os.chdir(folder)
    call("pivot_root", b".", b".")
    call("umount2", b".", MNT_DETACH)
    os.chdir("/work")


if __name__ == "__main__":
    main(sys.argv[1])
