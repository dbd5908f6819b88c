"""All benchmarks by name. To add one, add a module to this package that defines BENCHMARK."""

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from specquant import benchmarks
from specquant.benchmarks.benchmark import Benchmark, read_questions
from specquant.errors import unknown

BENCHMARK_FILES = Path("results/benchmarks")  # where the files of the benchmarks are put and looked for


def _find_benchmarks() -> dict[str, Benchmark]:
    """The BENCHMARK of each module that defines one; those with the longest answers come first."""
    modules = [import_module(f"{benchmarks.__name__}.{module.name}") for module in iter_modules(benchmarks.__path__)]
    found = [module.BENCHMARK for module in modules if "BENCHMARK" in vars(module)]
    return {benchmark.name: benchmark for benchmark in sorted(found, key=lambda each: -each.max_new_tokens)}


BENCHMARKS = _find_benchmarks()


def get_benchmark(name: str) -> Benchmark:
    """The benchmark of a name. Raises SpecquantError for another."""
    if name not in BENCHMARKS:
        raise unknown("benchmark", name, BENCHMARKS)
    return BENCHMARKS[name]


def files_of(names: Iterable[str], data_dir: str | Path) -> dict[str, str]:
    """The SHA-256 of some benchmarks' files. Raises SpecquantError for an unknown name, and as `read_questions`."""
    return {name: read_questions(get_benchmark(name), data_dir)[1] for name in sorted(names)}


def published() -> list[str]:
    """The names of those whose files are not this project's own, but have an address."""
    return [name for name, benchmark in BENCHMARKS.items() if benchmark.url]
