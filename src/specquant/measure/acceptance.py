"""How many drafted tokens does a model accept by each method, on the benchmarks' questions?

The paper's methods have the paper's settings, the others their defaults. Of a few questions, each step is kept in
traces.csv, to be replayed at other sizes. Nothing is timed, so many processes may share a GPU.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from specquant.benchmarks.benchmark import Question, read_questions
from specquant.benchmarks.registry import BENCHMARK_FILES, files_of, get_benchmark
from specquant.decoding import Speculator, acceptance_rule
from specquant.decoding.drafters import get_method, methods_with
from specquant.decoding.method import PAPER_PLANS, DraftSettings, Plan
from specquant.decoding.models import Models
from specquant.decoding.step import Step
from specquant.decoding.traces import written
from specquant.errors import SpecquantError
from specquant.measure.asking import Answer, Asker, longest_prompt
from specquant.measure.checks import later_seed, require_at_least
from specquant.measure.measure import Measure, Measured, free
from specquant.measure.parameters import Common
from specquant.models.companions import is_own
from specquant.models.device import choose_device, dtype_parameters, named_dtype
from specquant.models.hub import resolve_model
from specquant.models.loading import load_tokenizer
from specquant.models.options import DType, ModelOptions
from specquant.models.targets import calibration_text_beside, possible_schemes, quantized_target
from specquant.progress import tqdm
from specquant.tables.intervals import over_questions_with
from specquant.tables.provenance import without_local_paths
from specquant.tables.schemas import ACCEPTANCE, TRACES


@dataclass(frozen=True, kw_only=True)
class Parameters(Common):
    """What to answer.

    Attributes:
        model: The target: a directory with fp16 weights and the drafters beside it, or smollm2.
        intermediate: The intermediate model; or self: and a scheme, for the target in fewer bits (default: beside the
            target).
        share_cache: Let an intermediate model that is the target in fewer bits read the target's keys and values.
        name: What tables call the target (default: the last part of its path).
        benchmarks: Those to answer, of {benchmarks}, with commas.
        methods: Of {methods}, with commas.
        schemes: Of the target, with commas.
        temperatures: Of sampling, with commas; 0 is greedy.
        limit: The most questions of each task, spread evenly over it.
        max_new_tokens: The most tokens of one turn.
        traced_questions: The most questions of each task whose steps are kept in traces.csv.
        data_dir: Where the files of benchmarks are (default: results/benchmarks).
        keep_targets_in: The folder for quantized copies of the target.
        seed: Of sampling.
        dtype: What models compute in (default: as for `generate`).
    """

    model: str | Path
    intermediate: str | None = None
    share_cache: bool = False
    name: str = ""
    benchmarks: tuple[str, ...] = ("spec-bench", "humaneval", "gsm8k")
    methods: tuple[str, ...] = ("vanilla", "eagle2", "hierarchical")
    schemes: tuple[str, ...] = ("fp16",)
    temperatures: tuple[float, ...] = (0.0,)
    limit: int = 80
    max_new_tokens: int = 64
    traced_questions: int = 8
    data_dir: Path = BENCHMARK_FILES
    keep_targets_in: Path = Path("results/targets")
    seed: int = 0
    dtype: DType | None = None

    shared = ("benchmark_files", "limit", "max_new_tokens", "traced_questions", "seed")

    @property
    def benchmark_files(self) -> dict[str, str]:
        """The SHA-256 of each benchmark's file."""
        return files_of(self.benchmarks, self.data_dir)

    @property
    def options(self) -> ModelOptions:
        """The target, a relative path below the project root; its companions are looked for beside it there."""
        named: str | Path | None = self.intermediate
        if named is not None and not self.drafts_itself:
            named = resolve_model(named)
        return ModelOptions(
            resolve_model(self.model), intermediate=named, share_cache=self.share_cache, device=self.device
        )

    @property
    def drafts_itself(self) -> bool:
        """Whether the intermediate model is the target in fewer bits."""
        return is_own(self.intermediate)

    def check(self) -> None:
        """Raises SpecquantError as `Common.check`, and for what is missing or does not fit together."""
        super().check()
        require_at_least(self, limit=1, traced_questions=1)
        for temperature in self.temperatures:
            acceptance_rule(temperature, seed=self.seed)
        possible_schemes(",".join(self.schemes), self.model)  # first, for it says where there is no model
        for scheme in self.schemes if self.drafts_itself else ("fp16",):
            models = Models.of(self.rounded(scheme))
            for method in self.methods:
                models.check_companions(method)
        for benchmark in self.benchmarks:
            self.questions(benchmark)

    def same(self) -> dict[str, Any]:
        named: dict[str, Any] = {} if self.intermediate is None else {"intermediate": self.intermediate}
        named |= {"target": str(self.model), "share_cache": self.share_cache}
        return named | super().same() | dtype_parameters(self.device, self.dtype)

    def unnamed(self) -> dict[str, Any]:
        return super().unnamed() | {"target": without_local_paths(str(self.model)), "share_cache": False}

    def model_paths(self) -> dict[str, str | Path]:
        companions = {which: path for which, path in self.options.companions.items() if path}
        return {self.name or Path(self.model).name: self.model} | companions

    def units(self) -> list[dict[str, Any]]:
        about = {"model": self.name or Path(self.model).name, "weights": "trained"}
        return [
            about
            | {"scheme": scheme, "temperature": float(temperature), "method": method}
            | {"benchmark": benchmark, "task": task}
            for scheme in self.schemes
            for temperature in self.temperatures
            for method in self.methods
            for benchmark in self.benchmarks
            for task in self.questions(benchmark)
        ]

    def questions(self, benchmark: str) -> dict[str, list[Question]]:
        """Those of each task. Raises SpecquantError where they are not there."""
        questions, _ = read_questions(get_benchmark(benchmark), self.data_dir, self.limit)
        return {task: list(some) for task, some in groupby(questions, key=lambda question: question.task)}

    def models(self, scheme: str) -> Models:
        """The target in a scheme, with the companions that lie beside its fp16 weights.

        Where it drafts for itself, both are rounded from those weights.
        """
        if self.drafts_itself:
            return Models.of(self.rounded(scheme))
        text = calibration_text_beside(self.model)
        target = quantized_target(self.model, scheme, self.keep_targets_in, device=self.device, calibration_text=text)
        companions: dict[str, Any] = dict(self.options.companions)
        dtype, device = named_dtype(self.dtype), choose_device(self.device)
        return Models(target, **companions, dtype=dtype, device=device)

    def rounded(self, scheme: str) -> ModelOptions:
        """Of a target whose fp16 weights are rounded to a scheme as they are loaded."""
        return replace(self.options, scheme=None if scheme == "fp16" else scheme, dtype=self.dtype)


