"""The W4A16 product by warp groups: compiled for Hopper anywhere, run on the GPU against the ordinary kernel and the
reference. The interpreter cannot run it; what it can run is its plain twin, `w4a16_triton`."""

import os
import subprocess
import sys

import pytest
import torch

from specquant.errors import SpecquantError
from specquant.kernels import w4a16 as w4a16_module
from specquant.kernels import w4a16_hopper as w4a16_hopper_module
from specquant.kernels.norm import add_rms_norm
from specquant.kernels.products import TABLE, winners
from specquant.kernels.swiglu import swiglu
from specquant.kernels.w4a16 import w4a16_product, w4a16_triton, w4a16_weight
from specquant.kernels.w4a16_hopper import WarpGroups, recorded, w4a16_hopper
from tests.kernels.test_product_kernels import poisoned, relative_error, to, w4a16_matrix

__all__ = ["poisoned"]  # a fixture
pytest.importorskip("triton")

# Rows, outputs, inputs and how they are cut up: masked rows, columns that only some slabs reach, fewer steps than
# stages, uneven splits.
EDGES = [
    (64, 128, 512, WarpGroups((1, 1), 1, 4)),
    (33, 192, 384, WarpGroups((1, 1), 3, 4)),
    (17, 64, 128, WarpGroups((1, 1, 1), 1, 4)),
    (60, 576, 1664, WarpGroups((1, 1, 1), 2, 6)),
    (64, 512, 1152, WarpGroups((2, 1, 1), 4, 3)),
    (32, 320, 640, WarpGroups((2, 2, 1), 1, 5)),
    (48, 1024, 2048, WarpGroups((2, 2, 2, 1), 1, 4)),
    (1, 448, 256, WarpGroups((2, 2, 2, 1), 2, 4)),
    (16, 1024, 2048, WarpGroups((1, 1, 1, 1), 3, 4)),
    (7, 192, 1152, WarpGroups((1, 1), 4, 6)),
    (9, 448, 4096, WarpGroups((2, 2, 2, 1), 1, 4)),
]
edges = pytest.mark.parametrize(("rows", "outputs", "inputs", "chosen"), EDGES, ids=str)


def test_only_what_the_kernel_multiplies_is_taken():
    matrix = w4a16_matrix(64, 128, torch.Generator().manual_seed(0))
    for rows, kept in ((65, 64), (64, 48)):
        codes, scales = matrix[0][:, : kept // 16], matrix[1][:, : kept // 16]
        with pytest.raises(SpecquantError, match=f"not {rows} by {kept}"):
            w4a16_hopper(torch.zeros(rows, 128).half(), codes.contiguous(), scales, WarpGroups((1, 1), 1, 4))


def test_every_share_of_the_inputs_has_a_step():
    matrix = w4a16_matrix(64, 256, torch.Generator().manual_seed(0))
    with pytest.raises(SpecquantError, match="256 inputs cannot be split in 3"):
        w4a16_hopper(torch.zeros(64, 256).half(), *matrix, WarpGroups((1, 1), 3, 4))


def test_it_is_offered_where_it_can_run_and_is_recorded(monkeypatch):
    x = torch.zeros(64, 8192).half()
    assert recorded(x, 57344) is None  # on a CPU
    monkeypatch.setattr(w4a16_hopper_module, "gpu_kind", lambda device: "sm90")
    assert isinstance(recorded(x, 57344), WarpGroups)
    assert recorded(x.bfloat16(), 57344) is None
    assert recorded(x, 57344 + 64) is None
    assert recorded(x[:1], 57344) == ((2, 2, 2, 1), 1, 4)
    assert recorded(x[:1, :4096], 28672) is None
    assert (
        recorded(torch.zeros(64 * 8192 + 1).half()[1:].view(64, 8192), 57344) is None
    )  # the copy engine needs 16 bytes


@pytest.mark.parametrize("rows", [1, 16, 17, 64])
def test_where_rows_are_invariant_the_ordinary_kernel_multiplies(rows, monkeypatch):
    """All four are recorded for warp groups, which split inputs otherwise from one number of rows to the next."""
    x, taken = torch.zeros(rows, 8192).half(), list[str]()
    matrix = torch.zeros(64, 512, 32, 32, dtype=torch.uint8), torch.zeros(64, 512, 8, 2).half()
    monkeypatch.setattr(w4a16_hopper_module, "gpu_kind", lambda device: "sm90")
    monkeypatch.setattr(w4a16_module, "w4a16_hopper", lambda *arguments: taken.append("warp groups"))
    monkeypatch.setattr(w4a16_module, "launch_product", lambda *_, row_invariant, **__: taken.append(row_invariant))
    w4a16_triton(x, *matrix)
    w4a16_triton(x, *matrix, row_invariant=True)
    assert taken == ["warp groups", True]


COMPILE = """
import subprocess, sys, tempfile
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.language import NVMMASharedLayout
from specquant.kernels.w4a16_hopper import AHEAD, EARLY, REGISTERS, _kernel

for rows, *numbers in eval(sys.argv[1]):
    *slabs, splits, stages = numbers
    types = dict(
        x=f"tensordesc<fp16[{rows}, 64],{NVMMASharedLayout(128, 16, 2)!r}>",
        words=f"tensordesc<i32[32, 32],{NVMMASharedLayout(128, 32, 2)!r}>",
        scales="*i32", out="*fp16", partials="*fp32", arrivals="*i32",
        rows="i32", out_features="i32", in_features="i32",
    )
    constants = dict(SLABS=tuple(slabs), ROWS=rows, STAGES=stages, SPLITS=splits, REGISTERS=REGISTERS[len(slabs)])
    constants |= dict(EARLY=min(EARLY[rows], stages), AHEAD=AHEAD) | (dict(partials=None) if splits == 1 else {})
    signature = {name: "constexpr" if name in constants else types[name] for name in _kernel.arg_names}
    constants = {(_kernel.arg_names.index(name),): value for name, value in constants.items()}
    divisible = [name for name, type in signature.items() if type.startswith("*") or name.endswith("features")]
    attributes = {(_kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in divisible}
    source = GluonASTSource(_kernel, signature, constants, attributes)
    compiled = triton.compile(source, GPUTarget("cuda", 90, 32), dict(num_warps=4))
    products = [line for line in compiled.asm["ptx"].splitlines() if "wgmma.mma_async" in line]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        sass = subprocess.check_output([knobs.nvidia.cuobjdump.path, "-sass", file.name], text=True)
    waits = sass.count("WARPGROUP.DEPBAR")
    print(len(products), all(line.count("{") == 2 for line in products), waits, compiled.metadata.shared)
"""


def test_the_recorded_ways_compile_for_hopper():
    """Weights come from registers, and the tensor cores get all products of 64 inputs before anyone waits."""
    table = winners()["sm90"][TABLE.format("w4a16")].values()
    ways = sorted({(int(tile), *numbers) for tiles in table for tile, numbers in tiles.items()})
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", COMPILE, repr(ways)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == len(ways) > 0
    for (_, *slabs, _, _), (products, from_registers, waits, shared_bytes) in zip(ways, lines, strict=True):
        assert int(products) == 8 * sum(slabs)
        assert from_registers == "True"
        assert int(waits) <= int(products) / 4
        assert int(shared_bytes) <= 232_448  # what a block may have


@pytest.fixture
def hopper():
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs Hopper")


@pytest.mark.gpu
@edges
def test_against_the_reference_and_the_twin(rows, outputs, inputs, chosen, hopper, poisoned):
    generator = torch.Generator().manual_seed(rows)
    matrix = w4a16_matrix(outputs, inputs, generator)
    x = torch.randn(rows, inputs, generator=generator).half()
    expected = w4a16_product(x.double(), w4a16_weight(*matrix, torch.float64))
    x, matrix = x.cuda(), to("cuda", matrix)
    y = w4a16_hopper(x, *matrix, chosen)
    assert y.shape == (rows, outputs)
    assert relative_error(y, expected) < 4e-4
    assert relative_error(y, w4a16_triton(x, *matrix, row_invariant=True).double().cpu()) < 5e-4
    for _ in range(20):
        assert torch.equal(w4a16_hopper(x, *matrix, chosen), y)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [16, 64])
