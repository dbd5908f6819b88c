"""How fast the linear products are: each layer of a model alone, on a GPU, with weights that no cache holds."""

import copy
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from specquant.errors import SpecquantError
from specquant.files import resolve, write_file
from specquant.kernels.fp8 import multiplies_e4m3
from specquant.kernels.launch import triton
from specquant.kernels.products import Configuration
from specquant.kernels.stream import read_triton
from specquant.kernels.w4a16_hopper import WarpGroups
from specquant.measure import kernels
from specquant.measure.passes import DRAFT_SIZES
from specquant.quant import PackedLinear, get_scheme, quantize_linear, scheme_names
from specquant.tables.results import write_results

# Outputs and inputs of the four linear layers, q, k, v and gate, up fused.
LAYERS = {
    "llama-3-8b": {
        "qkv_proj": (6144, 4096),
        "o_proj": (4096, 4096),
        "gate_up_proj": (28672, 4096),
        "down_proj": (4096, 14336),
    },
    "llama-3-70b": {
        "qkv_proj": (10240, 8192),
        "o_proj": (8192, 8192),
        "gate_up_proj": (57344, 8192),
        "down_proj": (8192, 28672),
    },
}
BENCH_SCHEMES = tuple(name for name in scheme_names("all") if not name.endswith("-rot"))  # rotation changes no product
FP8_SCHEMES = ("fp8", "w4a8-fp8-g128")  # not the paper's
ROTATED_BYTES = 300e6  # weights are rotated through more than this, several times an L2 cache
GRAPH_US = 1500  # a graph holds launches for about this long
REPEATS = 20
WARM_UP_MS = 200.0  # of what is timed, before it is: what ran before leaves the card in another state
SETTLING_REPEATS = 100  # after matrices were made: until then the first times are up to 15% longer


def bench_schemes() -> tuple[str, ...]:
    """The schemes that are measured by default: those in FP8 where this machine's GPU multiplies it."""
    return BENCH_SCHEMES + (FP8_SCHEMES if multiplies_e4m3("cuda") else ())


def measure_kernels(
    models: Sequence[str] = tuple(LAYERS),
    schemes: Sequence[str] = BENCH_SCHEMES,
    draft_sizes: Sequence[int] = DRAFT_SIZES,
    repeats: int = REPEATS,
    device: str = "cuda",
    row_invariant: bool = False,
) -> Iterator[dict]:
    """Yield one row for each model, layer, scheme and draft size: the time of one product of that many tokens.

    Activations are quantized before; rotated activations, outputs and weights are random. Times are of CUDA graphs'
    replays, divided by the launches in a graph. bytes and operations are what the product cannot do without.
    row_invariant: of the kernels that give a token the same bits whatever the number of tokens.
    """
    require_gpu(device)
    for model, layer, (outputs, inputs) in layers(models):
        for scheme in schemes:
            matrices = synthetic_matrices(scheme, outputs, inputs, device)
            for matrix in matrices:
                matrix.row_invariant = row_invariant
            ordinary = "cuBLAS" if scheme == "fp16" else "specquant"
            product_times_us(matrices, 1, SETTLING_REPEATS)
            in_random_order = random.Random(f"{model} {layer} {scheme}").sample(list(draft_sizes), len(draft_sizes))
            for draft_size in tqdm(in_random_order, desc=f"{model} {layer} {scheme}", leave=False):
                times = product_times_us(matrices, draft_size, repeats, warm_up_ms=WARM_UP_MS)
                bytes_per_token = inputs * get_scheme(scheme).activation_bits // 8 + 2 * outputs
                yield {
                    "model": model,
                    "layer": layer,
                    "scheme": scheme,
                    "implementation": "specquant, row-invariant" if row_invariant else ordinary,
                    "draft_size": draft_size,
                    "in_features": inputs,
                    "out_features": outputs,
                    "time_us": round(times.median().item(), 3),
                    "p10_us": round(times.quantile(0.1).item(), 3),
                    "p90_us": round(times.quantile(0.9).item(), 3),
                    "bytes": matrices[0].nbytes + draft_size * bytes_per_token,
                    "operations": 2 * draft_size * inputs * outputs,
                    "repeats": repeats,
                    "weights": "synthetic",
                }
            del matrices


def measure_ceilings(repeats: int = REPEATS, device: str = "cuda") -> pd.DataFrame:
    """What the GPU reaches at best: read bandwidth, copy bandwidth and matrix rates (what, value, unit, weights)."""
    require_gpu(device)
    rows = []

    def record(what: str, amount: float, unit: str, launch: Callable[[int], object]) -> None:
        value = amount / replay_times_us(launch, 4, repeats).median().item() / 1e6
        rows.append({"what": what, "value": value, "unit": unit, "weights": "synthetic"})

    numbers = torch.randint(0, 1 << 30, (1 << 30,), dtype=torch.int32, device=device)
    first, second = numbers.chunk(2)
    record("read-only stream", numbers.nbytes, "TB/s", lambda _: read_triton(numbers))
    record("device-to-device copy (bytes read and written)", numbers.nbytes, "TB/s", lambda _: first.copy_(second))
    size = 8192
    a, b = torch.randn(2, size, size, device=device, dtype=torch.float16)
    record("fp16 product (cuBLAS)", 2 * size**3, "TFLOP/s", lambda _: a @ b.t())
    c, d = torch.randint(-127, 128, (2, size, size), device=device, dtype=torch.int8)
    record("int8 product (cuBLASLt)", 2 * size**3, "TOP/s", lambda _: torch._int_mm(c, d.t()))
    return pd.DataFrame(rows)