def plans_of(method: str) -> list[Plan]:
    """How a method drafts: in the paper's settings, or in its own defaults if the paper does not have it."""
    return [plan for plan in PAPER_PLANS if plan.method == method] or [get_method(method).plan(DraftSettings())]


def answer(parameters: Parameters, asker: Asker, task: str, temperature: float) -> Iterator[Answer]:
    """Answer the questions of a task in turn; the draws of each do not depend on those before."""
    questions = parameters.questions(asker.benchmark.name)[task]
    for place, question in enumerate(tqdm(questions, desc=task, unit="question", leave=False)):
        yield asker.ask(question, acceptance_rule(temperature, seed=later_seed(parameters.seed, place)))


def whole_steps(answer: Answer) -> list[Step]:
    """Those that no stop condition cut."""
    lengths = zip(answer.together.steps, answer.together.accepted_lengths, strict=True)
    return [step for step, length in lengths if step.accepted_length == length]


def figures(answered: Sequence[Answer], drafts_sequences: bool) -> dict[str, Any]:
    """What some questions say of a method.

    Args:
        answered: the questions.
        drafts_sequences: whether drafts are the intermediate model's sequences. Then judged_tokens are those drafted
            tokens whose predecessors were accepted, and acceptance_rate the share of them that was accepted. Greedily
            that is the agreement with that model, but for the positions behind drafts that were accepted whole.

    Returns:
        A row of acceptance.csv.
    """
    generations = [each.together for each in answered]
    steps = [step for generation in generations for step in generation.steps]
    rounds = [length for step in steps for length in step.inner_accepted_lengths]
    accepted, judged = [0] * len(answered), [0] * len(answered)
    for place, each in enumerate(answered if drafts_sequences else ()):
        accepted[place] = sum(len(step.path) for step in whole_steps(each))
        judged[place] = sum(min(len(step.path) + 1, len(step.tree) - 1) for step in whole_steps(each))
    return {
        "acceptance": "measured",
        "questions": len(answered),
        "new_tokens": sum(len(generation.token_ids) for generation in generations),
        "cut_tokens": sum(each.cut_tokens for each in answered),
        "steps": len(steps),
        **over_questions_with(
            "accepted_length",
            [sum(generation.accepted_lengths) for generation in generations],
            [len(generation.steps) for generation in generations],
        ),
        "mean_draft_size": fmean([len(step.tree) for step in steps]) if steps else float("nan"),
        "inner_rounds": len(rounds) / len(steps) if steps else float("nan"),
        "inner_accepted_length": fmean(rounds) if rounds else float("nan"),
        "judged_tokens": sum(judged),
        **over_questions_with("acceptance_rate", accepted, judged),
    }


