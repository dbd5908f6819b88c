"""The planner's what-if in a notebook: controls for all that it depends on, and the figure that follows them."""

from pathlib import Path

from ipywidgets import Dropdown, FloatSlider, SelectionSlider
from matplotlib.figure import Figure

from specquant.errors import SpecquantError
from specquant.planning.acceptance import Chances
from specquant.planning.what_if import WhatIf, draw_refusal, draw_what_if
from specquant.study.display import moved_by
from specquant.tables.style import SCHEMES, mark, model_label

STYLE = {"description_width": "14em"}
DRAFT_SIZES = (8, 16, 24, 30, 32, 48, 60)


def explore(what_if: WhatIf, chances: Chances, scheme: str, figures_dir: str | Path) -> None:
    """Show the controls and the figure, which is saved as it is drawn first.

    Args:
        what_if: What can be chosen, and what is predicted for it.
        chances: At which the sliders stand first, the same at each depth.
        scheme: That is chosen first.
        figures_dir: For `what_if.png` and its PDF.
    """
    names = [(mark(name, SCHEMES).label, name) for name in what_if.schemes]
    moved_by(
        lambda **chosen: answer(what_if, **chosen),
        ("what_if", figures_dir),
        scheme=Dropdown(options=names, value=scheme, description="scheme", style=STYLE),
        card=Dropdown(options=what_if.cards, description="card", style=STYLE),
        draft_size=SelectionSlider(options=DRAFT_SIZES, value=24, description="draft size", style=STYLE),
        head=_chance(chances.head[0], "chance, target's head"),
        inner_head=_chance(chances.inner_head[0], "chance, intermediate model's head"),
        agreement=_chance(chances.agreement, "agreement, intermediate model"),
    )


def answer(
    what_if: WhatIf, scheme: str, card: str, draft_size: int, head: float, inner_head: float, agreement: float
) -> tuple[Figure, str]:
    """The figure for what was chosen, and its caption; where nothing is known of it, a sentence that says so."""
    models = " and ".join(map(model_label, (what_if.target, what_if.intermediate)))
    basis = f"Model: {models}, {mark(scheme, SCHEMES).label}. Weights: synthetic. Acceptance: assumed. Device: {card}."
    try:
        speeds = what_if.speeds(card, scheme, Chances([head], [inner_head], agreement))
    except SpecquantError as error:
        return draw_refusal(str(error)), f"Nothing is predicted. {basis} n: 0."
    text = "Predicted speedup over decoding one by one; beside names that at the dotted draft size."
    return draw_what_if(speeds, draft_size), f"{text} {basis} n: {what_if.sample(card, scheme)}."


def _chance(value: float, description: str) -> FloatSlider:
    about = {"description": description, "continuous_update": False, "style": STYLE}
    return FloatSlider(value, min=0, max=1, step=0.02, **about)
