"""What each method gains: accepted lengths, where the time of a step goes, tokens per second."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from transformers import PreTrainedTokenizerBase

from specquant.benchmarks.prompts import PROMPTS, prompt_ids, read_prompts
from specquant.decoding import Generation, acceptance_rule, generate
from specquant.decoding.drafters import MARKS, PAPER_METHODS, check_methods
from specquant.decoding.method import Plan
from specquant.decoding.models import Models, tiny_models
from specquant.errors import SpecquantError
from specquant.files import resolve
from specquant.measure.checks import require_at_least
from specquant.measure.measure import Measure, Measured
from specquant.measure.parameters import Common
from specquant.models.companions import target_in
from specquant.models.device import named_dtype
from specquant.models.graphs import GraphedLlama
from specquant.models.llama import Llama
from specquant.models.loading import load_tokenizer
from specquant.models.options import DraftSettings, DType, ModelOptions
from specquant.models.targets import calibration_text_beside, quantized_target
from specquant.progress import tqdm
from specquant.tables.intervals import over_questions_with
from specquant.tables.marks import Mark
from specquant.tables.schemas import TABLES
from specquant.tables.speed import over_equal_texts, speed, speedups
from specquant.tables.style import SCHEMES, in_order, legend_above, mark, new_figure, row_for_each

PAPER_SETTINGS = DraftSettings()
MIDDLE = ["middle", "low", "high"]  # of what `dots` draws
CLOCK = "time.perf_counter, sum over steps"  # of `measurements`


@dataclass(frozen=True, kw_only=True)
class Decoding(Common):
    """How prompts are decoded greedily on trained models.

    Attributes:
        models_dir: The folder of a target and its companions, laid out as `data/tiny` or `data/smollm2`.
        prompts: A file like `data/prompts/prompts.jsonl` (default: that one).
        prompts_per_task: The most prompts of each task (default: all).
        max_new_tokens: The most tokens behind a prompt.
        settings: How methods draft.
        keep_targets_in: The folder for quantized copies of the target.
        device: cuda or cpu.
    """

    models_dir: Path = Path("data/tiny")
    prompts: Path = Path(PROMPTS)
    prompts_per_task: int | None = None
    max_new_tokens: int = 64
    settings: DraftSettings = field(default_factory=DraftSettings)
    keep_targets_in: Path = Path("results/targets")
    device: str = "cpu"

    shared: ClassVar[tuple[str, ...]] = ("models_dir", "prompts", "prompts_per_task", "max_new_tokens")

    def check(self) -> None:
        """Raises SpecquantError as `Common.check`, and for prompts that are missing or damaged."""
        super().check()
        counts = [name for name in (field.name for field in fields(self.settings)) if not self._adapts(name)]
        require_at_least(self.settings, **dict.fromkeys(counts, 1))
        self.chosen_prompts()

    def _adapts(self, name: str) -> bool:
        return isinstance(getattr(self.settings, name), str)

    def chosen_prompts(self) -> list[dict[str, str]]:
        return read_prompts(self.prompts, self.prompts_per_task)

    def same(self) -> dict[str, Any]:
        return super().same() | {"settings": self.settings.told()}

    def unnamed(self) -> dict[str, Any]:
        return super().unnamed() | {"settings": PAPER_SETTINGS.told()}

    def model_paths(self) -> dict[str, str | Path]:
        target = target_in(resolve(self.models_dir))
        companions = ModelOptions(target).companions
        return {"target": target} | {which: path for which, path in companions.items() if path}

    def target(self, scheme: str) -> Path:
        """The directory of the target in a scheme."""
        target = target_in(resolve(self.models_dir))
        text = calibration_text_beside(target)
        return quantized_target(target, scheme, self.keep_targets_in, device=self.device, calibration_text=text)


@dataclass(frozen=True, kw_only=True)
class SchemeByScheme(Decoding):
    """Decoding with the target in each of some schemes.

    Attributes:
        schemes: Of the target, with commas; the command takes "all" for those that it can have.
        name: What the tables call the target.
    """

    schemes: tuple[str, ...]
    name: str = "tiny"

    def check(self) -> None:
        """Raises SpecquantError as `Decoding.check`, and for models that are missing or do not fit together."""
        super().check()
        check_methods(PAPER_METHODS, self.settings)
        tiny_models(self.models_dir).given_methods()

    def units(self) -> list[dict[str, Any]]:
        return [{"model": self.name, "scheme": scheme, "weights": "trained"} for scheme in self.schemes]


@dataclass(frozen=True, kw_only=True)
class Parameters(SchemeByScheme):
    """What to measure: every method of the paper on the target in each scheme.

    Attributes:
        dtype: What models compute in.
        row_invariant: No row's bits depend on how many others its pass has (`Llama.make_row_invariant`).
        against: Compare tokens with those that decoding one by one gives in this dtype (default: its own).
    """

    schemes: tuple[str, ...] = ("all",)
    dtype: DType = "float64"
    row_invariant: bool = False
    against: DType | None = None

    shared: ClassVar[tuple[str, ...]] = (*Decoding.shared, "dtype", "row_invariant")

    def check(self) -> None:
        """Raises SpecquantError as `SchemeByScheme.check`, and for an unknown dtype to compare with."""
        super().check()
        named_dtype(self.against)

    def same(self) -> dict[str, Any]:
        return super().same() | {"against": self.against or self.dtype}

    def unnamed(self) -> dict[str, Any]:
        return super().unnamed() | {"row_invariant": False, "against": self.dtype}


def decode_prompts(
    models: Models,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[dict[str, str]],
    methods: Sequence[str | Plan],
    name: str,
    settings: DraftSettings | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    reference: Models | None = None,
) -> pd.DataFrame:
    """Decode every prompt by every method, on trained weights: acceptance is measured.

    Methods take turns on each prompt, so that a machine that grows slower slows all of them. Returns one row for each
    prompt and method. `first_difference` is the position of the first new token that is not that of the first of
    `methods`, or -1; `margin` is then how far apart the logits of the two likeliest tokens are there: rounding decides
    where it is tiny. Above temperature 0 methods draw other tokens of the same distribution, and both say nothing.
    reference: models that compute more exactly; then theirs are the tokens, decoded one by one, and the logits.
    """
    settings = settings or DraftSettings()
    speculators = {method: models.speculator(method, settings) for method in methods}
    exact = reference.speculator("autoregressive") if reference else None
    rows = []
    for prompt in tqdm(prompts, desc=models.target.scheme.name, unit="prompt", leave=False):
        prompt_tokens, expected = prompt_ids(prompt["prompt"], tokenizer), None
        if exact:
            expected = generate(exact, tokenizer, prompt_tokens, max_new_tokens, acceptance_rule(temperature)).token_ids
        for method, speculator in speculators.items():
            generation = generate(speculator, tokenizer, prompt_tokens, max_new_tokens, acceptance_rule(temperature))
            expected = expected or generation.token_ids
            differs = first_difference(expected, generation.token_ids)
            gap = float("nan")
            if differs >= 0:
                gap = margin((reference or models).target, prompt_tokens + expected[:differs])
            rows.append(
                {"model": name, "scheme": models.target.scheme.name, "method": method, "task": prompt["task"]}
                | {"id": prompt["id"], "weights": "trained", "acceptance": "measured"}
                | measurements(generation)
                | {"first_difference": differs, "margin": gap}
            )
    return pd.DataFrame(rows)


def measurements(generation: Generation) -> dict:
    """One row's figures: means over the target's steps; times in milliseconds a step."""
    steps = generation.steps
    rounds = [length for step in steps for length in step.inner_accepted_lengths]

    def mean(values: Sequence[float]) -> float:
        return fmean(values) if values else float("nan")

    return {
        "new_tokens": len(generation.token_ids),
        "steps": len(steps),
        "mean_draft_size": mean([len(step.tree) for step in steps]),
        "accepted_length": mean(generation.accepted_lengths),
        "inner_rounds": len(rounds) / len(steps) if steps else float("nan"),
        "inner_accepted_length": mean(rounds),
        "prefill_ms": generation.prefill_ms,
        "draft_ms": mean([step.draft_ms for step in steps]),
        "verify_ms": mean([step.verify_ms for step in steps]),
        "other_ms": mean([step.other_ms for step in steps]),
        "decode_ms": generation.decode_ms,
        "tokens_per_s": generation.tokens_per_s or float("nan"),
    }


def first_difference(expected: list[int], tokens: list[int]) -> int:
    """The first position where two token lists differ, or -1."""
    for position, (first, second) in enumerate(zip(expected, tokens, strict=False)):
        if first != second:
            return position
    return -1 if len(expected) == len(tokens) else min(len(expected), len(tokens))


@torch.inference_mode()
def margin(model: Llama | GraphedLlama, tokens: list[int]) -> float:
    """By how much the logit of the likeliest next token exceeds that of the second."""
    features = model.prefill(torch.tensor(tokens, device=model.device), model.new_cache(len(tokens)))
    first, second = model.logits(features[-1]).topk(2).values.tolist()
    return first - second


def losslessness(rows: pd.DataFrame) -> pd.DataFrame:
    """For each scheme and method: prompts, their new tokens, and how many prompts got other tokens than the reference.

    `rows`: from `decode_prompts`. largest_margin: over the prompts that differ, NaN where none does.
    """
    groups = rows.assign(differs=rows.first_difference >= 0).groupby(["scheme", "method", "weights"], sort=False)
    return groups.agg(
        prompts=("id", "size"),
        new_tokens=("new_tokens", "sum"),
        differing_prompts=("differs", "sum"),
        largest_margin=("margin", "max"),
    ).reset_index()


def by_task(rows: pd.DataFrame) -> pd.DataFrame:
    """The throughput table: for each scheme, method and task the mean over prompts, and the speedup.

    tokens_per_s and speedup are by the rules of `tables.speed`.
    """
    keys = ["model", "scheme", "method", "task", "weights", "acceptance"]
    lengths = ["accepted_length", "mean_draft_size", "inner_rounds", "inner_accepted_length"]
    groups = rows.assign(decoded=rows.new_tokens - 1).groupby(keys, sort=False)
    table = groups[[*lengths, "draft_ms", "verify_ms", "other_ms"]].mean()
    table["tokens_per_s"] = speed(groups.decoded.sum(), groups.decode_ms.sum())
    table["prompts"] = groups.size()
    table["speedup"] = speedups(table.tokens_per_s.droplevel(["weights", "acceptance"])).to_numpy()
    return table.reset_index()


def side_by_side(rows: pd.DataFrame) -> pd.DataFrame:
    """Methods beside each other over all prompts: accepted_length and speedup, with 95% intervals over the prompts,
    and the means of mean_draft_size and draft_ms.

    rows: of `decode_prompts`, greedy, so that all methods wrote the same tokens; those of autoregressive among them.
    """
    plain_ms = rows[rows.method == "autoregressive"].set_index(["scheme", "id"]).decode_ms
    told = {}
    for method, some in rows[rows.method != "autoregressive"].groupby("method", sort=False):
        one_by_one = plain_ms.reindex(pd.MultiIndex.from_frame(some[["scheme", "id"]]))
        row = over_questions_with("accepted_length", (some.new_tokens - 1).tolist(), some.steps.tolist())
        row |= {name: some[name].mean() for name in ("mean_draft_size", "draft_ms")}
        told[method] = row | over_questions_with("speedup", one_by_one.tolist(), some.decode_ms.tolist())
    return pd.DataFrame(told).T.rename_axis("method")


def mean_by(table: pd.DataFrame, column: str, values: str | list[str]) -> pd.DataFrame | pd.Series:
    """The mean of some columns for each value of another, in the order in which these first appear."""
    return table.groupby(column, sort=False)[values].mean()


def kept_lengths(table: pd.DataFrame, schemes: Sequence[str]) -> pd.DataFrame:
    """What one method keeps of its accepted length in each scheme.

    Args:
        table: Rows of throughput.csv, all of one model and method.
        schemes: The first is what the others are compared with.

    Returns:
        A row for each scheme: accepted_length, the mean over tasks; kept, that over the first scheme's; low and high,
        of single tasks.
    """
    by_task = table.pivot_table(index="scheme", columns="task", values="accepted_length").reindex(list(schemes))
    ratios, means = by_task / by_task.loc[schemes[0]], by_task.mean(axis=1)
    kept = pd.DataFrame({"accepted_length": means, "kept": means / means[schemes[0]]})
    return kept.assign(low=ratios.min(axis=1), high=ratios.max(axis=1))


def run(parameters: Parameters, units: Sequence[dict]) -> Measured:
    """Decode the prompts by every method of the paper, scheme by scheme."""
    prompts = parameters.chosen_prompts()
    for unit in units:
        target = parameters.target(unit["scheme"])

        def models(dtype: str, directory: Path = target, **options: bool) -> Models:
            chosen = {"dtype": named_dtype(dtype), "device": parameters.device}
            return tiny_models(parameters.models_dir, directory, **chosen, **options)

        decoded = decode_prompts(
            models(parameters.dtype, row_invariant=parameters.row_invariant),
            load_tokenizer(target),
            prompts,
            PAPER_METHODS,
            parameters.name,
            parameters.settings,
            parameters.max_new_tokens,
            reference=models(parameters.against) if parameters.against else None,
        )
        yield unit, (by_task(decoded), losslessness(decoded))


def accepted_lengths(frame: pd.DataFrame, by: str = "scheme") -> Figure:
    """Accepted length of each method, by scheme: the mean over tasks; bars: lowest to highest task. Or by task: the
    mean over schemes. `frame`: throughput.csv."""
    drafted = frame[frame["method"] != "autoregressive"].groupby([by, "method"])["accepted_length"]
    spread = drafted.agg(["mean", "min", "max"])
    marks = SCHEMES if by == "scheme" else {}
    return dots(spread.set_axis(MIDDLE, axis=1), marks, "accepted length (tokens per pass of the target)")


def speedups_by_scheme(frame: pd.DataFrame) -> Figure:
    """Speedup of each method over autoregressive decoding with the same scheme, over as much text of each task; bars:
    lowest to highest task. `frame`: throughput.csv."""
    return dots(_speedups(frame, "scheme", "task"), SCHEMES, "speedup over the same scheme without drafts")


def speedups_by_task(frame: pd.DataFrame) -> Figure:
    """Speedup of each method over autoregressive decoding, by task: the mean over schemes; bars: lowest to highest
    scheme. `frame`: throughput.csv."""
    return dots(_speedups(frame, "task", "scheme"), {}, "speedup over autoregressive decoding")


def step_times(frame: pd.DataFrame) -> Figure:
    """Where the time of a step goes, in milliseconds: drafting, verifying, the rest. `frame`: throughput.csv.

    A bar per scheme and method, a step being one pass of the target.
    """
    means = frame.groupby(["scheme", "method"])[["draft_ms", "verify_ms", "other_ms"]].mean()
    order = [
        (scheme, method)
        for scheme in in_order(frame["scheme"], SCHEMES)
        for method in in_order(frame["method"], MARKS)
        if (scheme, method) in means.index
    ]
    figure, (axis,) = new_figure(height_in=0.8 + 0.19 * len(order))
    left = np.zeros(len(order))
    colors = {"draft_ms": "#0173b2", "verify_ms": "#de8f05", "other_ms": "#949494"}
    for column, color in colors.items():
        widths = means.loc[order, column].to_numpy()
        axis.barh(range(len(order)), widths, left=left, color=color, label=column.removesuffix("_ms"), height=0.7)
        left += np.nan_to_num(widths)
    labels = [f"{mark(scheme, SCHEMES).label}, {mark(method, MARKS).label}" for scheme, method in order]
    axis.set_yticks(range(len(order)), labels)
    axis.invert_yaxis()
    axis.set_xlabel("time of a step (ms)")
    legend_above(figure, axis, columns=3)
    return figure


def _speedups(frame: pd.DataFrame, by: str, over: str) -> pd.DataFrame:
    """Speedup over autoregressive decoding of the same model and scheme, by `by` and method: `middle`, and the lowest
    and highest of any `over`."""
    each = _gained(frame, list(dict.fromkeys(["model", "scheme", by, "method"])))
    spread = _gained(frame, list(dict.fromkeys(["model", "scheme", by, over, "method"])))
    spread = spread.groupby([by, "method"]).agg(["min", "max"])
    middle = each.groupby([by, "method"]).mean()
    return pd.concat([middle, spread], axis=1).set_axis(MIDDLE, axis=1)


def _gained(frame: pd.DataFrame, keys: list[str]) -> pd.Series:
    gained = speedups(over_equal_texts(frame, keys, "tokens_per_s"))
    if gained.isna().any():
        raise SpecquantError(
            "the throughput table lacks autoregressive rows to compare with, for each model and scheme"
        )
    return gained.drop("autoregressive", level="method")


def dots(values: pd.DataFrame, marks: dict[str, Mark], xlabel: str) -> Figure:
    """A row per first index level, a mark per method (the level "method") at `middle`, a bar from `low` to `high`."""
    rows = in_order(values.index.get_level_values(0).to_series(), marks)
    methods = in_order(values.index.get_level_values("method").to_series(), MARKS)
    figure, (axis,) = new_figure(height_in=0.9 + (0.14 + 0.04 * len(methods)) * len(rows))
    apart = min(0.22, 0.9 / len(methods))
    for place, method in enumerate(methods):
        line = values.xs(method, level="method")
        heights = [rows.index(name) + apart * (place - (len(methods) - 1) / 2) for name in line.index]
        look = mark(method, MARKS)
        axis.hlines(heights, line["low"], line["high"], color=look.color, linewidth=0.7)
        axis.plot(line["middle"], heights, look.marker, color=look.color, label=look.label)
    if values["low"].min() < 1.5:  # no gain is in sight
        axis.axvline(1, color="0.4", linewidth=0.6)
    row_for_each(figure, axis, [mark(name, marks).label for name in rows], xlabel, columns=3)
    return figure


MEASURE = Measure((TABLES["throughput"], TABLES["losslessness"]), Parameters, run, CLOCK)
