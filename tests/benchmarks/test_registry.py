"""Benchmarks are found by name, and a module that defines one is enough."""

from pathlib import Path

import pytest

from specquant import benchmarks
from specquant.benchmarks.registry import BENCHMARKS, get_benchmark, published
from specquant.errors import SpecquantError
from tests.questions import NAMES


def test_an_unknown_benchmark_is_refused():
    with pytest.raises(SpecquantError, match="unknown benchmark 'mmlu': choose one of mt-bench, spec-bench"):
        get_benchmark("mmlu")


def test_every_module_that_defines_a_benchmark_is_found_and_the_papers_keep_their_order():
    modules = Path(benchmarks.__path__[0]).glob("*.py")
    assert len(BENCHMARKS) == sum("\nBENCHMARK = " in module.read_text() for module in modules)
    for names in (BENCHMARKS, published()):
        assert [name for name in names if name in NAMES] == ["mt-bench", "spec-bench", "humaneval", "gsm8k"]
    assert [get_benchmark(name).name for name in BENCHMARKS] == list(BENCHMARKS)
