"""Units that a table lacks are measured, each process's in an interpreter of its own."""

import sys

import pytest
import torch

from specquant.errors import SpecquantError
from specquant.measure import adaptive, planted, replay, rounds, settling, verify_cost
from specquant.measure import measure as engine
from specquant.measure.measure import record
from specquant.measure.verify_cost import MEASURE, Parameters
from specquant.models import synthetic
from specquant.study import read_provenance, read_results
from specquant.tables import provenance


def parameters(small_models, **options) -> Parameters:
    options = {"draft_sizes": (1, 2), "contexts": (8,), "repeats": 2, "warm_up_ms": 0.0, "device": "cpu"} | options
    return Parameters(str(small_models / "target"), ("fp16",), weights="synthetic", **options)


def test_each_process_is_a_fresh_interpreter_and_the_table_holds_all(small_models, tmp_path):
    path = record(MEASURE, parameters(small_models, processes=2, blocks=1), tmp_path)
    rows = read_results(path)
    assert rows.process.tolist() == [0, 0, 1, 1]
    assert rows.draft_size.tolist() == [1, 2, 1, 2]
    assert (rows.time_ms > 0).all()
    provenance = read_provenance(path)
    assert provenance["parameters"]["repeats"] == 2
    assert provenance["clock"] == MEASURE.clock


def test_a_gpu_s_table_is_not_gone_on_with_by_other_kernels(small_models, tmp_path, in_process, monkeypatch):
    for module in (engine, provenance):
        monkeypatch.setattr(module, "needs_kernels", lambda device, clock: clock == MEASURE.clock)
        monkeypatch.setattr(module, "kernels_sha256", lambda: "first")
    path = record(MEASURE, parameters(small_models, processes=1, blocks=1), tmp_path)
    assert read_provenance(path)["kernels_sha256"] == "first"
    record(MEASURE, parameters(small_models, processes=2, blocks=1), tmp_path)
    assert len(in_process) == 2
    for module in (engine, provenance):
        monkeypatch.setattr(module, "kernels_sha256", lambda: "second")
    before = path.read_bytes()
    with pytest.raises(SpecquantError, match=r"verify_cost\.csv holds rows measured with other kernels \(commit"):
        record(MEASURE, parameters(small_models, processes=3, blocks=1), tmp_path)
    assert path.read_bytes() == before
    record(MEASURE, parameters(small_models, processes=1, blocks=1), tmp_path, anew=True)
    assert read_provenance(path)["kernels_sha256"] == "second"


def test_a_process_may_use_another_number_of_threads_than_the_one_that_started_it(small_models, tmp_path, preloaded):
    """As a notebook that has set its own: rows go by the parameters that the command had."""
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        path = record(MEASURE, parameters(small_models, processes=1, blocks=1, threads=before), tmp_path)
        record(MEASURE, parameters(small_models, processes=1, blocks=1, threads=before), tmp_path)
    finally:
        torch.set_num_threads(before)
    assert len(read_results(path)) == 2


def test_a_process_that_dies_is_named_and_what_had_finished_is_kept(small_models, tmp_path, monkeypatch, preloaded):
    record(MEASURE, parameters(small_models, processes=1, blocks=1), tmp_path)
    monkeypatch.setattr(sys, "executable", "/bin/false" if sys.platform != "darwin" else "/usr/bin/false")
    with pytest.raises(SpecquantError, match="the process that measured verify_cost ended with status 1: what had fin"):
        record(MEASURE, parameters(small_models, processes=2, blocks=1), tmp_path)
    assert read_results(tmp_path / "verify_cost.csv").process.unique().tolist() == [0]


def test_an_error_in_a_process_is_that_of_the_command(small_models, tmp_path, preloaded):
    with pytest.raises(SpecquantError, match="do not fit: all must be at least 1 and context plus draft at most"):
        record(MEASURE, parameters(small_models, draft_sizes=(0, 2), processes=1), tmp_path)


LARGE = {"model": "llama-3-70b", "device": "cpu", "processes": 2}


@pytest.mark.parametrize(
    ("question", "options"),
    [
        (replay, LARGE),
        (planted, LARGE),
        (adaptive, LARGE | {"schemes": ("fp16",)}),
        (rounds, LARGE),
        (verify_cost, LARGE | {"schemes": ("fp16",), "turns": True}),
        (settling, {"models": ("llama-3-70b",), "device": "cpu"}),
    ],
    ids=lambda value: getattr(value, "__name__", "").rpartition(".")[2],
)
def test_models_that_do_not_fit_a_cpu_are_told_once_before_any_process_starts(
    question, options, tmp_path, in_process, monkeypatch, capsys
):
    monkeypatch.setattr(synthetic, "free_bytes", lambda device: 10**10)
    with pytest.raises(SpecquantError, match=f"{question.MEASURE.name}.csv would hold no row: nothing was measured"):
        record(question.MEASURE, question.Parameters(**options), tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert "llama-3-70b in " in line
    assert " is left out: 80 layers of 8192 in " in line
    assert in_process == []
