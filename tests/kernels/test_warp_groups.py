"""Products by warp groups: compiled for Hopper anywhere, run on the GPU against the ordinary kernels and the reference.
The interpreter cannot run them; what it can run are the ordinary kernels (`test_product_kernels`)."""

import os
import subprocess
import sys

import pytest
import torch

from specquant.errors import SpecquantError
from specquant.kernels import w4a8 as w4a8_module
from specquant.kernels import w4a16 as w4a16_module
from specquant.kernels import warp_groups
from specquant.kernels.norm import add_rms_norm
from specquant.kernels.products import TABLE, Configuration, winners
from specquant.kernels.swiglu import swiglu
from specquant.kernels.w4a8 import w4a8_triton
from specquant.kernels.w4a16 import w4a16_product, w4a16_triton, w4a16_weight
from specquant.kernels.warp_groups import FLOATING, FORMS, TILES, WarpGroups, group_tile, multiply_by_groups, recorded
from specquant.quant import get_scheme, quantize_linear
from tests.kernels.test_product_kernels import poisoned, relative_error, to, w4a16_matrix
from tests.replays import assert_replays_give

__all__ = ["poisoned"]  # a fixture
pytest.importorskip("triton")

# Rows, outputs, inputs and how they are cut up: masked rows, columns that only some slabs reach, fewer steps than
# stages, uneven splits, every tile of rows.
EDGES = [
    (64, 128, 512, WarpGroups((1, 1), 1, 4)),
    (33, 192, 384, WarpGroups((1, 1), 3, 4)),
    (17, 64, 128, WarpGroups((1, 1, 1), 1, 4)),
    (60, 576, 1664, WarpGroups((1, 1, 1), 2, 6)),
    (64, 512, 1152, WarpGroups((2, 1, 1), 4, 3)),
    (32, 320, 640, WarpGroups((2, 2, 1), 1, 4)),
    (48, 1024, 2048, WarpGroups((2, 2, 2, 1), 1, 3)),
    (1, 448, 256, WarpGroups((2, 2, 2, 1), 2, 3)),
    (16, 1024, 2048, WarpGroups((1, 1, 1, 1), 3, 4)),
    (7, 192, 1152, WarpGroups((1, 1), 4, 6)),
    (8, 512, 4096, WarpGroups((2, 2), 8, 4)),
    (9, 448, 4096, WarpGroups((2, 2, 2, 1), 1, 3)),
]
edges = pytest.mark.parametrize(("rows", "outputs", "inputs", "chosen"), EDGES, ids=str)
every_form = pytest.mark.parametrize("form", FORMS)


def scheme_of(form):
    return get_scheme("w4a16-g128" if form == "w4a16" else form)


def w4a16_by_groups(x, codes, scales, chosen):
    return multiply_by_groups("w4a16", x, codes, chosen, x.dtype, grid=scales)


def test_a_tile_is_the_smallest_that_holds_the_rows():
    assert [group_tile(rows) for rows in (1, 8, 9, 16, 17, 33, 64, 65)] == [8, 8, 16, 16, 32, 64, 64, 64]