def test_weights_are_rounded_once(rows, hopper):
    """One input at a time, so that a product shows a weight as it is."""
    matrix = w4a16_matrix(256, 256, torch.Generator().manual_seed(0))
    weight = w4a16_weight(*matrix).half()
    matrix = to("cuda", matrix)
    for first in range(0, 256, rows):
        x = torch.eye(256, dtype=torch.float16, device="cuda")[first : first + rows].contiguous()
        shown = w4a16_hopper(x, *matrix, WarpGroups((1, 1), 2, 4))
        assert torch.equal(shown.t().cpu(), weight[:, first : first + rows])


def assert_replays_give(expected, run):
    """Each time, for what does not wait reads too early only now and then."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run()
    for _ in range(50):
        graph.replay()
        assert torch.equal(y, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [16, 64])
def test_a_product_waits_for_the_one_before_it(rows, hopper):
    generator = torch.Generator().manual_seed(0)
    first, second = (to("cuda", w4a16_matrix(*shape, generator)) for shape in ((8192, 4096), (4096, 8192)))
    chosen = WarpGroups((1, 1), 2, 5)
    x = torch.randn(rows, 4096, generator=generator).half().cuda()

    def run(y, synchronize):
        for _ in range(3):
            for matrix in (first, second):
                y = w4a16_hopper(y, *matrix, chosen)
                if synchronize:
                    torch.cuda.synchronize()
            y = y / y.std()
        return y

    assert_replays_give(run(x, synchronize=True), lambda: run(x, synchronize=False))


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 16])
def test_a_product_that_starts_early_waits_for_what_is_in_front_of_it(rows, hopper):
    """Where that has not waited yet itself, for the product before."""
    generator = torch.Generator().manual_seed(0)
    first, second = (to("cuda", w4a16_matrix(*shape, generator)) for shape in ((8192, 4096), (4096, 4096)))
    x = torch.randn(rows, 4096, generator=generator).half().cuda()
    weight = torch.ones(4096, dtype=torch.float16, device="cuda")

    def run(x, next_early):
        for _ in range(6):
            _, normed = add_rms_norm(x, None, weight, 1e-5, next_early=next_early)
            gated = swiglu(w4a16_hopper(normed, *first, WarpGroups((1, 1), 2, 4)), next_early=next_early)
            x = w4a16_hopper(gated, *second, WarpGroups((1, 1), 4, 4))
            if not next_early:
                torch.cuda.synchronize()
        return x

    expected = run(x, next_early=False)
    assert expected.isfinite().all()
    assert_replays_give(expected, lambda: run(x, next_early=True))
