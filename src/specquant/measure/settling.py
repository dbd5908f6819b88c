"""What does a pass cost right behind wide ones, and does decoding pay for it?

Behind passes over many tokens a card may be slower for a while. Two things are timed, which the column `what` names.

"pass" is successive passes of one token, behind 60 passes of `behind` tokens and a time without work.

"draft" and "verify" are EAGLE-2's steps as decoding runs them: a draft, then a pass over a tree of `behind` tokens.
`behind` 0 is drafts alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter, sleep
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from specquant.measure.blocks import now
from specquant.measure.card import CardState
from specquant.measure.checks import require_shapes, require_short
from specquant.measure.drafting import prepare_draft
from specquant.measure.measure import Measure, Measured, left_out
from specquant.measure.parameters import Common
from specquant.measure.passes import prepare_passes
from specquant.models.device import default_dtype
from specquant.models.eagle import head_scheme
from specquant.models.memory import NotEnoughMemory
from specquant.models.synthetic import Synthetic, synthetic_config, synthetic_head, synthetic_model
from specquant.tables.intervals import over_processes
from specquant.tables.schemas import SETTLING
from specquant.tables.style import legend_above, new_figure

LEAD = 60  # passes that bring the card into the state that is asked about
SUCCESSIVE = 40  # passes of one token that are timed behind them
STEPS = 60  # of a draft and a pass over its tree; the first third is not told, see `steady`
ITERATIONS = 6


@dataclass(frozen=True)
class Parameters(Common):
    """What to time, on random weights.

    Attributes:
        models: llama-3-8b, llama-3-70b: random weights of their shapes; with commas.
        schemes: With commas.
        behind: Draft sizes of the passes before those of one token, with commas.
        idle_ms: How long the card rests between them, with commas.
        trees: Draft sizes of the trees behind drafts, with commas.
        head_scheme: Of the EAGLE head that drafts.
        context_length: Tokens in the cache.
        processes: Fresh interpreters, each of which measures everything, for intervals.
        seed: Of the random weights.
    """

    models: tuple[str, ...] = ("llama-3-70b", "llama-3-8b")
    schemes: tuple[str, ...] = ("w4a16-g128",)
    behind: tuple[int, ...] = (1, 16, 64)
    idle_ms: tuple[float, ...] = (0, 5, 50)
    trees: tuple[int, ...] = (1, 24, 60)
    head_scheme: str = "w4a16-g128"
    context_length: int = 512
    processes: int = 3
    seed: int = 0

    shared = ("behind", "idle_ms", "trees", "head_scheme", "context_length", "seed")

    def check(self) -> None:
        """Raises SpecquantError for an unknown model and for numbers out of range."""
        super().check()
        require_shapes(self.models)
        head_scheme(self.head_scheme)
        require_short("idle_ms", *self.idle_ms)

    def units(self) -> list[dict[str, Any]]:
        return [
            {"model": model, "scheme": scheme, "weights": "synthetic", "process": process}
            for process in range(self.processes)
            for model in self.models
            for scheme in self.schemes
        ]

    def synthetic(self, unit: dict[str, Any]) -> list[Synthetic]:
        dtype, longest = default_dtype(self.device, unit["scheme"]), max(1, *self.behind, *self.trees)
        return [Synthetic(synthetic_config(unit["model"]), unit["scheme"], self.context_length + longest, dtype)]


def run(parameters: Parameters, units: Sequence[dict]) -> Measured:
    """Time passes and steps of each model and scheme."""
    for unit in units:
        try:
            yield unit, settling(unit, parameters)
        except NotEnoughMemory as error:
            yield unit, left_out(unit, error)


@torch.inference_mode()
def settling(unit: dict, parameters: Parameters) -> pd.DataFrame:
    """The rows of one model in one scheme."""
    context_length, sizes = parameters.context_length, sorted({1, *parameters.behind, *parameters.trees})
    (made,) = parameters.synthetic(unit)
    model = synthetic_model(*made, parameters.device, parameters.seed)
    passes = prepare_passes(model, sizes, context_length)
    tables = [
        successive(passes, behind, idle_ms, model.device)
        for behind in parameters.behind
        for idle_ms in parameters.idle_ms
    ]
    head = synthetic_head(made.config, model, parameters.head_scheme)
    for size in (0, *parameters.trees):
        # A tree of one node is decoding one by one with a draft beside it: the draft itself always has as many nodes.
        draft = prepare_draft(head, max(parameters.trees), ITERATIONS, context_length=context_length)
        tables.append(in_steps(draft, passes[size] if size else None, size, model.device))
    return pd.concat(tables, ignore_index=True)


def successive(
    passes: Mapping[int, Callable[[], object]], behind: int, idle_ms: float, device: torch.device
) -> pd.DataFrame:
    """Times of successive passes of one token behind wide ones: a row for each."""
    for _ in range(3):
        passes[1]()
    with CardState(device) as card:
        for _ in range(LEAD):
            passes[behind]()
            now(device)
        sleep(idle_ms / 1e3)
        began = [now(device)]
        for _ in range(SUCCESSIVE):
            passes[1]()
            began.append(now(device))
    about = {"what": "pass", "behind": behind, "idle_ms": idle_ms, "position": range(SUCCESSIVE)}
    return pd.DataFrame(about | {"time_ms": 1e3 * np.diff(began)} | card.at(began[:-1]))


def in_steps(
    draft: Callable[[], object], verify: Callable[[], object] | None, size: int, device: torch.device
) -> pd.DataFrame:
    """Times of drafts, each behind a pass over a tree of `size` tokens, and of these passes: a row for each."""
    times_ms: dict[str, list[float]] = {"draft": [], "verify": []}
    moments = []
    with CardState(device) as card:
        for _ in range(STEPS):
            moments.append(now(device))
            draft()
            drafted = now(device)
            times_ms["draft"].append(1e3 * (drafted - moments[-1]))
            if verify is not None:
                verify()
                times_ms["verify"].append(1e3 * (now(device) - drafted))
    state = card.at([*moments, perf_counter()][:STEPS])
    return pd.concat(
        pd.DataFrame({"what": what, "behind": size, "idle_ms": 0.0, "position": range(STEPS), "time_ms": times} | state)
        for what, times in times_ms.items()
        if times
    )


def steady(rows: pd.DataFrame) -> pd.DataFrame:
    """Drafts, passes over trees, and passes of one token, each once the card has settled: over processes."""
    settled = rows[rows.position >= SUCCESSIVE // 2]
    keys = ["model", "scheme", "what", "behind", "idle_ms", "process"]
    return over_processes(settled.groupby(keys, sort=False).time_ms.median())


def first_passes(rows: pd.DataFrame) -> pd.DataFrame:
    """Successive passes of one token over settled ones of the same process: by what was before, and position."""
    passes = rows[rows.what == "pass"]
    same = ["model", "scheme", "process"]
    alone = passes[(passes.behind == 1) & (passes.position >= SUCCESSIVE // 2)].groupby(same).time_ms.median()
    keys = [*same[:2], "behind", "idle_ms", "position", "process"]
    relative = passes.set_index(keys).time_ms
    return over_processes(relative / alone.reindex(pd.MultiIndex.from_frame(passes[same])).to_numpy())


def draw_first_passes(after: pd.Series) -> Figure:
    """Time of a pass of one token over its settled time, by its position behind wide passes.

    A panel for each idle time.

    after: by what was before (`behind`), `idle_ms` and `position`: medians of `first_passes` of one model and scheme.
    """
    idle = sorted(after.index.unique("idle_ms"))
    figure, axes = new_figure(1, len(idle), height_in=2.2, wide=True, sharey=True)
    looks = (("#000000", "o"), ("#de8f05", "s"), ("#0173b2", "^"), ("#029e73", "D"))
    for axis, idle_ms in zip(axes, idle, strict=True):
        of_panel = after.xs(idle_ms, level="idle_ms").unstack("position")
        for (behind, line), (color, marker) in zip(of_panel.iterrows(), looks, strict=False):
            name = f"behind passes of {behind} token{'s' if behind > 1 else ''}"
            axis.plot(1 + line.index, line, color=color, marker=marker, label=name)
        axis.set(title=f"after {idle_ms:g} ms of idling", xlabel="pass")
    axes[0].set_ylabel("time of a pass of one token\nover its settled time")
    legend_above(figure, axes[0], columns=3)
    return figure


MEASURE = Measure((SETTLING,), Parameters, run, "time.perf_counter around each")
