"""The kernels of the linear products against their references: on the GPU, or in Triton's interpreter."""

import subprocess
import sys
from functools import partial

import pytest
import torch

from specquant.errors import SpecquantError
from specquant.kernels import w4a8
from specquant.kernels.activations import quantize_per_token, quantize_per_token_triton
from specquant.kernels.fp16 import fp16_triton
from specquant.kernels.int4 import pack_int4, pair_outputs
from specquant.kernels.products import Configuration, configuration, row_tile
from specquant.kernels.w4a16 import w4a16_product, w4a16_triton, w4a16_weight
from specquant.kernels.w8a8 import w8a8, w8a8_triton
from specquant.quant import SCHEMES, get_scheme, quantize_linear

FORMS = ("w8a8", "qqq", "qqq-g128", "qoq", "qoq-g128")
# Rows, outputs, inputs and how they are cut up: masked rows, outputs and inputs that are no whole tile, uneven splits.
EDGES = [
    (1, 16, 128, Configuration(64, 1, 2, 4)),
    (3, 80, 384, Configuration(64, 2, 3, 4)),
    (17, 64, 256, Configuration(64, 1, 2, 4)),
    (64, 144, 640, Configuration(128, 3, 2, 8)),
    (150, 64, 128, Configuration(64, 1, 2, 4)),
    (130, 48, 384, None),
    (3, 80, 320, Configuration(64, 2, 3, 4)),
    (20, 64, 100, None),
]
edges = pytest.mark.parametrize(("rows", "outputs", "inputs", "chosen"), EDGES, ids=lambda value: str(value))


