"""Does every method write what decoding one by one writes, at true size, and how fast is it? With planted drafts.

Random weights agree with no drafter. So each text is decoded one by one first, and then drafted by each method with
errors at a stated rate; the ordinary greedy rule verifies. Acceptance is then what verification finds, and every token
is compared. Models and heads really run: only what they say is replaced.

A text ends at its first difference. Behind it the target writes something else, which is not known, so that there is
nothing to draft and nothing to compare.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from specquant.decoding import Drafter, DraftTree, EagleDrafter, Generation, Greedy, Speculator, Step, Verdict
from specquant.decoding.drafters import get_method, methods_with
from specquant.decoding.drafters.planted import Errors, PlantedDrafts, PlantedModel, judged_and_accepted
from specquant.decoding.method import PAPER_PLANS, PLAN_FIELDS, DraftSettings, Plan
from specquant.errors import SpecquantError
from specquant.measure.card import CardState
from specquant.measure.checks import require_at_least, require_weights
from specquant.measure.measure import Measure, Measured, free, left_out
from specquant.measure.parameters import Common
from specquant.measure.replay import SyntheticModels
from specquant.measure.throughput import first_difference, measurements
from specquant.models.device import default_dtype, dtype_parameters, named_dtype
from specquant.models.eagle import describe_head, require_count
from specquant.models.graphs import GraphedLlama, graphed
from specquant.models.llama import Llama
from specquant.models.loading import load_model
from specquant.models.memory import NotEnoughMemory
from specquant.models.names import SHAPES, source_of
from specquant.models.options import DType
from specquant.models.quantize import CALIBRATION_TEXT
from specquant.models.synthetic import (
    Synthetic,
    code_shares,
    require_integer_codes,
    require_room,
    synthetic_config,
    synthetic_model,
)
from specquant.models.targets import quantized_target
from specquant.planning.trees import RECORDED_TREES, tree_shapes, trees_of
from specquant.quant import get_scheme
from specquant.tables.intervals import PROCESS, rule_of_three
from specquant.tables.results import read_results
from specquant.tables.schemas import PLANTED

# A sequence that nothing drafts: what verifying costs alone, also where there is no intermediate model.
SEQUENCE = Plan("sequence", min_draft_length=9)
MOST_TOKENS = 10**7  # of a process, which keeps all of its texts
NONE = "none"  # where there is no first difference
TOLD_OF = ["model", "scheme", "weights", "codes", "row_invariant", *PLAN_FIELDS]  # what `losslessness` has a row for


@dataclass(frozen=True)
class Parameters(Common):
    """What to decode.

    Attributes:
        model: The target: llama-3-8b or llama-3-70b, or a model directory.
        intermediate: Likewise; its weights are random (default: none, and no method that needs one).
        schemes: Of the target, with commas.
        weights: The target's own, "trained", or "synthetic", random ones of its shapes (default: trained, if it has
            any). Companions are synthetic, since what they say is replaced.
        methods: Of the paper's, and "sequence", with commas (default: those whose models are there).
        error_rate: The probability that a token drafted for the target is wrong.
        inner_error_rate: Likewise of the trees that are drafted for the intermediate model.
        tokens: New ones that each process decodes at least, by each method, with and without row invariance.
        new_tokens: Behind each prompt; then comes a fresh one.
        prompt_length: Tokens of each prompt, which are random.
        head_scheme: Of the EAGLE heads.
        head_vocabulary: Tokens that the heads know (default: all).
        intermediate_scheme: Of the intermediate model.
        trees: Shapes of trees, a CSV file, that drafts take (default: those of the tiny models).
        row_invariance: Of the target: "no", "yes", or both, with commas.
        processes: Fresh interpreters, each with prompts and errors of its own.
        seed: Of weights, prompts and errors.
        dtype: What models compute in (default: float16 on a GPU; on a CPU float32, or float64 where
            activations have 8 bits).
        codes: Of synthetic weights: "uniform", or "trained", drawn as often as a trained model has each.
        codes_from: That trained model's directory, in W4A16-g128; by default SmolLM2's intermediate model.
        keep_targets_in: Where quantized copies of trained models are kept.
        calibration_text: What they read while they are quantized, a file.
    """

    model: str | Path
    intermediate: str | Path | None = None
    schemes: tuple[str, ...] = ("w4a16-g128",)
    weights: Literal["trained", "synthetic"] | None = None
    methods: tuple[str, ...] = ()
    error_rate: float = 0.15
    inner_error_rate: float = 0.15
    tokens: int = 2048
    new_tokens: int = 256
    prompt_length: int = 512
    head_scheme: str = "fp16"
    head_vocabulary: int | None = None
    intermediate_scheme: str = "w4a16-g128"
    trees: Path = Path(RECORDED_TREES)
    row_invariance: tuple[Literal["no", "yes"], ...] = ("no", "yes")
    processes: int = 3
    seed: int = 0
    dtype: DType | None = None
    codes: Literal["uniform", "trained"] = "uniform"
    codes_from: Path = Path("data/smollm2/intermediate")
    keep_targets_in: Path = Path("results/targets")
    calibration_text: Path = Path(CALIBRATION_TEXT)

    shared = ("error_rate", "inner_error_rate", "new_tokens", "prompt_length", "methods", "trees", "seed")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weights", self.weights or ("synthetic" if str(self.model) in SHAPES else "trained"))
        if self.weights == "trained":
            object.__setattr__(self, "codes", "trained")

    def check(self) -> None:
        """Raises SpecquantError for an unknown scheme, model or method, for numbers out of range, and for trees that
        were not recorded."""
        super().check()
        for scheme in (self.head_scheme, self.intermediate_scheme):
            get_scheme(scheme)
        require_at_least(self, tokens=1, new_tokens=1, prompt_length=1, seed=0)
        if self.tokens > MOST_TOKENS:
            raise SpecquantError(f"tokens is {self.tokens}: give at most {MOST_TOKENS}, and rather more processes")
        require_weights(self.model, self.weights)
        if self.weights == "synthetic" and self.codes == "trained":
            for scheme in self.schemes:
                require_integer_codes(scheme)
        vocab_size = synthetic_config(self.source).vocab_size
        for rate in (self.error_rate, self.inner_error_rate):
            Errors(rate, vocab_size)
        require_count(self.head_vocabulary, vocab_size)
        if self.intermediate is not None:
            require_count(self.head_vocabulary, synthetic_config(self.intermediate).vocab_size)
        trees = read_results(self.trees, table="trees")
        for plan in self.plans():
            if which := _trees_of(plan):
                tree_shapes(trees_of(trees, which), *plan.tree)

    @property
    def source(self) -> str | Path:
        """A name in SHAPES, or where the target's directory is."""
        return source_of(self.model)

    def same(self) -> dict[str, Any]:
        # Also of codes that are drawn uniformly: one table holds both.
        return super().same() | {"codes_from": str(self.codes_from)} | dtype_parameters(self.device, self.dtype)

    def unnamed(self) -> dict[str, Any]:
        return super().unnamed() | {"codes_from": str(self.codes_from)}

    def model_paths(self) -> dict[str, str | Path]:
        return super().model_paths() | {"codes_from": self.codes_from}

    def units(self) -> list[dict[str, Any]]:
        about: dict[str, Any] = {"model": Path(self.model).name, "weights": self.weights, "codes": self.codes}
        about |= describe_head(self.head_scheme, self.head_vocabulary, synthetic_config(self.source))
        about |= {"intermediate": Path(self.intermediate).name if self.intermediate else "none"}
        about |= {"intermediate_scheme": self.intermediate_scheme, "tokens": self.tokens}
        return [
            about | {"scheme": scheme, "row_invariant": row_invariant, "process": process}
            for process in range(self.processes)
            for scheme in self.schemes
            for row_invariant in self.row_invariance
        ]

    def synthetic(self, unit: dict[str, Any]) -> list[Synthetic]:
        dtype = named_dtype(self.dtype) or default_dtype(self.device, unit["scheme"])
        models = [(self.source, unit["scheme"])] if self.weights == "synthetic" else []
        if self.intermediate is not None and {plan.method for plan in self.plans()} & {*methods_with("intermediate")}:
            models.append((self.intermediate, self.intermediate_scheme))
        return [Synthetic(synthetic_config(name), scheme, self.context_length, dtype) for name, scheme in models]

    def plans(self) -> list[Plan]:
        """The plans to decode by, decoding one by one first. Raises SpecquantError for a method that is none of those,
        or that needs an intermediate model where none was given."""
        plans = (*PAPER_PLANS, SEQUENCE)
        without = [] if self.intermediate is not None else methods_with("intermediate")
        possible = list(dict.fromkeys(plan.method for plan in plans if plan.method not in without))
        for method in self.methods:
            if method not in possible:
                needs = ": it needs an intermediate model" if method in without else ""
                raise SpecquantError(f"{method!r} cannot be measured{needs}: choose of {', '.join(possible)}")
        chosen = {*(self.methods or possible), "autoregressive"}
        return sorted(
            (plan for plan in plans if plan.method in chosen), key=lambda plan: plan.method != "autoregressive"
        )

    @property
    def reach(self) -> int:
        """How far behind the last confirmed token the longest draft may go."""
        return 1 + max(plan.iterations + plan.min_draft_length for plan in self.plans())

    @property
    def context_length(self) -> int:
        return self.prompt_length + self.new_tokens + 2 * self.reach

    def prompts(self, process: int) -> list[list[int]]:
        """Random ones, of a process the same in every scheme. Where fewer `tokens` are asked for, the first of them."""
        count = -(-self.tokens // self.new_tokens)
        vocab_size = synthetic_config(self.source).vocab_size
        return (
            np.random.default_rng((self.seed, process)).integers(vocab_size, size=(count, self.prompt_length)).tolist()
        )


def _trees_of(plan: Plan) -> str | None:
    """The model whose recorded trees a plan's drafts take the shapes of."""
    return None if plan == SEQUENCE else get_method(plan.method).trees_of


@dataclass
class PlantedModels(SyntheticModels):
    """A target with synthetic companions. row_invariant: of the target (`Llama.make_row_invariant`). own: the directory
    of the target's own weights; None for synthetic ones. codes: of these, as for `synthetic_model`."""

    row_invariant: bool = False
    own: Path | None = None
    codes: torch.Tensor | None = None

    @cached_property
    def target(self) -> Llama | GraphedLlama:
        if self.own is None:
            config, room = synthetic_config(self.target_name), self.context_length
            model = synthetic_model(config, self.scheme, room, self.dtype, self.device, self.seed, self.codes)
        else:
            model = load_model(self.own, None, self.dtype, self.device, self.context_length)
        if self.row_invariant:
            model.make_row_invariant()
        return graphed(model)


def planted_speculator(
    plan: Plan, models: SyntheticModels, parameters: Parameters, trees: pd.DataFrame, process: int
) -> Speculator:
    """The decoder of a plan, whose drafter follows the texts that it is given.

    Args:
        plan: one of `Parameters.plans`.
        models: the target and its companions.
        parameters: how wrong drafts are, and the seed.
        trees: recorded ones, whose shapes are taken.
        process: whose errors are drawn.

    Returns:
        The speculator; its drafter is a `PlantedDrafts` or a `PlantedModel`, or None where it decodes one by one.
    """
    vocab_size, seed = models.target.config.vocab_size, (parameters.seed, process)
    errors = Errors(parameters.error_rate, vocab_size, seed)

    def trees_for(which: str) -> Drafter:
        of_target = which == "target"
        head_below = models.head if of_target else models.inner_head
        head = EagleDrafter(head_below, *plan.tree, vocab_size=vocab_size)
        inner = Errors(parameters.inner_error_rate, vocab_size, (*seed, 1))
        shapes = tree_shapes(trees_of(trees, which), *plan.tree)
        return PlantedDrafts(shapes, errors if of_target else inner, head.context_length, models.device, head)

    if plan == SEQUENCE:
        chain = list(range(-1, plan.min_draft_length))
        return Speculator(models.target, PlantedDrafts([chain], errors, models.context_length, models.device))
    drafter = get_method(plan.method).drafter(plan, models, trees_for, DraftSettings())
    return Speculator(models.target, PlantedModel(drafter, errors) if isinstance(drafter, Speculator) else drafter)


class _Remembers(Greedy):
    """The ordinary rule, by which the latest logits can be looked at once a step is over and its time is taken."""

    def judge(self, tree: DraftTree, logits: torch.Tensor) -> Verdict:
        self.logits = logits
        return super().judge(tree, logits)

    def margin(self) -> float:
        """By how much the first row's likeliest token is above the second."""
        first, second = self.logits[0].double().topk(2).values.tolist()
        return first - second


@dataclass
class Decoded:
    """What was decoded behind one prompt: new tokens, the prefill, the steps, and of these the rounds below.

    margins: of each new token, where they were decoded one by one.
    """

    tokens: list[int]
    prefill_ms: float
    steps: list[Step] = field(default_factory=list)
    rounds: list[Step] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)


