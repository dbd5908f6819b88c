"""Processes that have loaded all before they begin: torch and transformers take a fresh interpreter four seconds.

One process loads them, and forks for whoever asks: `python -m tests.preloaded FOLDER`. It leaves in FOLDER a `python`
for tests to take as `sys.executable`. What begins with that is still a process of its own, with its own environment,
folder, files, signals and status; but its process id is that of the small program which asked for it and waits for its
end. A program or module that is none of `TAKEN` runs in the real interpreter.
"""

import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

LOADED = (
    "specquant.measure.tasks",
    "specquant.study.batch",
    "specquant.study.__main__",
    "submitit.core.submission",
    "tests.measure.sleeping",
)
TAKEN = ("specquant.measure", "specquant.study", "specquant.cli", "submitit.core._submit")

# Without site-packages: it starts in some 30 ms.
ASKING = f"""
import json, os, signal, socket, sys

_, folder, real, *words = sys.argv
asked = [word for word in words if word != "-u"]
if asked[0] != "-c" and asked[:2] not in [["-m", name] for name in {TAKEN}]:
    os.execv(real, [real, *words])
server = socket.socket(socket.AF_UNIX)
server.connect(folder + "/asked")
socket.send_fds(server, [b"!"], [0, 1, 2])
server.sendall(json.dumps([asked, dict(os.environ), os.getcwd()]).encode() + b"\\n")
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2):
    signal.signal(number, lambda number, _: server.send(bytes([number])))
status = int(server.recv(9) or 1)
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


def serve(folder: Path) -> list[str]:
    """Fork for whoever asks, until standard input ends. In each process that was asked for, return what it runs."""
    (folder / "asking.py").write_text(ASKING)
    python = folder / "python"
    real = sys.executable
    python.write_text(f'#!/bin/sh\nexec "{real}" -IS "{folder}/asking.py" "{folder}" "{real}" "$@"\n')
    python.chmod(0o755)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that attend
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "asked"))
        listening.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([sys.stdin, listening], [], [])[0]:
            connection, _ = listening.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                return _asked(connection, python)
            connection.close()
    sys.exit()


def _asked(connection: socket.socket, python: Path) -> list[str]:
    """Begin the process that was asked for; this one attends to it."""
    _, handed, _, _ = socket.recv_fds(connection, 1, 3)
    asked, environment, folder = json.loads(connection.makefile().readline())
    if process := os.fork():
        _attend(connection, process)
    connection.close()
    for number, file in enumerate(handed):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = ["", *environment.get("PYTHONPATH", "").split(os.pathsep)]
    sys.executable = str(python)
    return asked


def _attend(connection: socket.socket, process: int) -> None:
    """Hand on the signals that come for a process, until it ends or whoever asked for it does; then end."""
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            with suppress(OSError):
                connection.send(str(os.waitstatus_to_exitcode(status)).encode())
            os._exit(0)
        if select.select([connection], [], [], 0.01)[0]:
            told = connection.recv(1)
            os.kill(process, told[0] if told else signal.SIGKILL)
            if not told:
                os._exit(0)


if __name__ == "__main__":
    for name in LOADED:
        with suppress(ImportError):  # submitit may not be there
            import_module(name)
    gc.freeze()
    kind, what, *rest = serve(Path(sys.argv[1]))
    sys.argv = [kind, *rest]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
