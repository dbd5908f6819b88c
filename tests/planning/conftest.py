"""A planner of two models with costs that sums can be done with by hand, and recorded trees."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from specquant.decoding.method import Plan
from specquant.planning import calibration
from specquant.planning.acceptance import Shapes
from specquant.planning.costs import LevelCosts
from specquant.planning.planner import Planner
from specquant.planning.recorded import plan_tables

PROBES = (
    Plan("autoregressive"),
    Plan("vanilla", min_draft_length=6),
    Plan("eagle2", 9, 2),
    Plan("hierarchical", 7, 2, 3),
)
SHAPES = ("-1 0 0 1 1 3 2", "-1 0 1 2 0 0 0", "-1 0 0 0 1 2 3")  # their longest paths have 3, 3 and 2 nodes
TREES = pd.DataFrame({"draft_size": 7, "iterations": 3, "parents": SHAPES})
BOTH = Shapes.of(TREES)
TARGET = LevelCosts(pd.Series({1: 10.0, 7: 16.0, 16: 25.0}), pd.Series({3: 3.0, 6: 6.0}), 0.5)
SMALL = LevelCosts(pd.Series({1: 2.0, 2: 2.5, 7: 3.0}), pd.Series({3: 1.0}), 0.25)


@pytest.fixture(autouse=True)
def close():
    """Figures, of which pyplot keeps each."""
    yield
    plt.close("all")


@pytest.fixture
def planner():
    return Planner(TARGET, SMALL)


def plan_table(*models, head_scheme="fp16", **options) -> pd.DataFrame:
    """`plan_tables` with heads in one scheme."""
    return plan_tables(*models, head_scheme=head_scheme, **options)[head_scheme]


def plan_few(monkeypatch, tmp_path, *modules) -> None:
    """Few plans and prompts, which leave room in a short context, for the modules that decode prompts."""
    monkeypatch.setattr(calibration, "PROBES", PROBES)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"id": "{n}", "task": "t{n % 2}", "prompt": "{n} plus 1"}}\n' for n in range(4)))
    for module in (calibration, *modules):
        monkeypatch.setattr(module, "PROMPTS", str(prompts))