def decode_one_by_one(speculator: Speculator, prompt: list[int], count: int) -> Decoded:
    """`count` new tokens with their margins."""
    rule = _Remembers()
    prefill = speculator.prefill(prompt, rule)
    decoded = Decoded(list(prefill.tokens), prefill.draft_ms + prefill.verify_ms, margins=[rule.margin()])
    while len(decoded.tokens) < count:
        decoded.steps.append(speculator.step(1))
        decoded.tokens += decoded.steps[-1].tokens
        decoded.margins.append(rule.margin())
    return decoded


def decode_known(speculator: Speculator, prompt: list[int], known: list[int], count: int) -> Decoded:
    """At least `count` new tokens of a known text, which is drafted; up to the first step that differs from it."""
    drafter = speculator.drafter
    assert isinstance(drafter, PlantedDrafts | PlantedModel)
    drafter.follow(prompt + known)
    prefill = speculator.prefill(prompt, Greedy())
    decoded = Decoded(list(prefill.tokens), prefill.draft_ms + prefill.verify_ms)
    while len(decoded.tokens) < count and decoded.tokens == known[: len(decoded.tokens)]:
        step = speculator.step(speculator.context_length - len(prompt) - len(decoded.tokens))
        if len(step.tree) > 1:
            decoded.rounds += drafter.rounds
        decoded.steps.append(step)
        decoded.tokens += step.tokens
    return decoded


