"""Recording goes scheme by scheme, keeps what is there, and refuses to mix measurements."""

import json

import pandas as pd
import pytest
import torch

from specquant.errors import SpecquantError
from specquant.measure import throughput as record
from specquant.measure.throughput import record_throughput
from specquant.study import read_provenance, read_results

PROMPT = '{"id": "a", "task": "code", "prompt": "1 plus 1"}\n'


@pytest.fixture
def call(small_models, tmp_path):
    (tmp_path / "prompts.jsonl").write_text(PROMPT)

    def run(*schemes, max_new_tokens=6, **options):
        return record_throughput(
            small_models,
            schemes,
            tmp_path / "out",
            tmp_path / "targets",
            name="small",
            prompts=tmp_path / "prompts.jsonl",
            max_new_tokens=max_new_tokens,
            **options,
        )

    return run


def test_both_tables_say_what_was_measured_and_how(call):
    throughput, lossless = (read_results(path) for path in call("fp16", "w8a8"))
    assert list(throughput.scheme.unique()) == list(lossless.scheme.unique()) == ["fp16", "w8a8"]
    assert len(throughput) == len(lossless) == 8
    assert (lossless.differing_prompts == 0).all()
    assert (lossless.new_tokens <= 6).all()


def test_what_is_recorded_is_not_measured_again(call, monkeypatch):
    (path, _) = call("fp16")
    before = read_results(path)
    measured, original = [], record.decode_prompts

    def decode(models, *rest, **options):
        measured.append(models.target.scheme.name)
        return original(models, *rest, **options)

    monkeypatch.setattr(record, "decode_prompts", decode)
    call("fp16", "w8a8")
    assert measured == ["w8a8"]
    after = read_results(path)
    pd.testing.assert_frame_equal(after[after.scheme == "fp16"].reset_index(drop=True), before)


def test_an_interrupted_recording_keeps_the_schemes_before(call, monkeypatch):
    original = record.quantized_target

    def fail_at_the_second(model_dir, scheme, keep_in):
        if scheme == "w8a8":
            raise KeyboardInterrupt
        return original(model_dir, scheme, keep_in)

    monkeypatch.setattr(record, "quantized_target", fail_at_the_second)
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
    dtypes, original = [], record.decode_prompts

    def decode(models, *rest, reference):
        dtypes.append((models.dtype, reference and reference.dtype))
        return original(models, *rest, reference=reference)

    monkeypatch.setattr(record, "decode_prompts", decode)
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
    (throughput, _) = call("w8a8", dtype="float32")
    assert list(read_results(throughput).scheme.unique()) == ["fp16", "w8a8"]
    for path in paths:
        provenance = read_provenance(path)
        del provenance["parameters"]["against"]
        path.with_suffix(".json").write_text(json.dumps(provenance))
    with pytest.raises(SpecquantError, match="holds rows measured with against float32, not float64"):
        call("w4a16-g128", dtype="float32", against="float64")
