"""Processes that have loaded all before they begin are processes of their own."""

import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.usefixtures("preloaded")


def test_a_program_has_its_own_modules_environment_folder_and_files(tmp_path):
    program = (
        "import os, sys; print('torch' in sys.modules, os.environ['A'], os.getcwd(), sys.argv, input()); sys.exit(3)"
    )
    command = [sys.executable, "-c", program, "b"]
    done = subprocess.run(
        command, input="c\n", capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"A": "a"}
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, f"True a {tmp_path} ['-c', 'b'] c\n", "")
    done = subprocess.run([sys.executable, "-c", "1 / 0"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "ZeroDivisionError: division by zero")


def test_another_module_runs_in_the_real_interpreter():
    done = subprocess.run([sys.executable, "-m", "timeit", "-h"], capture_output=True, text=True)
    assert done.stdout.startswith("Tool for measuring execution time")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])  # background jobs of a shell ignore SIGINT
def test_signals_reach_it_and_are_its_status(tmp_path, sent):
    program = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(f'{{os.getpid()}}\\n'); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n")):
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(sent)
    assert process.wait(60) == -sent
    number = int((tmp_path / "pid").read_text())
    while True:  # who killed the program that asked does not wait for the other's end
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < until
        time.sleep(0.01)