def decode_plans(models: SyntheticModels, parameters: Parameters, process: int) -> pd.DataFrame:
    """Decode every prompt of a process by every plan; a row of planted.csv for each plan.

    Each plan first decodes at least `new_tokens` without being timed, which captures its graphs. Of decoding one by one
    that is the first text, and the same text again is compared with it: a target that does not repeat itself shows.
    """
    trees = read_results(parameters.trees, table="trees")
    prompts, count, rows, known = parameters.prompts(process), parameters.new_tokens, [], []
    for plan in parameters.plans():
        speculator = planted_speculator(plan, models, parameters, trees, process)
        if plan.method == "autoregressive":
            first = decode_one_by_one(speculator, prompts[0], count + parameters.reach)
            with CardState(models.target.device) as card:
                known = [decode_one_by_one(speculator, prompt, count + parameters.reach) for prompt in prompts]
            decoded, compared = known, [(first, known[0])]
        else:
            _warm_up(speculator, prompts, known, count)
            with CardState(models.target.device) as card:
                decoded = [
                    decode_known(speculator, prompt, text.tokens, count)
                    for prompt, text in zip(prompts, known, strict=True)
                ]
            compared = list(zip(decoded, known, strict=True))
        about = _rates(plan, parameters) | {"context_length": parameters.prompt_length}
        about |= {"distinct_tokens": len({token for text in known for token in text.tokens})}
        about |= {"median_margin": float(np.median([margin for text in known for margin in text.margins]))}
        rows.append(asdict(plan) | about | _speed(decoded) | card.mean() | _comparison(compared))
    return pd.DataFrame(rows)


