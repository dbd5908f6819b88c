"""What a GPU does in a pass, part by part."""

import pandas as pd
import pytest
import torch

from specquant.errors import SpecquantError
from specquant.measure.measure import record
from specquant.measure.profiles import MEASURE, Parameters, profile_pass, time_by_part
from specquant.models.loading import load_model
from specquant.study import read_results


@pytest.fixture(scope="module")
def model(small_models):
    return load_model(small_models / "target", scheme="w8a8")


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


def test_without_a_gpu_nothing_is_profiled(small_models, tmp_path):
    with pytest.raises(SpecquantError, match="cuda"):
        record(MEASURE, Parameters(small_models / "target", ("fp16",)), tmp_path)


@pytest.mark.gpu
def test_profiles_of_each_scheme_are_kept(small_models, tmp_path):
    for schemes in (("fp16", "w4a16-g128"), ("w4a16-g128",)):
        path = record(MEASURE, Parameters(small_models / "target", schemes, (1, 5), 32), tmp_path)
    profiles = read_results(path)
    assert set(profiles.scheme) == {"fp16", "w4a16-g128"}
    assert (profiles.groupby(["scheme", "draft_size"]).alone_us.sum() > 0).all()
    assert not profiles.duplicated(["scheme", "draft_size", "kernel"]).any()