def test_only_what_the_kernel_multiplies_is_taken():
    matrix = w4a16_matrix(64, 128, torch.Generator().manual_seed(0))
    for rows, kept in ((65, 64), (64, 48)):
        codes, scales = matrix[0][:, : kept // 16], matrix[1][:, : kept // 16]
        with pytest.raises(SpecquantError, match=f"not {rows} by {kept}"):
            w4a16_by_groups(torch.zeros(rows, 128).half(), codes.contiguous(), scales, WarpGroups((1, 1), 1, 4))


def test_every_share_of_the_inputs_has_a_step():
    matrix = w4a16_matrix(64, 256, torch.Generator().manual_seed(0))
    with pytest.raises(SpecquantError, match="256 inputs cannot be split in 3"):
        w4a16_by_groups(torch.zeros(64, 256).half(), *matrix, WarpGroups((1, 1), 3, 4))


@every_form
def test_it_is_offered_where_it_can_run_and_is_recorded(form, monkeypatch):
    numbers = [2, 2, 2, 1, 1, 4]
    table = {"sm90": {TABLE.format(form): {"57344x8192": {"8": numbers, "64": numbers}}}}
    monkeypatch.setattr("specquant.kernels.products.winners", lambda: table)
    x = torch.zeros(64, 8192).half()
    assert recorded(form, x, 57344) is None  # on a CPU
    monkeypatch.setattr(warp_groups, "gpu_kind", lambda device: "sm90")
    assert recorded(form, x, 57344) == recorded(form, x[:1], 57344) == ((2, 2, 2, 1), 1, 4)
    assert recorded(form, x[:9], 57344) is None
    assert recorded(form, x, 57344 + 64) is None
    assert recorded(form, x[:1, :4096], 28672) is None
    unaligned = torch.zeros(64 * 8192 + 1).half()[1:].view(64, 8192)
    assert recorded(form, unaligned, 57344) is None  # the copy engine needs 16 bytes
    assert (recorded(form, x.bfloat16(), 57344) is None) == (form == "w4a16")


@pytest.mark.parametrize("rows", [1, 16, 17, 64])
def test_where_rows_are_invariant_the_ordinary_kernel_multiplies_floats(rows, monkeypatch):
    """All four tiles are recorded for warp groups, which split inputs otherwise from one number of rows to the next:
    what is rounded then differs, and sums of integers do not."""
    table = {str(tile): [2, 2, 2, 1, 1, 4] for tile in TILES}
    table = {"sm90": {TABLE.format(form): {"8192x8192": table} for form in ("w4a16", "w4a8-qqq")}}
    monkeypatch.setattr("specquant.kernels.products.winners", lambda: table)
    monkeypatch.setattr(warp_groups, "gpu_kind", lambda device: "sm90")
    taken = list[object]()
    for module in (w4a16_module, w4a8_module):
        monkeypatch.setattr(module, "multiply_by_groups", lambda *_, **__: taken.append("warp groups"))
        monkeypatch.setattr(module, "launch_product", lambda *_, row_invariant, **__: taken.append(row_invariant))
    x, codes = torch.zeros(rows, 8192).half(), torch.zeros(64, 512, 32, 32, dtype=torch.uint8)
    w4a16_triton(x, codes, torch.zeros(64, 512, 8, 2).half())
    w4a16_triton(x, codes, torch.zeros(64, 512, 8, 2).half(), row_invariant=True)
    w4a8_triton("qqq", x.to(torch.int8), x[:, :1].float(), codes, torch.zeros(8192).half(), out_dtype=torch.float16)
    assert taken == ["warp groups", True, "warp groups"]


COMPILE = """
import subprocess, sys, tempfile
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.language import NVMMASharedLayout
from specquant.kernels.warp_groups import AHEAD, EARLY, FLOATING, FORMS, REGISTERS, UNPACKED, _kernel

ACTIVATIONS = {"w4a16": "fp16", "fp8": "fp8e4nv", "w4a8-fp8-g128": "fp8e4nv"}
for form, rows, *numbers in eval(sys.argv[1]):
    *slabs, splits, stages = numbers
    x = ACTIVATIONS.get(form, "i8")
    tile, bits, word = ([64], 16, "i32[32, 32]") if form == "w4a16" else ([128], 8, "i8[32, 128]")
    word = f"{x}[64, 128]" if form in UNPACKED else word
    types = dict(
        x=f"tensordesc<{x}[{rows}, {tile[0]}],{NVMMASharedLayout(128, bits, 2)!r}>",
        weights=f"tensordesc<{word},{NVMMASharedLayout(128, 32 if form == 'w4a16' else 8, 2)!r}>",
        token_scales="*fp32", scales="*fp32" if form == "fp8" else "*fp16",
        grid="*u8" if form == "w4a8-qoq" else "*i32", out="*fp16",
        partials="*fp32" if form in FLOATING else "*i32", arrivals="*i32",
        rows="i32", out_features="i32", steps="i32",
    )
    constants = dict(FORM=FORMS.index(form), SLABS=tuple(slabs), ROWS=rows, STAGES=stages, CLAMPED=False)
    constants |= dict(REGISTERS=REGISTERS[len(slabs)], EARLY=min(EARLY[rows], stages), AHEAD=AHEAD)
    missing = [] if splits > 1 else ["partials"]
    missing += ["token_scales"] if form == "w4a16" else []
    missing += ["scales"] if form in ("w4a16", "w4a8-fp8-g128") else []
    missing += ["grid"] if form in (*UNPACKED, "w4a8-qqq") else []
    constants |= dict.fromkeys(missing)
    signature = {name: "constexpr" if name in constants else types[name] for name in _kernel.arg_names}
    constants = {(_kernel.arg_names.index(name),): value for name, value in constants.items()}
    divisible = [name for name, type in signature.items() if type.startswith("*") or name.endswith("features")]
    attributes = {(_kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in divisible}
    source = GluonASTSource(_kernel, signature, constants, attributes)
    compiled = triton.compile(source, GPUTarget("cuda", 90, 32), dict(num_warps=4))
    products = [line for line in compiled.asm["ptx"].splitlines() if "wgmma.mma_async" in line]
    by_mma = compiled.asm["ptx"].count("mma.sync.aligned")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        sass = subprocess.check_output([knobs.nvidia.cuobjdump.path, "-sass", file.name], text=True)
    waits, spills = sass.count("WARPGROUP.DEPBAR"), sass.count("STL")
    registers = sum(line.count("{") == 2 for line in products)
    print(len(products), registers, by_mma, waits, spills, compiled.metadata.shared)
"""


@every_form
def test_the_recorded_ways_compile_for_hopper(form):
    """Widened weights come from registers, nothing is spilled, and the tensor cores get all products of a slab before
    anyone waits."""
    table = winners()["sm90"].get(TABLE.format(form), {}).values()
    ways = {(form, int(tile), *numbers) for tiles in table for tile, numbers in tiles.items()}
    # All ways of splitting are one program: how many there are is the launch's.
    ways = sorted({(*first, min(splits, 2), stages) for *first, splits, stages in ways})
    ways = ways or [(form, tile, 1, 1, 2, 3) for tile in TILES]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", COMPILE, repr(ways)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [map(int, line.split()) for line in done.stdout.splitlines()]
    assert len(lines) == len(ways) > 0
    for (_, rows, *slabs, _, _), (products, from_registers, by_mma, waits, spills, shared_bytes) in zip(
        ways, lines, strict=True
    ):
        whole = (8 if form == "w4a16" else 4) * sum(slabs)
        assert by_mma == (whole if rows == 8 and form not in (*warp_groups.UNPACKED, "w4a8-fp8-g128") else 0)
        assert products == (0 if by_mma else whole)
        assert from_registers == (0 if form in warp_groups.UNPACKED else products)
        assert waits <= products / 4
        assert spills == 0
        assert shared_bytes <= 232_448  # what a block may have


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
    y = w4a16_by_groups(x, *matrix, chosen)
    assert y.shape == (rows, outputs)
    assert relative_error(y, expected) < 4e-4
    assert relative_error(y, w4a16_triton(x, *matrix, row_invariant=True).double().cpu()) < 5e-4
    for _ in range(20):
        assert torch.equal(w4a16_by_groups(x, *matrix, chosen), y)


@pytest.mark.gpu
@every_form
@edges
def test_against_the_ordinary_kernel(form, rows, outputs, inputs, chosen, hopper, poisoned):
    generator = torch.Generator("cuda").manual_seed(rows)
    matrix = quantize_linear(scheme_of(form), torch.randn(outputs, inputs, device="cuda", generator=generator) / 50)
    x = matrix.kernel_inputs(torch.randn(rows, inputs, device="cuda", generator=generator).half())
    for dtype in (torch.float16,) if form == "w4a16" else (torch.float16, torch.bfloat16):
        expected = matrix.run_kernel(x, dtype, Configuration(64, 1, 2, 4))
        y = matrix.run_kernel(x, dtype, chosen)
        if form in FLOATING:
            assert relative_error(y, expected.double().cpu()) < (5e-4 if dtype == torch.float16 else 4e-3)
        else:
            assert torch.equal(y, expected)
        for _ in range(20):
            assert torch.equal(matrix.run_kernel(x, dtype, chosen), y)


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["w8a8", "fp8"])
def test_inputs_that_are_no_whole_steps(form, hopper, poisoned):
    generator = torch.Generator("cuda").manual_seed(0)
    matrix = quantize_linear(scheme_of(form), torch.randn(192, 592, device="cuda", generator=generator) / 50)
    for rows in (1, 9, 64):
        x = matrix.kernel_inputs(torch.randn(rows, 592, device="cuda", generator=generator).half())
        expected = matrix.run_kernel(x, torch.float16, Configuration(64, 1, 2, 4))
        y = matrix.run_kernel(x, torch.float16, WarpGroups((1, 1), 2, 3))
        assert torch.equal(y, expected) or (form in FLOATING and relative_error(y, expected.double().cpu()) < 5e-4)