def _warm_up(speculator: Speculator, prompts: Sequence[list[int]], known: Sequence[Decoded], count: int) -> None:
    left = count
    for prompt, text in zip(prompts, known, strict=True):
        left -= len(decode_known(speculator, prompt, text.tokens, count).tokens)
        if left <= 0:
            return


def _rates(plan: Plan, parameters: Parameters) -> dict[str, Any]:
    """The rates that were planted; 0 where a plan has no such draft."""
    drafts, inner = plan.method != "autoregressive", _trees_of(plan) == "intermediate"
    rates = {"error_rate": parameters.error_rate * drafts, "inner_error_rate": parameters.inner_error_rate * inner}
    return {"acceptance": "planted"} | rates


def _speed(decoded: Sequence[Decoded]) -> dict[str, Any]:
    """Means over the steps of all texts; times in milliseconds a step.

    accepted_share: of the planted tokens that verification came to, the ones that it kept.
    """
    steps = [step for text in decoded for step in text.steps]
    tokens = [token for text in decoded for token in text.tokens]
    prefill_ms = float(np.mean([text.prefill_ms for text in decoded]))
    figures = measurements(Generation(tokens, "", "", [step.accepted_length for step in steps], prefill_ms, steps))
    for prefix, which in (("", steps), ("inner_", [step for text in decoded for step in text.rounds])):
        judged, accepted = np.sum([judged_and_accepted(step) for step in which] or [(0, 0)], axis=0).tolist()
        figures[f"{prefix}judged_tokens"] = judged
        figures[f"{prefix}accepted_share"] = accepted / judged if judged else float("nan")
    return figures


