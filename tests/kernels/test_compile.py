"""Every kernel around the linear products compiles for the GPUs that it is for, without one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("capability", "product"), [(90, "wgmma"), pytest.param(80, "mma", marks=pytest.mark.full, id="80-mma")]
)
def test_kernels_compile(capability, product):
    pytest.importorskip("triton")
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_launches", str(capability)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    lines = [line.split() for line in run.stdout.splitlines()]
    assert {line[0] for line in lines} == KERNELS
    one_row, *attention = [line for line in lines if line[0] == "_attend_kernel"]
    assert one_row[1:] == ["mma"]  # a tile of 16 rows
    assert all(line[1:] == [product] for line in attention)  # the matrix units' fastest path there
