"""What all tests share: tests marked gpu need a GPU, and generated examples are the same in every run.

Triton kernels are tested on the GPU where there is one, else in Triton's interpreter: the `device` they run on.
Tests marked bits compare bits of sums: `make test-bits` runs them with the products of another processor.
"""

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec

import hypothesis
import pytest

# Set before torch loads. Small matrices gain nothing from a second thread, and where other programs use the cores,
# threads that wait for each other make the tests twenty times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from specquant.files import project_root

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton loads
    if find_spec("triton"):
        from tests.interpreter import fix_order_of_sums

        fix_order_of_sums()

# A slow machine is no failure.
hypothesis.settings.register_profile(
    "specquant", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("specquant")


# What changes a folder: where an event's arguments have each path, and the folder that a relative one is in.
CHANGES = {"os.mkdir": ((0, 2),), "os.remove": ((0, 1),), "os.rmdir": ((0, 1),), "os.rename": ((0, 2), (1, 3))}


def _keep_checkout(event: str, args: tuple) -> None:
    """Tests run side by side, and some read all files of a folder: one that writes there makes others fail."""
    if event == "open":
        if isinstance(args[0], int) or not args[2] & (os.O_WRONLY | os.O_RDWR):
            return
        paths = [_absolute(args[0])]
    elif event in CHANGES:
        paths = [_absolute(args[path], args[folder]) for path, folder in CHANGES[event]]
        if os.path.lexists(paths[0]) == (event == "os.mkdir"):  # then it changes nothing
            return
    else:
        return
    for path in paths:
        below = path.removeprefix(ROOT).split("/")
        if path.startswith(ROOT) and not any(part == "__pycache__" or part.startswith(".") for part in below):
            raise PermissionError(f"a test writes to {path}: give it a folder of its own")


def _absolute(path: str | bytes | os.PathLike, folder: int = -1) -> str:
    """folder: an open one that a relative path is in; -1 for the working directory. Only Linux tells which it is."""
    of = os.readlink(f"/proc/self/fd/{folder}") if folder != -1 and sys.platform == "linux" else ""
    return os.path.abspath(os.path.join(of, os.fsdecode(path)))


ROOT = f"{project_root()}/"
sys.addaudithook(_keep_checkout)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needing_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not needing_gpu:
        return
    if not torch.cuda.is_available():
        for item in needing_gpu:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="session")
def device() -> str:
    """Where Triton kernels run; without Triton (macOS) their tests are skipped."""
    pytest.importorskip("triton")
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def small_models(tmp_path_factory):
    """A directory of small random models, laid out as data/tiny is. Copy it before you change it."""
    from tests.family import write_family  # loads transformers

    return write_family(tmp_path_factory.mktemp("models"))


@pytest.fixture
def tokenizer(small_models):
    """The small models', to be changed at will."""
    from specquant.models.loading import load_tokenizer  # loads transformers

    return load_tokenizer(small_models / "target")


@pytest.fixture
def few_prompts(tmp_path):
    """A file of the first two shipped prompts."""
    first = (project_root() / "data/prompts/prompts.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:2]
    (tmp_path / "few.jsonl").write_text("".join(first), encoding="utf-8")
    return tmp_path / "few.jsonl"


@pytest.fixture(scope="session")
def preloaded_python():
    """See tests/preloaded.py."""
    with tempfile.TemporaryDirectory() as folder:  # a socket's path must be short
        command = [sys.executable, "-m", "tests.preloaded", folder]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout.readline() == "ready\n"
            yield f"{folder}/python"
            server.stdin.close()


@pytest.fixture
def preloaded(preloaded_python, monkeypatch):
    """Processes that the test or what it tests starts by `sys.executable` have loaded torch and transformers."""
    monkeypatch.setattr(sys, "executable", preloaded_python)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def captured(monkeypatch) -> list:
    """A stand-in for capturing without a GPU. It keeps what a graph has: a replay runs the same function again, on the
    same tensors, and writes to the same results. Gives the list of what was captured."""
    from specquant.models import graphs  # loads transformers

    made = []

    def capture(run, pool):
        results = run()

        def replay():
            for kept, new in zip(results, run(), strict=True):
                kept.copy_(new)

        made.append(run)
        return replay, results

    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    return made
