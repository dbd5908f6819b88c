"""Recording goes scheme by scheme, keeps what is there, and refuses to mix measurements."""

import json

import pandas as pd
import pytest
import torch

from specquant.decoding.method import DraftSettings
from specquant.errors import SpecquantError
from specquant.measure import throughput
from specquant.measure.measure import record
from specquant.measure.throughput import MEASURE, Parameters
from specquant.study import read_provenance, read_results

PROMPT = '{"id": "a", "task": "code", "prompt": "1 plus 1"}\n'


@pytest.fixture
def call(small_models, tmp_path, in_process):
    (tmp_path / "prompts.jsonl").write_text(PROMPT)

    def run(*schemes, max_new_tokens=6, **options):
        parameters = Parameters(
            models_dir=small_models,
            schemes=schemes,
            keep_targets_in=tmp_path / "targets",
            name="small",
            prompts=tmp_path / "prompts.jsonl",
            max_new_tokens=max_new_tokens,
            **options,
        )
        path = record(MEASURE, parameters, tmp_path / "out")
        return path, path.with_name("losslessness.csv")

    return run


def test_both_tables_say_what_was_measured_and_how(call):
    speeds, lossless = (read_results(path) for path in call("fp16", "w8a8"))
    assert list(speeds.scheme.unique()) == list(lossless.scheme.unique()) == ["fp16", "w8a8"]
    assert len(speeds) == len(lossless) == 8
    assert {"mean_draft_size", "inner_rounds", "prompts", "speedup"} <= set(speeds)
    assert (lossless.differing_prompts == 0).all()
    assert (lossless.new_tokens <= 6).all()


def test_what_is_recorded_is_not_measured_again(call, monkeypatch):
    (path, _) = call("fp16")
    before = read_results(path)
    measured, original = [], throughput.decode_prompts

    def decode(models, *rest, **options):
        measured.append(models.target.scheme.name)
        return original(models, *rest, **options)

    monkeypatch.setattr(throughput, "decode_prompts", decode)
    call("fp16", "w8a8")
    assert measured == ["w8a8"]
    after = read_results(path)
    pd.testing.assert_frame_equal(after[after.scheme == "fp16"].reset_index(drop=True), before)


def test_an_interrupted_recording_keeps_the_schemes_before(call, monkeypatch):
    original = throughput.quantized_target

    def fail_at_the_second(model_dir, scheme, keep_in, **options):
        if scheme == "w8a8":
            raise KeyboardInterrupt
        return original(model_dir, scheme, keep_in, **options)

    monkeypatch.setattr(throughput, "quantized_target", fail_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        call("fp16", "w8a8")
    monkeypatch.undo()
    paths = call("fp16")
    assert all(set(read_results(path).scheme) == {"fp16"} for path in paths)


def test_measurements_of_other_parameters_are_not_mixed(call):
    (path, _) = call("fp16")
    with pytest.raises(SpecquantError, match=r"throughput.csv holds rows measured with max_new_tokens 6, not 7"):
        call("fp16", "w8a8", max_new_tokens=7)
    assert read_provenance(path)["parameters"]["max_new_tokens"] == 6


def test_tokens_may_be_compared_with_those_of_another_dtype(call, monkeypatch):
    dtypes, original = [], throughput.decode_prompts

    def decode(models, *rest, reference):
        dtypes.append((models.dtype, reference and reference.dtype))
        return original(models, *rest, reference=reference)

    monkeypatch.setattr(throughput, "decode_prompts", decode)
    call("fp16", dtype="bfloat16", against="float64")
    assert dtypes == [(torch.bfloat16, torch.float64)]
    with pytest.raises(SpecquantError, match="holds rows measured with dtype bfloat16, not float64"):
        call("w8a8")


def test_tables_from_before_an_option_are_gone_on_with(call):
    """Those in data/recorded/cpu name neither row invariance nor what tokens were compared with."""
    paths = call("fp16", dtype="float32")
    for path in paths:
        provenance = read_provenance(path)
        for option in ("row_invariant", "against"):
            del provenance["parameters"][option]
        path.with_suffix(".json").write_text(json.dumps(provenance))
    (path, _) = call("w8a8", dtype="float32")
    assert list(read_results(path).scheme.unique()) == ["fp16", "w8a8"]
    for path in paths:
        provenance = read_provenance(path)
        del provenance["parameters"]["against"]
        path.with_suffix(".json").write_text(json.dumps(provenance))
    with pytest.raises(SpecquantError, match="holds rows measured with against float32, not float64"):
        call("w4a16-g128", dtype="float32", against="float64")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0: give at least 1"),
        ({"max_new_tokens": 1}, "max_new_tokens is 1: give at least 2"),
        ({"prompts_per_task": -1}, "prompts_per_task is -1: give at least 1"),
        ({"prompts_per_task": "two"}, "prompts_per_task is 'two': give a whole number or nothing"),
        ({"row_invariant": "perhaps"}, "row_invariant is 'perhaps': give true or false"),
        ({"settings": DraftSettings(draft_size=-1)}, "draft_size is -1: give at least 1"),
        ({"settings": DraftSettings(iterations=1.5)}, "iterations is 1.5: give a whole number"),
        ({"threads": 0}, "threads is 0: give at least 1"),
        ({"threads": True}, "threads is True: give a whole number or nothing"),
        ({"dtype": "float8"}, "unknown dtype 'float8': choose float16"),
        ({"against": "double"}, "unknown dtype 'double'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(call, tmp_path, options, sentence):
    with pytest.raises(SpecquantError, match=sentence):
        call("fp16", **options)
    assert not (tmp_path / "out").exists()
