"""Every kernel around the linear products compiles for the GPUs that it is for, without one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from specquant.kernels.launch import overlapping

ROOT = Path(__file__).resolve().parents[2]
KERNELS = {
    "_attend_kernel",
    "_join_kernel",
    "_rotate_and_cache_kernel",
    "_keep_path_kernel",
    "_add_rms_norm_kernel",
    "_swiglu_kernel",
    "_quantize_kernel",
    "_log_softmax_top_k_kernel",
    "_accept_greedily_kernel",
    "_expand_kernel",
    "_rerank_kernel",
}


def compile_launches(*arguments):
    pytest.importorskip("triton")
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_launches", *arguments],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return [line.split() for line in run.stdout.splitlines()]


@pytest.mark.parametrize(
    ("capability", "product"), [(90, "wgmma"), pytest.param(80, "mma", marks=pytest.mark.full, id="80-mma")]
)
def test_kernels_compile(capability, product):
    lines = compile_launches(str(capability))
    assert {line[0] for line in lines} == KERNELS
    one_row, *attention = [line for line in lines if line[0] == "_attend_kernel"]
    assert one_row[1:] == ["mma"]  # a tile of 16 rows
    assert all(line[1:] == [product] for line in attention)  # the matrix units' fastest path there


def test_a_product_that_starts_early_is_launched_before_what_is_in_front_of_it_waits():
    """And that still waits, once, before it reads anything."""
    between = {"_attend", "_join", "_rotate_and_cache", "_add_rms_norm", "_swiglu", "_quantize"}
    lines = compile_launches("90", "early")
    assert {name.removesuffix("_kernel") for name, *_ in lines} == between
    assert all(in_turn == ["launch_dependents", "wait"] for _, *in_turn in lines)


@pytest.mark.parametrize(("capability", "expected"), [((8, 0), (0, 0)), ((9, 0), (1, 2)), ((10, 0), (1, 2))])
def test_kernels_overlap_from_hopper_on(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    overlapping.cache_clear()
    options = [overlapping(gpu, next_early) for next_early in (False, True)]
    overlapping.cache_clear()
    assert tuple(each["OVERLAPPING"] for each in options) == expected
    assert all(each.get("launch_pdl", False) == bool(each["OVERLAPPING"]) for each in options)
    assert overlapping(cpu, next_early=True) == {"OVERLAPPING": 0}
