"""What if: the speed of every method over the draft size, for any scheme and card, under any acceptance."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure

from specquant.decoding.drafters import MARKS
from specquant.errors import SpecquantError
from specquant.models.synthetic import synthetic_config
from specquant.planning.acceptance import FITTED_AT, Chances, Shapes
from specquant.planning.cards import PassWork, read_cards
from specquant.planning.planner import Planner
from specquant.planning.recorded import RecordedCosts
from specquant.tables.intervals import sample
from specquant.tables.style import SCHEMES, along_draft_sizes, label_ends, mark, new_figure
from specquant.tables.verify_cost import behind_first_context

MIN_DRAFT_LENGTH = 6  # of the paper's hierarchy and of vanilla drafting
PLACE = {"left": 0.13, "bottom": 0.15, "right": 0.98, "top": 0.97}  # of the axis: to find it takes half of the drawing


@dataclass
class WhatIf:
    """Planners by card and scheme for one target and intermediate model.

    Attributes:
        costs: Of one card, which `card` names.
        card: As its data sheet calls it.
        shapes: Of the trees.
        others: Further planners by card and scheme, such as those of the paper's own code.
    """

    costs: RecordedCosts
    card: str
    shapes: Shapes
    target: str
    intermediate: str
    head_scheme: str
    others: Mapping[tuple[str, str], Planner] = field(default_factory=dict)
    known: dict[tuple[str, str], Planner] = field(default_factory=dict)

    @property
    def cards(self) -> list[str]:
        """What can be chosen: the measured card, those of `others`, and cards by their data sheets."""
        sheets = [f"{name}, by its data sheet" for name in read_cards()]
        return list(dict.fromkeys([f"{self.card}, measured", *(card for card, _ in self.others), *sheets]))

    @property
    def schemes(self) -> list[str]:
        """Those in which both models were measured."""
        passes = self.costs.passes
        of_target, of_small = (set(passes[passes.model == name].scheme) for name in (self.target, self.intermediate))
        return [scheme for scheme in SCHEMES if scheme in of_target & of_small]

    def planner(self, card: str, scheme: str) -> Planner:
        """Raises SpecquantError where nothing is known of a scheme on a card."""
        if (card, scheme) not in self.known:
            self.known[card, scheme] = self._planner(card, scheme)
        return self.known[card, scheme]

    def _planner(self, card: str, scheme: str) -> Planner:
        if card == f"{self.card}, measured":
            return self.costs.planner(self.target, self.intermediate, scheme, self.head_scheme)
        if (card, scheme) in self.others:
            return self.others[card, scheme]
        sheet = read_cards().get(card.partition(",")[0]) if card.endswith("data sheet") else None
        if sheet is None:
            raise SpecquantError(f"{card} was not measured in {scheme}: choose another scheme or card")
        sizes = sorted(self.costs.passes.draft_size.unique())
        works = (PassWork(synthetic_config(name), scheme) for name in (self.target, self.intermediate))
        return Planner(*(work.costs(sheet, sizes) for work in works))

    def sample(self, card: str, scheme: str) -> str:
        """How many processes measured what a prediction rests on: `tables.intervals.sample`, or why there is none."""
        if card != f"{self.card}, measured":
            return "not told" if (card, scheme) in self.others else "0, nothing was measured"
        passes = behind_first_context(self.costs.passes)
        passes = passes[passes.model.isin([self.target, self.intermediate]) & (passes.scheme == scheme)]
        drafting = self.costs.drafting[self.costs.drafting.head_scheme == self.head_scheme]
        return sample(passes, drafting, self.costs.rounds, self.costs.replayed)

    def speeds(self, card: str, scheme: str, chances: Chances) -> pd.DataFrame:
        """Predicted tokens per second by method and draft size, the nodes of its tree, each with its best iterations.

        0 nodes: a method without a tree. Chances belong to trees of `FITTED_AT`; those of others are scaled. Raises
        SpecquantError as `planner`.
        """
        planner, statistics = self.planner(card, scheme), self.shapes.statistics(chances, FITTED_AT)
        table = planner.table(statistics, planner.plans(statistics, [MIN_DRAFT_LENGTH]))
        best = table.groupby(["method", "draft_size"], sort=False).tokens_per_s.max().reset_index()
        plain = best[best.method == "autoregressive"].tokens_per_s.iloc[0]
        return best.assign(speedup=best.tokens_per_s / plain)


def draw_what_if(speeds: pd.DataFrame, draft_size: int) -> Figure:
    """Speedup over decoding one by one against the draft size; dotted: the one that was chosen, at which names have
    their speedup.

    speeds: of `WhatIf.speeds`.
    """
    figure, (axis,) = new_figure(height_in=2.6, layout="none", gridspec_kw=PLACE)
    sizes = speeds[speeds.draft_size > 0].draft_size
    ends = []
    for method, line in speeds.groupby("method", sort=False):
        look = mark(str(method), MARKS)
        line = line.sort_values("draft_size")
        if (line.draft_size == 0).all():
            gain = line.speedup.iloc[0]
            axis.plot([sizes.min(), sizes.max()], [gain, gain], "--", color=look.color, linewidth=0.9)
        else:
            axis.plot(line.draft_size, line.speedup, color=look.color, marker=look.marker)
            at = line[line.draft_size <= draft_size].speedup
            gain = at.iloc[-1] if len(at) else line.speedup.iloc[0]
        end = line.speedup.iloc[-1]
        ends.append((sizes.max(), end, f"{look.label} {gain:.2f}", look.color))
    axis.axvline(draft_size, color="0.4", linewidth=0.8, linestyle=":")
    along_draft_sizes(axis)
    ticks = [size for size in sorted(sizes.unique()) if size != 30]  # no room beside 32
    axis.set_xticks(ticks)
    axis.set(xlabel="draft size (nodes of the tree)", ylabel="speedup over decoding one by one")
    axis.set(xlim=(0.9 * min(ticks), 3.4 * max(ticks)), ylim=(0, 1.08 * max(speeds.speedup.max(), 1)))
    label_ends(axis, ends)
    return figure


def draw_refusal(sentence: str) -> Figure:
    """A sentence where a figure would be."""
    figure, (axis,) = new_figure(height_in=2.6)
    axis.set_axis_off()
    axis.text(0.5, 0.5, sentence, ha="center", va="center", wrap=True)
    return figure
