"""Verify time: which passes are timed, behind which context. How long they take is the machine's business."""

import pandas as pd
import pytest
import torch

from specquant.errors import SpecquantError
from specquant.experiments import timing
from specquant.experiments.compatibility import profile_pass, time_by_part, verify_cost
from specquant.models.loading import load_model


@pytest.fixture(scope="module")
def model(small_models):
    return load_model(small_models / "target", scheme="w8a8")


def test_one_row_for_each_draft_size(model):
    table = verify_cost(model, "small", "synthetic", [1, 3, 64], context_length=32, repeats=5, warm_up=1)
    assert list(table.draft_size) == [1, 3, 64]
    for column, value in {"model": "small", "scheme": "w8a8", "weights": "synthetic", "context_length": 32}.items():
        assert set(table[column]) == {value}
    assert set(table.repeats) == {5}
    assert (table.p10_ms > 0).all()
    assert (table.p10_ms <= table.time_ms).all()
    assert (table.time_ms <= table.p90_ms).all()


def test_draft_sizes_take_turns_behind_the_same_context(model, monkeypatch):
    """Each pass is a draft's own, with the LM head, and the first ones are not counted."""
    passes, logits, clock = [], [], iter(range(1000))
    forward, head = model.forward, model.logits

    def run(tokens, positions, cache, mask):
        passes.append((len(tokens), cache.length, positions.tolist()))
        return forward(tokens, positions, cache, mask)

    monkeypatch.setattr(model, "forward", run)
    monkeypatch.setattr(model, "logits", lambda features: logits.append(len(features)) or head(features))
    monkeypatch.setattr(timing, "perf_counter", lambda: next(clock) ** 3)  # each pass seems to take longer
    table = verify_cost(model, "small", "synthetic", [4, 2], context_length=7, repeats=2, warm_up=1)
    prefill, *timed = passes
    assert prefill == (7, 0, list(range(7)))
    assert timed == [(size, 7, list(range(7, 7 + size))) for size in (4, 2)] * 3
    assert logits == [4, 2] * 3
    # The warm-up reads the clock at 0 and 1. Then, in turns: 3³ - 2³, 5³ - 4³, 7³ - 6³ and 9³ - 8³ seconds.
    assert list(table.time_ms) == [1e3 * (19 + 127) / 2, 1e3 * (61 + 217) / 2]


@pytest.mark.parametrize(
    ("draft_sizes", "context_length"), [([1, 97], 32), ([0, 1], 32), ([-1], 32), ([], 32), ([1], 0), ([1], 128)]
)
def test_what_does_not_fit_is_refused(model, draft_sizes, context_length):
    with pytest.raises(SpecquantError, match="do not fit: all must be at least 1 and context plus draft at most 128"):
        verify_cost(model, "small", "synthetic", draft_sizes, context_length)


def test_context_and_draft_may_fill_the_model(model):
    assert len(verify_cost(model, "small", "synthetic", [96], context_length=32, repeats=1, warm_up=0)) == 1


def test_without_a_gpu_there_is_nothing_to_profile(model):
    with pytest.raises(SpecquantError, match="only passes on an NVIDIA GPU can be profiled"):
        profile_pass(model, "small", "synthetic", 3, context_length=32)


def test_parts_of_a_pass_sum_to_it():
    kernels = ["_kernel", "nvjet_sm90", "_add_rms_norm_kernel", "_join_kernel", "void at::native::fill", "idle"]
    profiles = pd.DataFrame({"kernel": kernels, "launches": [4, 1, 3, 1, 2, 0], "alone_us": [50, 20, 9, 8, 2, 1]})
    about = {"model": "m", "scheme": "s", "draft_size": 1, "span_us": 90}
    (row,) = time_by_part(profiles.assign(**about)).round(6).to_dict("records")
    assert row == {
        "products": 0.07, "attention": 0.008, "norms": 0.009, "SwiGLU": 0.0, "rotation": 0.0, "other": 0.002,
        "idle": 0.001, "pass_ms": 0.09, "launches": 11,
    }  # fmt: skip


@pytest.mark.gpu
def test_a_profile_counts_the_launches_of_a_pass(small_models):
    on_gpu = load_model(small_models / "target", dtype=torch.float16, device="cuda")
    profile = profile_pass(on_gpu, "small", "trained", 3, context_length=32).set_index("kernel")
    norms = 2 * on_gpu.config.num_hidden_layers + 1
    assert profile.launches["_add_rms_norm_kernel"] == norms
    assert profile.launches["idle"] == 0
    assert (profile.alone_us >= 0).all()
    assert (profile.alone_us <= profile.time_us).all()
    assert profile.alone_us.sum() == pytest.approx(profile.span_us.iloc[0])
