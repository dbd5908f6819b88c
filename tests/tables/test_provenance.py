import json
from pathlib import Path

import pytest

from specquant.files import project_root
from specquant.tables import provenance as module
from specquant.tables.provenance import provenance, without_local_paths
from specquant.tables.sources import kernels_sha256


def test_it_holds_no_local_path():
    parameters = {
        "model_dir": str(project_root() / "data/tiny/target"),
        "others": [Path("/home/somebody/checkpoints/llama"), "~/private"],
        "nested": {"task": "code", "ratio": "1/2"},
    }
    record = provenance(parameters)
    assert record["parameters"] == {
        "model_dir": "data/tiny/target",
        "others": ["llama", "private"],
        "nested": {"task": "code", "ratio": "1/2"},
    }
    text = json.dumps(record)
    assert str(project_root()) not in text


def test_other_values_pass_unchanged():
    values = {"draft_sizes": [1, 2], "scheme": None, "relative": "data/tiny", "temperature": 0.5}
    assert without_local_paths(values) == values


def test_commit_and_changes(monkeypatch):
    answers = {"rev-parse": "0123abcd", "status": " M src/specquant/cli.py"}
    monkeypatch.setattr(module, "_output", lambda *command: answers[command[3]] if command[0] == "git" else None)
    record = provenance({})
    assert (record["commit"], record["uncommitted_changes"]) == ("0123abcd", True)
    answers["status"] = ""
    assert provenance({})["uncommitted_changes"] is False


def test_without_git_the_commit_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    record = provenance({})
    assert (record["commit"], record["uncommitted_changes"]) == (None, None)


def test_a_gpu_s_times_name_their_kernels(monkeypatch):
    monkeypatch.setattr(module, "device_name", lambda device: "a GPU")
    assert provenance({}, "cuda", clock="events")["kernels_sha256"] == kernels_sha256()
    for device, clock in (("cpu", "events"), ("cuda", None), ("cuda", "none")):
        assert "kernels_sha256" not in provenance({}, device, clock=clock)


@pytest.mark.parametrize("program", ["/a/bin/specquant", "specquant.exe", "/a/src/specquant/cli.py"])
def test_it_names_the_command_without_local_paths(monkeypatch, program):
    words = ["bench", "verify-cost", "--out=/home/somebody/results", "--model", "/home/somebody/my model"]
    monkeypatch.setattr("sys.argv", [program, *words])
    monkeypatch.delenv(module.COMMAND, raising=False)
    assert provenance({})["command"] == "specquant bench verify-cost --out=results --model 'my model'"
    monkeypatch.setenv(module.COMMAND, "specquant bench kernels")  # of the command that started this process
    assert provenance({})["command"] == "specquant bench kernels"


@pytest.mark.parametrize("program", ["/specquant/bin/pytest", "ipykernel_launcher.py", "specquant/measure/__main__.py"])
def test_elsewhere_there_is_no_command(monkeypatch, program):
    monkeypatch.setattr("sys.argv", [program, "tests"])
    monkeypatch.delenv(module.COMMAND, raising=False)
    assert provenance({})["command"] is None
