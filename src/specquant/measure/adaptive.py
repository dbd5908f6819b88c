"""Are adaptive draft sizes faster than the best static one? At true size, on recorded trees."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from specquant.decoding.budget import PLAIN, Prices, Way
from specquant.decoding.drafters.eagle2 import EagleDrafter
from specquant.decoding.drafters.replay import TracedBudget, TracedTrees
from specquant.decoding.generation import Generation
from specquant.decoding.method import ADAPTIVE
from specquant.decoding.pricing import measured_prices
from specquant.decoding.replay import ConfidenceTrace, Replay
from specquant.decoding.speculator import Speculator
from specquant.errors import SpecquantError
from specquant.measure.checks import require_at_least
from specquant.measure.measure import Measure, Measured, free, left_out
from specquant.measure.parameters import Common
from specquant.measure.replay import SyntheticModels, decode, random_prompt
from specquant.measure.throughput import measurements
from specquant.models import graphs
from specquant.models.device import default_dtype
from specquant.models.eagle import describe_head, head_scheme
from specquant.models.memory import NotEnoughMemory
from specquant.models.synthetic import Synthetic, synthetic_config
from specquant.planning.confidences import RECORDED, TOP_K, best_static, fit_confidence_map, read_confidences, simulate
from specquant.quant import get_scheme
from specquant.tables.results import read_results
from specquant.tables.schemas import TABLES

STATIC = ((8, 2), (16, 3), (24, 3), (32, 4), (48, 6), (60, 6))  # nodes and iterations, the probes of a calibration
MOST_ITERATIONS = 6
MOST_RUNS = 8
COLUMNS = (*TABLES["adaptive"].schema.columns,)
CHOICES = ("one by one", "static", "adaptive")


@dataclass(frozen=True)
class Parameters(Common):
    """What to decode.

    Attributes:
        model: The target: llama-3-8b or llama-3-70b, or a directory whose shapes are taken; its weights are random.
        schemes: Of the target, with commas.
        head_scheme: Of its EAGLE head.
        confidences: Recorded trees with their confidence, a file of `bench confidences` (default: those of the tiny
            models).
        repeats: How often each choice decodes all recorded trees that judge it; the run of the median time counts.
        prompt_length: Tokens in the cache before.
        processes: Fresh interpreters, for intervals.
        seed: Of weights and prompt.
    """

    model: str | Path
    schemes: tuple[str, ...] = ("w4a16-g128", "w8a8", "w4a8-qqq")
    head_scheme: str = "fp16"
    confidences: Path = Path(RECORDED)
    repeats: int = 3
    prompt_length: int = 512
    processes: int = 3
    seed: int = 0

    shared = ("confidences", "repeats", "prompt_length", "seed")

    def check(self) -> None:
        """Raises SpecquantError for an unknown scheme or model, numbers out of range, and traces that are none."""
        super().check()
        head_scheme(self.head_scheme)
        for scheme in self.schemes:
            get_scheme(scheme)
        synthetic_config(self.model)
        require_at_least(self, prompt_length=1, seed=0)
        if len(self.texts()) < 2:
            raise SpecquantError(
                f"{self.confidences} holds trees of fewer than two texts, one to calibrate by and one to judge: record "
                "more (specquant bench confidences)"
            )

    def texts(self) -> list[list[ConfidenceTrace]]:
        return read_confidences(read_results(self.confidences, table="confidences"), where=self.confidences)

    def most_tokens(self, texts: Sequence[Sequence[ConfidenceTrace]]) -> int:
        """That all drafts can bring, with the prompt's own."""
        return 1 + sum(map(len, texts)) * (MOST_ITERATIONS + 1)

    def unnamed(self) -> dict[str, Any]:
        return super().unnamed() | {"repeats": 1}

    def units(self) -> list[dict[str, Any]]:
        about: dict[str, Any] = {"model": Path(self.model).name, "weights": "synthetic"}
        about |= describe_head(self.head_scheme, None, synthetic_config(self.model))
        return [
            about | {"scheme": scheme, "process": process}
            for process in range(self.processes)
            for scheme in self.schemes
        ]

    def synthetic(self, unit: dict[str, Any]) -> list[Synthetic]:
        longest = self.prompt_length + self.most_tokens(self.texts()[1::2]) + MOST_ITERATIONS
        dtype = default_dtype(self.device, unit["scheme"])
        return [Synthetic(synthetic_config(self.model), unit["scheme"], longest, dtype)]