def w4a16_matrix(outputs, inputs, generator):
    codes = torch.randint(0, 16, (outputs, inputs), generator=generator)
    scales = (torch.rand(-(-inputs // 128), outputs, generator=generator) * 0.02).half()
    return pack_int4(codes, 16), pair_outputs(scales)


def integer_matrix(form, outputs, inputs, generator):
    """The stored tensors of a matrix."""
    scales = (torch.rand(outputs, generator=generator) * 0.02 + 0.001).half()
    if form == "w8a8":
        return torch.randint(-127, 128, (outputs, inputs), generator=generator, dtype=torch.int8), scales
    codes = pack_int4(torch.randint(0, 16, (outputs, inputs), generator=generator), 8)
    groups = -(-inputs // 128)
    if form == "qqq":
        return codes, scales
    if form == "qoq":
        return codes, scales, torch.randint(0, 16, (outputs,), generator=generator, dtype=torch.uint8)
    if form == "qqq-g128":
        group_scales = (torch.rand(groups, outputs, generator=generator) * 15 + 0.3).half()
        group_scales[:, ::3] = 0.5  # every odd code is a tie
        return codes, scales, pair_outputs(group_scales)
    steps = torch.randint(1, 9, (groups, outputs), generator=generator, dtype=torch.uint8)
    zeros = torch.randint(0, 16, (groups, outputs), generator=generator, dtype=torch.uint8)
    return codes, scales, torch.cat((pair_outputs(steps), pair_outputs(zeros)), dim=-1)


REFERENCES = {
    "w8a8": w8a8,
    "qqq": w4a8.qqq,
    "qqq-g128": w4a8.qqq_group,
    "qoq": w4a8.qoq,
    "qoq-g128": w4a8.qoq_group,
}


def integer_launcher(form):
    return w8a8_triton if form == "w8a8" else partial(w4a8.w4a8_triton, form)


def to(device, tensors):
    return [tensor.to(device) for tensor in tensors]


def relative_error(y, expected):
    return ((y.double().cpu() - expected).norm() / expected.norm()).item()


@edges
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_w4a16(rows, outputs, inputs, chosen, dtype, device, generator):
    matrix = w4a16_matrix(outputs, inputs, generator)
    x = torch.randn(rows, inputs, generator=generator).to(dtype)
    y = w4a16_triton(x.to(device), *to(device, matrix), chosen=chosen)
    assert y.shape == (rows, outputs)
    assert y.dtype == dtype
    expected = w4a16_product(x.double(), w4a16_weight(*matrix, torch.float64)[:, :inputs])
    # What rounding the output costs; the interpreter rounds to bf16 towards zero.
    assert relative_error(y, expected) < (4e-4 if dtype == torch.float16 else 4e-3)


@edges
def test_fp16(rows, outputs, inputs, chosen, device, generator):
    weight = torch.randn(outputs, inputs, generator=generator).half()
    x = torch.randn(rows, inputs, generator=generator).half()
    y = fp16_triton(x.to(device), weight.to(device), chosen=chosen)
    assert relative_error(y, x.double() @ weight.double().t()) < 4e-4


@pytest.mark.bits
@edges
@pytest.mark.parametrize("form", FORMS)
def test_integer_products_are_exact(form, rows, outputs, inputs, chosen, device, generator):
    matrix = integer_matrix(form, outputs, inputs, generator)
    x = torch.randn(rows, inputs, generator=generator).half()
    codes, scales = quantize_per_token(x)
    x_codes, x_scales = codes.to(torch.int8).to(device), scales.to(device)
    y = integer_launcher(form)(x_codes, x_scales, *to(device, matrix), out_dtype=torch.float16, chosen=chosen)
    assert torch.equal(y.cpu(), REFERENCES[form](x, *matrix))


@edges
def test_weights_that_leave_int8_are_brought_back(rows, outputs, inputs, chosen, device, generator):
    """As GPTQModel's QQQ writes them per group: integers of up to 160."""
    codes, scales, _ = integer_matrix("qqq-g128", outputs, inputs, generator)
    matrix = codes, scales, pair_outputs(torch.linspace(10, 20, -(-inputs // 128) * outputs).view(-1, outputs).half())
    weights = w4a8.qqq_group_weight(codes, matrix[2])
    assert (weights.min(), weights.max()) == (-128, 127)
    x = torch.randn(rows, inputs, generator=generator).half()
    x_codes, x_scales = quantize_per_token(x)
    inputs_of_kernel = x_codes.to(torch.int8).to(device), x_scales.to(device)
    options = {"out_dtype": torch.float16, "chosen": chosen, "clamped": True}
    y = w4a8.w4a8_triton("qqq-g128", *inputs_of_kernel, *to(device, matrix), **options)
    assert torch.equal(y.cpu(), w4a8.qqq_group(x, *matrix))


@pytest.mark.bits
@pytest.mark.parametrize("form", FORMS)
def test_sums_beyond_float32s_integers_are_rounded_once(form, device, generator):
    """The largest activations times the largest weights, in float32."""
    matrix = integer_matrix(form, 16, 8192, generator)
    x = torch.ones(1, 8192)
    codes, scales = quantize_per_token(x)
    launched = integer_launcher(form)(
        codes.to(torch.int8).to(device), scales.to(device), *to(device, matrix), out_dtype=torch.float32
    )
    assert torch.equal(launched.cpu(), REFERENCES[form](x, *matrix))


def test_no_rows_make_no_output(device, generator):
    y = w4a16_triton(torch.empty(0, 128, dtype=torch.float16, device=device), *w4a16_matrix(16, 128, generator))
    assert y.shape == (0, 16)


def test_a_shape_that_has_no_kernel_is_refused(device, generator):
    codes, scales = integer_matrix("w8a8", 24, 64, generator)
    with pytest.raises(SpecquantError, match=r"24 x 64 .* multiple of 16"):
        w8a8_triton(*quantize_per_token_triton(torch.ones(1, 64)), codes, scales, out_dtype=torch.float16)


def test_tiles_hold_up_to_their_number_of_rows():
    assert [row_tile(rows) for rows in (1, 16, 17, 32, 33, 64, 65, 500)] == [16, 16, 32, 32, 64, 64, 128, 128]


@pytest.mark.parametrize("scheme", ["w4a16", "w4a8-qqq"])
def test_row_invariance_splits_alike_whatever_the_rows(scheme):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for outputs, inputs in ((8192, 8192), (57344, 8192), (640, 384)):
        splits = {configuration(scheme, outputs, inputs, rows, device, True).splits for rows in (1, 20, 64, 512)}
        assert splits == {configuration(scheme, outputs, inputs, 1, device).splits}


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that no kernel has written holds what no result may be."""
    empty = torch.empty

    def poison(*arguments, **options):
        tensor = empty(*arguments, **options)
        return tensor.fill_(torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max)

    monkeypatch.setattr(torch, "empty", poison)


SHAPES = [(10240, 8192), (8192, 28672), (57344, 8192), (4096, 14336), (11008 + 16, 4096)]
true_shapes = pytest.mark.parametrize(("outputs", "inputs"), SHAPES, ids=str)


def matrix_on_gpu(scheme, outputs, inputs):
    generator = torch.Generator("cuda").manual_seed(0)
    weight = torch.randn(outputs, inputs, device="cuda", generator=generator) * 0.02
    return quantize_linear(get_scheme(scheme), weight)


@pytest.mark.gpu
@true_shapes
def test_w4a16_on_true_shapes(outputs, inputs, poisoned):
    matrix = matrix_on_gpu("w4a16-g128", outputs, inputs)
    weight = matrix.operand(torch.float32).double()
    for dtype in (torch.float16, torch.bfloat16):
        for rows in (1, 2, 16, 29, 60, 64, 300):
            x = torch.randn(rows, inputs, device="cuda").to(dtype)
            y = matrix(x)
            assert torch.equal(y, matrix(x))
            error = relative_error(y, (x.double() @ weight.t()).cpu())
            assert error < (4e-4 if dtype == torch.float16 else 3e-3), (dtype, rows)


@pytest.mark.gpu
@true_shapes
@pytest.mark.parametrize("scheme", [s.name for s in SCHEMES.values() if s.activation_bits == 8 and not s.floating])
def test_integer_products_on_true_shapes(scheme, outputs, inputs, poisoned):
    matrix = matrix_on_gpu(scheme, outputs, inputs)
    operand = matrix.operand(torch.float32)
    for rows in (1, 13, 32, 64, 130):
        x = torch.randn(rows, inputs, device="cuda").half()
        assert torch.equal(matrix(x), matrix.multiply(x, operand)), rows


@pytest.mark.gpu
def test_tokens_are_quantized_as_the_reference_does():
    for features in (4096, 28672):
        x = torch.randn(65, features, device="cuda").half()
        codes, scales = quantize_per_token_triton(x)
        expected_codes, expected_scales = quantize_per_token(x)
        assert torch.equal(codes.float(), expected_codes)
        assert torch.equal(scales, expected_scales)


@pytest.mark.gpu
@pytest.mark.parametrize(("outputs", "inputs"), [(10240, 8192), (4096, 14336)])
@pytest.mark.parametrize("scheme", ["fp16", "w4a16-g128"])
def test_row_invariance(scheme, outputs, inputs):
    matrix = matrix_on_gpu(scheme, outputs, inputs)
    x = torch.randn(200, inputs, device="cuda").half()
    expected = matrix(x)
    matrix.row_invariant = True
    whole = matrix(x)
    assert relative_error(whole, expected.double().cpu()) < 1e-3
    for rows in (1, 2, 7, 16, 17, 32, 48, 64, 65):
        assert torch.equal(matrix(x[:rows]), whole[:rows]), rows
        assert torch.equal(matrix(x[-rows:]), whole[-rows:]), rows


@pytest.mark.gpu
@pytest.mark.parametrize("chosen", [Configuration(64, 1, 3, 4), Configuration(128, 3, 3, 8)])
def test_assembly_and_its_plain_twin_agree(chosen, generator):
    """One input at a time, so that a product shows a weight as it is."""
    x = torch.eye(256, dtype=torch.float16, device="cuda")
    matrix = to("cuda", w4a16_matrix(256, 256, generator))
    for dtype in (torch.float16, torch.bfloat16):
        widened = [w4a16_triton(x.to(dtype), *matrix, chosen=chosen, assembly=assembly) for assembly in (True, False)]
        assert torch.equal(*widened)
    x, scales = x.to(torch.int8), torch.ones(256, 1, device="cuda")
    for form in FORMS[1:]:
        matrix = to("cuda", integer_matrix(form, 256, 256, generator))
        options = {"out_dtype": torch.float32, "chosen": chosen}
        launch = partial(w4a8.w4a8_triton, form, x, scales, *matrix, **options)
        assert torch.equal(launch(assembly=True), launch(assembly=False)), form
    codes, matrix_scales, _ = integer_matrix("qqq-g128", 256, 256, generator)
    steps = torch.linspace(0, 20, 512).view(2, 256).half()  # weights of up to 160
    matrix = to("cuda", (codes, matrix_scales, pair_outputs(steps)))
    launch = partial(w4a8.w4a8_triton, "qqq-g128", x, scales, *matrix, **options, clamped=True)
    assert torch.equal(launch(assembly=True), launch(assembly=False))


@pytest.mark.gpu
def test_a_product_waits_for_the_one_before_it():
    """Each product's input is the output of the one before, which has not finished when it is launched."""
    first, second = matrix_on_gpu("w4a16-g128", 8192, 4096), matrix_on_gpu("w4a16-g128", 4096, 8192)
    x = torch.randn(16, 4096, device="cuda").half()
    expected = x
    for _ in range(4):
        for matrix in (first, second):
            expected = matrix(expected)
            torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = x
        for _ in range(4):
            y = second(first(y))
    for _ in range(50):
        graph.replay()
        assert torch.equal(y, expected)


COMPILE = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from specquant.kernels import w4a8, w4a8_fp8, w4a16

def ptx(kernel, capability, pointers, **constants):
    constants |= dict(OUTPUTS=128, ROWS=16, STAGES=3, WHOLE=True, OVERLAPPING=capability == 90, ASSEMBLY=True)
    constants |= dict(partials=None)
    types = dict(rows="i32", out_features="i32", in_features="i32") | pointers
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    constants = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    divisible = [*pointers, "out_features", "in_features"]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in divisible}
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, GPUTarget("cuda", capability, 32), dict(num_warps=4, num_stages=3)).asm["ptx"]

half = dict(x="*fp16", codes="*i32", scales="*i32", out="*fp16", arrivals="*i32")
whole = dict(x="*i8", token_scales="*fp32", codes="*u8", scales="*fp16", out="*fp16", arrivals="*i32")
grids = {"qqq": {}, "qoq": dict(grid="*u8"), "qqq-g128": dict(grid="*i32"), "qoq-g128": dict(grid="*i32")}
for capability in (80, 90):
    texts = [ptx(w4a16._kernel, capability, half)]
    for form, grid in grids.items():
        constants = dict(FORM=form) if grid else dict(FORM=form, grid=None)
        for clamped in (False, True) if form == "qqq-g128" else (False,):
            texts.append(ptx(w4a8._kernel, capability, whole | grid, CLAMPED=clamped, **constants))
    if capability == 90:
        texts.append(ptx(w4a8_fp8._kernel, 90, whole | dict(x="*fp8e4nv", scales="*i32")))
    for text in texts:
        product = "wgmma.mma_async" if capability == 90 else "mma.sync"
        loop = text[text.rindex("$L__BB", 0, text.index(product)):text.rindex(product) + 200]
        products = [line for line in loop.splitlines() if product in line]
        print(capability, len(products), all(line.count("{") == 2 for line in products), "st.shared" in loop)
"""


def test_on_hopper_no_weights_go_through_shared_memory():
    """Compiles for GPUs that are not here. On Hopper the loop multiplies weights from registers and stores nothing to
    shared memory; on Ampere the same kernels compile."""
    pytest.importorskip("triton")
    environment = {"TRITON_INTERPRET": "0", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 13
    for capability, products, from_registers, stores in lines:
        assert int(products) >= 8
        if capability == "90":
            assert (from_registers, stores) == ("True", "False")