@pytest.mark.gpu
def test_weights_that_leave_int8_are_brought_back(hopper):
    generator = torch.Generator("cuda").manual_seed(0)
    matrix = quantize_linear(get_scheme("w4a8-qqq-g128"), torch.randn(128, 256, device="cuda", generator=generator))
    matrix.group_scales *= 2
    matrix.clamped = True
    x = matrix.kernel_inputs(torch.randn(3, 256, device="cuda", generator=generator).half())
    expected = matrix.run_kernel(x, torch.float16, Configuration(64, 1, 2, 4))
    assert torch.equal(matrix.run_kernel(x, torch.float16, WarpGroups((1, 1), 2, 2)), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [16, 64])
def test_weights_are_rounded_once(rows, hopper):
    """One input at a time, so that a product shows a weight as it is."""
    matrix = w4a16_matrix(256, 256, torch.Generator().manual_seed(0))
    weight = w4a16_weight(*matrix).half()
    matrix = to("cuda", matrix)
    for first in range(0, 256, rows):
        x = torch.eye(256, dtype=torch.float16, device="cuda")[first : first + rows].contiguous()
        shown = w4a16_by_groups(x, *matrix, WarpGroups((1, 1), 2, 4))
        assert torch.equal(shown.t().cpu(), weight[:, first : first + rows])


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
                y = w4a16_by_groups(y, *matrix, chosen)
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
            gated = swiglu(w4a16_by_groups(normed, *first, WarpGroups((1, 1), 2, 4)), next_early=next_early)
            x = w4a16_by_groups(gated, *second, WarpGroups((1, 1), 4, 4))
            if not next_early:
                torch.cuda.synchronize()
        return x

    expected = run(x, next_early=False)
    assert expected.isfinite().all()
    assert_replays_give(expected, lambda: run(x, next_early=True))