def run(parameters: Parameters, units: Sequence[dict]) -> Measured:
    """Decode the second half of the traces by each choice; the first half calibrates confidence."""
    texts = parameters.texts()
    confidence_map, judged = fit_confidence_map(texts[::2]), texts[1::2]
    for unit in units:
        (made,) = parameters.synthetic(unit)
        models = SyntheticModels(
            parameters.model,
            None,
            unit["scheme"],
            head_scheme=parameters.head_scheme,
            context_length=made.context_length,
            dtype=made.dtype,
            device=parameters.device,
            seed=parameters.seed,
        )
        try:
            vocab_size = models.target.config.vocab_size
            prices = measured_prices(models.target, models.head, MOST_ITERATIONS, TOP_K, vocab_size, confidence_map)
            yield unit, pd.DataFrame(decoded(models, parameters, judged, prices))
        except NotEnoughMemory as error:
            yield unit, left_out(unit, error)
        del models
        free(parameters.device)


def decoded(
    models: SyntheticModels, parameters: Parameters, texts: list[list[ConfidenceTrace]], prices: Prices
) -> Iterator[dict[str, Any]]:
    """A row for each choice. Static are `STATIC`, the best one by the prices, and the one that adaptive ends up with,
    so that choosing can be told from what is chosen. predicted_tokens_per_s: by the prices, which were measured before,
    on the same traces."""
    vocab_size = models.target.config.vocab_size
    prompt = random_prompt(vocab_size, parameters.prompt_length, parameters.seed)
    traces = [trace for text in texts for trace in text]
    ended_with: list[Way] = []

    def row(choice: str, tree: tuple[int, int]) -> dict[str, Any]:
        adapts = tree[0] == ADAPTIVE
        if tree[1]:
            size = TracedBudget(prices, TOP_K).largest if adapts else tree[0]
            eagle = EagleDrafter(models.head, size, tree[1], TOP_K, vocab_size)
            drafter = TracedTrees(eagle, traces)
            level, most = Speculator(models.target, drafter), parameters.most_tokens(texts)

            def run() -> Generation:
                if adapts:  # each run knows of these texts what it has read of them
                    eagle.budget = TracedBudget(prices, TOP_K)
                told = decode(level, prompt, Replay([0.0], 0.0), most, lambda: drafter.turn >= len(traces))
                if eagle.budget is not None:
                    ended_with.append(eagle.budget.best)
                return told
        else:
            run = partial(decode, Speculator(models.target), prompt, Replay([0.0], 0.0), 1 + len(traces))
        run()  # captures graphs
        generation = without_captures(run, parameters.repeats)
        expected = simulate(texts, prices, None if adapts else tree)
        about = {"choice": choice, "draft_size": max(tree[0], 0), "iterations": tree[1], "acceptance": "traced"}
        told = {"predicted_tokens_per_s": 1e3 * expected.tokens_per_ms}
        return {name: value for name, value in (about | measurements(generation) | told).items() if name in COLUMNS}

    one_by_one, static, adaptive = CHOICES
    yield row(one_by_one, PLAIN)
    trees = [tree for tree in dict.fromkeys((*STATIC, best_static(texts, prices)[0])) if tree[1]]
    yield from (row(static, tree) for tree in trees)
    yield row(adaptive, (ADAPTIVE, MOST_ITERATIONS))
    if ended_with[-1] not in (PLAIN, *trees):
        yield row(static, ended_with[-1])


def without_captures(decoded: Callable[[], Generation], repeats: int) -> Generation:
    """Of so many runs in which no CUDA graph was made, the one whose time is the median, the lower of two.

    Raises SpecquantError where too many runs made some.
    """
    runs: list[Generation] = []
    for _ in range(MOST_RUNS + repeats):
        before = graphs.captures
        generation = decoded()
        runs += [generation] if graphs.captures == before else []
        if len(runs) == repeats:
            return sorted(runs, key=lambda run: run.decode_ms)[(repeats - 1) // 2]
    raise SpecquantError(f"more than {MOST_RUNS} runs made new CUDA graphs, so no time is that of steps alone")


MEASURE = Measure((TABLES["adaptive"],), Parameters, run, "CUDA events and host clock, sum")
