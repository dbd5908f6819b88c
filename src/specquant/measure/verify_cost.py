"""How does the time of a pass grow with its draft size? For one model in each scheme (the paper, section 3).

Each draft size is timed in blocks of its own, each after warm-up passes of the same size, and the blocks come in random
order, drawn anew in every process. That is how decoding meets passes: one after another of nearly the same size. In
turns a pass of one token comes right behind one of 64, for which the card still pays: `protocol` "turns" shows by how
much.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from matplotlib.figure import Figure

from specquant.errors import SpecquantError
from specquant.measure import ceilings
from specquant.measure.blocks import InBlocks, Time, host_time, in_blocks, of_block
from specquant.measure.checks import require_weights
from specquant.measure.measure import Measure, Measured, free, left_out
from specquant.measure.parameters import require_type
from specquant.measure.passes import DRAFT_SIZES, prepare_passes
from specquant.models.device import default_dtype, dtype_parameters, named_dtype
from specquant.models.hub import resolve_model
from specquant.models.llama import Llama
from specquant.models.loading import load_model
from specquant.models.memory import NotEnoughMemory
from specquant.models.names import SHAPES, source_of
from specquant.models.options import DType
from specquant.models.quantize import CALIBRATION_TEXT
from specquant.models.synthetic import Synthetic, bytes_read, synthetic_config, synthetic_model
from specquant.models.targets import quantized_target
from specquant.tables.intervals import PROCESS, in_each_process, in_words, over_processes, ratios
from specquant.tables.schemas import VERIFY_COST
from specquant.tables.style import SCHEMES, along_draft_sizes, in_order, legend_above, mark, model_label, new_figure
from specquant.tables.verify_cost import pass_growth


@dataclass(frozen=True)
class Parameters(InBlocks):
    """What to time.

    Attributes:
        model: A directory, a hub id, or llama-3-8b or llama-3-70b for random weights of its shapes.
        schemes: With commas; the command takes "all" for those that the model can have.
        weights: synthetic: random ones of the model's shapes (default: those of the directory, if it is one).
        draft_sizes: Tokens in a pass, with commas (default: twelve from 1 to 64).
        contexts: Tokens in the cache, with commas.
        warm_up_passes: Passes before those that are timed, if they take longer than --warm-up-ms.
        turns: Time the draft sizes in turn, too: what that would say.
        dtype: What models compute in (default: float16 on a GPU; on a CPU float32, or float64 where
            activations have 8 bits).
        keep_targets_in: The folder for quantized copies of a model with weights.
        calibration_text: What such a model reads while it is quantized, a file (default: the tiny target's own).
    """

    model: str | Path
    schemes: tuple[str, ...] = ("all",)
    weights: Literal["trained", "synthetic"] | None = None
    draft_sizes: tuple[int, ...] = DRAFT_SIZES
    contexts: tuple[int, ...] = (512,)
    blocks: int = field(default=2, kw_only=True)
    warm_up_passes: int = 8
    turns: bool = False
    dtype: DType | None = None
    keep_targets_in: Path = Path("results/targets")
    calibration_text: Path = Path(CALIBRATION_TEXT)

    shared = ("draft_sizes", "warm_up_passes", *InBlocks.shared)

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = self.weights or ("synthetic" if str(self.model) in SHAPES else "trained")
        object.__setattr__(self, "weights", weights)

    def check(self) -> None:
        """Raises SpecquantError for numbers out of range, and for a model that is not there or has no weights."""
        super().check()
        if not self.draft_sizes:
            raise SpecquantError("there is no draft size to time: give some of at least 1")
        for context in self.contexts:
            require_type("a context", context, int, 1)
        require_weights(self.model, self.weights)
        source_of(self.model)

    @property
    def name(self) -> str:
        """What the `model` column says."""
        source = self.model if str(self.model) in SHAPES else resolve_model(self.model)
        return source.name if isinstance(source, Path) and source.is_absolute() else str(source)

    def same(self) -> dict[str, Any]:
        return super().same() | dtype_parameters(self.device, self.dtype)

    def units(self) -> list[dict[str, Any]]:
        protocols = ("blocks", "turns") if self.turns else ("blocks",)
        return [
            {"model": self.name, "scheme": scheme, "weights": self.weights, "context_length": context}
            | {"process": process, "protocol": protocol}
            for process in range(self.processes)
            for scheme in self.schemes
            for context in self.contexts
            for protocol in protocols
        ]

    def synthetic(self, unit: dict[str, Any]) -> list[Synthetic]:
        if self.weights == "trained":
            return []
        config, longest = synthetic_config(source_of(self.model)), max(self.contexts) + max(self.draft_sizes)
        return [Synthetic(config, unit["scheme"], longest, self._dtype(unit["scheme"]))]

    def load(self, unit: dict[str, Any]) -> Llama:
        """The model of a unit. Raises NotEnoughMemory where it does not fit."""
        if models := self.synthetic(unit):
            return synthetic_model(*models[0], self.device, self.seed)
        scheme = unit["scheme"]
        copy = quantized_target(self.model, scheme, self.keep_targets_in, calibration_text=self.calibration_text)
        return load_model(copy, dtype=self._dtype(scheme), device=self.device)

    def _dtype(self, scheme: str) -> torch.dtype:
        return named_dtype(self.dtype) or default_dtype(self.device, scheme)


def run(parameters: Parameters, units: Sequence[dict]) -> Measured:
    """Time the passes of some units, scheme by scheme, in an order drawn for this process."""
    bandwidth_tb_s = ceilings.read_bandwidth_tb_s(parameters.device)
    order = parameters.order(units[0]["process"])
    by_scheme = [list(group) for _, group in groupby(units, key=lambda unit: unit["scheme"])]
    for of_scheme in order.sample(by_scheme, len(by_scheme)):
        try:
            model = parameters.load(of_scheme[0])
        except NotEnoughMemory as error:
            for unit in of_scheme:
                yield unit, left_out(unit, error)
            continue
        for unit in of_scheme:
            rows = time_passes(model, parameters, unit["context_length"], unit["protocol"], order)
            rows["bytes"] = bytes_read(model, unit["context_length"])
            rows["floor_ms"] = rows.bytes / bandwidth_tb_s / 1e9
            yield unit, rows
        del model
        free(parameters.device)


@torch.inference_mode()
def time_passes(
    model: Llama, parameters: Parameters, context_length: int, protocol: str, order: random.Random
) -> pd.DataFrame:
    """Time passes with LM head over each draft size, behind `context_length` cached positions; on a GPU as CUDA graphs.

    Returns a row for each block. Raises SpecquantError where context and draft do not fit the model, or results are not
    finite: such a pass may take another time.
    """
    passes = prepare_passes(model, parameters.draft_sizes, context_length)
    for size, logits in passes.items():
        if not logits().isfinite().all():
            raise SpecquantError(f"a pass of {size} tokens in {model.scheme.name} computes numbers that are not finite")
    if protocol == "turns":
        return in_turns(passes, model.device, parameters.repeats)
    rows = in_blocks(passes, model.device, parameters.block, order)
    return rows.rename(columns={"what": "draft_size"})


def in_turns(passes: Mapping[int, Callable[[], object]], device: torch.device, repeats: int) -> pd.DataFrame:
    """Time all passes in turn, the way that misleads: a row for each draft size."""
    times: dict[int, list[Time]] = {size: [] for size in passes}
    for _ in range(3 + repeats):
        for size, each in passes.items():
            times[size].append(host_time(each, device))
    return pd.DataFrame(
        {"block": 0, "place": place, "draft_size": size} | of_block(of_size[3:]) | {"repeats": repeats}
        for place, (size, of_size) in enumerate(times.items())
    )


def growth_table(growth: pd.DataFrame, theirs: pd.DataFrame, draft_size: int) -> pd.DataFrame:
    """The time of one pass over that of one token, ours with intervals beside the paper's code, in words.

    Args:
        growth: Of `pass_growth`, behind one context.
        theirs: Rows of specmquant_verify_cost.csv of the same card; models that it lacks have no column of theirs.
        draft_size: Of the pass.

    Returns:
        A row for each scheme, sorted by the growth on the first model; two columns for each model.
    """
    grown = growth.xs(draft_size, level="draft_size").droplevel(["weights", "context_length"])
    their_times = theirs.pivot_table(index=["model", "scheme"], columns="draft_size", values="time_ms")
    columns = {}
    for model in grown.index.unique("model"):
        ours = grown.xs(model, level="model")
        order = ours["median"].sort_values(ascending=False).index
        name = model_label(model)
        columns[f"{name}, ours"] = ours.loc[order].apply(in_words, axis=1)
        if model in their_times.index:
            of_model = their_times.loc[model]
            columns[f"{name}, SpecMQuant"] = (of_model[draft_size] / of_model[1]).reindex(order)
    return pd.DataFrame(columns).reindex(next(iter(columns.values())).index).rename_axis("scheme")


def draw(rows: pd.DataFrame) -> Figure:
    """Time of a pass against draft size, as a multiple of the pass over one token; bars from the lowest to the highest
    process.

    rows: verify_cost.csv. A panel for each model and context. Raises SpecquantError where a pass of one token is
    missing.
    """
    told = pass_growth(rows)
    groups = list(rows.groupby(["model", "context_length"]))
    rows_of_panels = -(-len(groups) // 3)
    columns = -(-len(groups) // rows_of_panels)
    height_in = 0.7 + 1.8 * rows_of_panels
    figure, axes = new_figure(rows_of_panels, columns, height_in, wide=columns > 1, sharex=True, sharey=True)
    for axis in axes[len(groups) :]:
        axis.set_axis_off()
    for place, (axis, ((model, context_length), of_panel)) in enumerate(zip(axes, groups, strict=False)):
        for scheme in in_order(of_panel["scheme"], SCHEMES):
            if 1 not in set(of_panel[of_panel["scheme"] == scheme]["draft_size"]):
                raise SpecquantError(f"verify_cost of {model} in {scheme} has no row with draft_size 1 to compare with")
            line = told.xs((model, scheme, context_length), level=("model", "scheme", "context_length"))
            line = line.droplevel("weights").sort_index()
            look, bars = mark(scheme, SCHEMES), (line["median"] - line.low, line.high - line["median"])
            about: dict[str, Any] = {"color": look.color, "marker": look.marker, "label": look.label, "elinewidth": 0.5}
            axis.errorbar(line.index, line["median"], yerr=bars, **about)
        along_draft_sizes(axis)
        axis.tick_params(labelbottom=place + columns >= len(groups))  # also above a place without a panel
        axis.set(title=f"{model_label(str(model))}, behind {context_length} tokens")
        if place % columns == 0:
            axis.set_ylabel("time of a pass\nover that of one token")
    axes[0].set_ylim(bottom=0.9)  # of all panels, whose highest line is known now
    figure.supxlabel("draft size (tokens in one pass)", fontsize=7)
    legend_above(figure, axes[0], columns=5 if columns > 1 else 3)
    return figure


def draw_growths(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Time of a pass over that of one token, against draft size; a panel for each table, with its key as title.

    Each table has the columns of verify_cost.csv and holds one model behind one context. Where it has processes, lines
    are medians over them, and bars span the lowest to the highest.
    """
    figure, axes = new_figure(1, len(tables), height_in=2.6, sharey=True)
    for axis, (title, table) in zip(axes, tables.items(), strict=True):
        if PROCESS not in table:
            table = table.assign(process=0)
        grown = ratios(in_each_process(table, ["scheme", "draft_size"]), "draft_size", table["draft_size"].min())
        for scheme in in_order(table["scheme"], SCHEMES):
            line = over_processes(grown).xs(scheme, level="scheme").sort_index()
            look, bars = mark(scheme, SCHEMES), (line["median"] - line["low"], line["high"] - line["median"])
            about: dict[str, Any] = {"color": look.color, "marker": look.marker, "label": look.label}
            axis.plot(line.index, line["median"], **about)
            if (line["processes"] > 1).any():
                axis.errorbar(line.index, line["median"], yerr=bars, fmt="none", ecolor=look.color, elinewidth=0.5)
        axis.set(title=title, xlabel="draft size")
        along_draft_sizes(axis)
    axes[0].set_ylabel("time of a pass\nover that of one token")
    axes[0].set_ylim(bottom=0.9)  # of all panels, whose highest line is known now
    legend_above(figure, axes[0], columns=3)
    return figure


MEASURE = Measure((VERIFY_COST,), Parameters, run, "time.perf_counter around a pass, median of a block")