def _comparison(compared: Sequence[tuple[Decoded, Decoded]]) -> dict[str, Any]:
    """What texts say beside those of decoding one by one, each up to and with its first difference.

    first_differences, margins: of each text that differs the new token's position, from 0, and how far decoding one by
    one had the likeliest token above the second there.
    """
    found, tokens = [], 0
    for text, known in compared:
        length = min(len(text.tokens), len(known.tokens))
        position = first_difference(known.tokens[:length], text.tokens[:length])
        tokens += length if position < 0 else position + 1
        if position >= 0:
            found.append((position, known.margins[position]))
    return {
        "texts": len(compared),
        "compared_tokens": tokens,
        "differing_texts": len(found),
        "first_differences": " ".join(str(position) for position, _ in found) or NONE,
        "margins": " ".join(f"{margin:.4g}" for _, margin in found) or NONE,
    }


def run(parameters: Parameters, units: Sequence[dict]) -> Measured:
    """Decode by every plan of each unit in turn; each draft and pass is timed where it stands in decoding."""
    for unit in units:
        scheme, made = unit["scheme"], parameters.synthetic(unit)
        own, codes = _trained(parameters, scheme)
        models = PlantedModels(
            parameters.source,
            parameters.intermediate,
            scheme,
            parameters.intermediate_scheme,
            parameters.head_scheme,
            parameters.head_vocabulary,
            context_length=parameters.context_length,
            dtype=named_dtype(parameters.dtype) or default_dtype(parameters.device, scheme),
            device=parameters.device,
            seed=parameters.seed,
            row_invariant=unit["row_invariant"] == "yes",
            own=own,
            codes=codes,
        )
        try:
            require_room(made, parameters.device)
            yield unit, decode_plans(models, parameters, unit["process"])
        except NotEnoughMemory as error:
            yield unit, left_out(unit, error)
        del models
        free(parameters.device)


def _trained(parameters: Parameters, scheme: str) -> tuple[Path | None, torch.Tensor | None]:
    """The directory of the target's own weights in a scheme, or how often synthetic ones have each code; None of what
    is not asked for."""
    if parameters.codes == "uniform":
        return None, None
    trained = parameters.model if parameters.weights == "trained" else parameters.codes_from
    copy = quantized_target(trained, scheme, parameters.keep_targets_in, calibration_text=parameters.calibration_text)
    return (copy, None) if parameters.weights == "trained" else (None, code_shares(load_model(copy)))


def longest_runs(rows: pd.DataFrame) -> pd.DataFrame:
    """Of what a process decoded in several runs the one of most tokens: the shorter begin with the same prompts, so
    their texts would count twice.

    rows: planted.csv.
    """
    return rows.sort_values("tokens", ascending=False, kind="stable").drop_duplicates([*TOLD_OF, PROCESS]).sort_index()


def losslessness(rows: pd.DataFrame) -> pd.DataFrame:
    """What all processes together say of how often a method's text differs from decoding one by one (`longest_runs`).

    Args:
        rows: planted.csv.

    Returns:
        A row for each target, scheme, row invariance and plan: texts, compared_tokens and differing_texts; the
        largest_margin of a first difference, NaN where there is none; and at_most, the rate at which tokens may still
        differ where none does (`rule_of_three`), NaN where one does. Decoding one by one is compared with itself.
    """
    rows = longest_runs(rows)
    rows = rows.assign(largest_margin=[max(_numbers(margins), default=np.nan) for margins in rows.margins])
    counts = ["texts", "compared_tokens", "differing_texts"]
    told = (
        rows.groupby(TOLD_OF, sort=False).agg({**dict.fromkeys(counts, "sum"), "largest_margin": "max"}).reset_index()
    )
    bounds = [
        np.nan if differing else rule_of_three(tokens)
        for differing, tokens in zip(told.differing_texts, told.compared_tokens, strict=True)
    ]
    return told.assign(at_most=bounds)


def _numbers(text: str) -> list[float]:
    """Those of a cell, with spaces between them."""
    return [] if text == NONE else [float(number) for number in text.split()]


MEASURE = Measure((PLANTED,), Parameters, run, "CUDA events and host clock, sum")