def kernel_name(scheme: str) -> str:
    """The name that a scheme's product has in the table of configurations."""
    return "w4a16" if scheme.startswith("w4a16") else scheme


def layers(models: Iterable[str]) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Model, layer and shape [out, in] of every layer. Raises SpecquantError for an unknown model."""
    for model in models:
        if model not in LAYERS:
            raise SpecquantError(f"unknown model {model!r}: choose one of {', '.join(LAYERS)}")
        for layer, shape in LAYERS[model].items():
            yield model, layer, shape


def synthetic_matrices(scheme: str, outputs: int, inputs: int, device: str) -> list[PackedLinear]:
    """As many quantized matrices [out, in] as `ROTATED_BYTES` hold: one of random numbers, and copies elsewhere."""
    generator = torch.Generator(device).manual_seed(0)
    weight = torch.randn(outputs, inputs, device=device, generator=generator) * 0.02
    first = quantize_linear(get_scheme(scheme), weight)
    return [first] + [copy.deepcopy(first) for _ in range(math.ceil(ROTATED_BYTES / first.nbytes) - 1)]


def product_times_us(
    matrices: Sequence[PackedLinear],
    rows: int,
    repeats: int,
    chosen: Configuration | WarpGroups | None = None,
    warm_up_ms: float = 0.0,
) -> torch.Tensor:
    """Times in microseconds [repeats] of one product of `rows` random tokens, the matrices taken in turn."""
    device = next(matrices[0].buffers()).device
    x = torch.randn(rows, matrices[0].in_features, dtype=torch.float16, device=device)
    inputs = matrices[0].kernel_inputs(x)
    return replay_times_us(
        lambda turn: matrices[turn % len(matrices)].run_kernel(inputs, torch.float16, chosen),
        len(matrices),
        repeats,
        warm_up_ms,
    )


def replay_times_us(launch: Callable[[int], object], turns: int, repeats: int, warm_up_ms: float = 0.0) -> torch.Tensor:
    """Times in microseconds [repeats] of launch(turn), from replays of a CUDA graph that takes all turns in order,
    behind at least warm_up_ms of such replays."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def elapsed_us(run: Callable[[], object]) -> float:
        start.record()
        run()
        stop.record()
        stop.synchronize()
        return 1e3 * start.elapsed_time(stop)

    launch(0)
    rounds = max(1, round(GRAPH_US / max(elapsed_us(lambda: [launch(turn) for turn in range(turns)]), 1)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for turn in range(turns):
                launch(turn)
    warmed_up_us = elapsed_us(graph.replay)
    while warmed_up_us < 1e3 * warm_up_ms:
        warmed_up_us += elapsed_us(graph.replay)
    return torch.tensor([elapsed_us(graph.replay) for _ in range(repeats)]) / (rounds * turns)


def require_gpu(device: str) -> None:
    """Raises SpecquantError where kernels cannot run on `device`."""
    if triton is None or not torch.cuda.is_available() or torch.device(device).type != "cuda":
        raise SpecquantError(f"kernels are measured on an NVIDIA GPU with Triton, and {device} here is none")


def record_kernels(
    models: Sequence[str],
    schemes: Sequence[str],
    out_dir: str | Path,
    tune_s: float = 0,
    draft_sizes: Sequence[int] = kernels.DRAFT_SIZES,
    repeats: int = kernels.REPEATS,
) -> list[Path]:
    """Measure every linear product, and what the GPU reaches at best, on this machine's GPU; returns the tables' paths.

    Writes kernels.csv, after every row, and ceilings.csv below `out_dir`. tune_s: seconds to look for better
    configurations in before.
    """
    parameters = {"models": list(models), "schemes": list(schemes), "draft_sizes": list(draft_sizes)}
    how = {"device": "cuda", "repeats": repeats, "clock": "replays of a CUDA graph, median"}
    if tune_s:
        kernels.tune(models, schemes, tune_s)
    ceilings = write_results(kernels.measure_ceilings(repeats), resolve(out_dir) / "ceilings.csv", parameters, **how)
    path, rows = ceilings.with_name("kernels.csv"), []
    for row in kernels.measure_kernels(models, schemes, draft_sizes, repeats):
        rows.append(row)
        write_file(path, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
    return [write_results(pd.DataFrame(rows), path, parameters, **how), ceilings]


def record_row_invariance(
    models: Sequence[str],
    schemes: Sequence[str],
    out_dir: str | Path,
    draft_sizes: Sequence[int] = (1, 16, 32, 64),
    repeats: int = kernels.REPEATS,
) -> Path:
    """Measure the row-invariant products as `record_kernels` does the ordinary ones: kernels_row_invariant.csv."""
    parameters = {"models": list(models), "schemes": list(schemes), "draft_sizes": list(draft_sizes)}
    rows = kernels.measure_kernels(models, schemes, draft_sizes, repeats, row_invariant=True)
    how = {"device": "cuda", "repeats": repeats, "clock": "replays of a CUDA graph, median"}
    return write_results(pd.DataFrame(rows), resolve(out_dir) / "kernels_row_invariant.csv", parameters, **how)