def run(parameters: Parameters, units: Sequence[dict]) -> Measured:
    """Answer the questions of each unit; a scheme's models are loaded once for all of its units."""
    tokenizer = load_tokenizer(parameters.options.model)
    for scheme, of_scheme in groupby(units, key=lambda unit: unit["scheme"]):
        models = parameters.models(scheme)
        speculators: dict[Plan, Speculator] = {}  # kept, for each captures graphs
        for unit in of_scheme:
            rows: list[dict[str, Any]] = []
            traces: list[dict[str, Any]] = []
            whole = True
            for plan in plans_of(unit["method"]):
                speculator = speculators.setdefault(plan, models.speculator(plan))
                longest = longest_prompt([speculator], parameters.max_new_tokens)
                about = tokenizer, get_benchmark(unit["benchmark"]), parameters.max_new_tokens, longest
                answered = list(answer(parameters, Asker(speculator, *about), unit["task"], unit["temperature"]))
                size = {name: getattr(plan, name) for name in ("draft_size", "iterations", "min_draft_length")}
                rows.append(size | figures(answered, plan.method in methods_with("intermediate")))
                of_plan = traced(answered, parameters.traced_questions, size)
                whole, traces = whole and bool(of_plan), traces + of_plan
            if whole:
                yield unit, (pd.DataFrame(rows), pd.DataFrame(traces))
            else:
                yield unit, _without_steps(unit)
        del models, speculators
        free(parameters.device)


def _without_steps(unit: dict) -> SpecquantError:
    """Why a unit has no rows: answers ended before a step was whole."""
    return SpecquantError(
        f"{unit['task']} of {unit['benchmark']} by {unit['method']} is left out: no answer holds a whole step: let "
        "answers be longer (--max-new-tokens), or take more questions (--limit)"
    )


def traced(answered: Sequence[Answer], most: int, about: dict[str, int]) -> list[dict[str, Any]]:
    """The steps of at most so many questions, spread evenly, with what their rows say besides."""
    chosen = [each for each in answered if whole_steps(each)]
    some = [chosen[place * len(chosen) // most] for place in range(most)] if len(chosen) > most else chosen
    return [about | {"id": each.question.id, "steps": written(whole_steps(each))} for each in some]


MEASURE = Measure((ACCEPTANCE, TRACES), Parameters, run, "none")
