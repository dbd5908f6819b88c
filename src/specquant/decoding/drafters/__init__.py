"""The drafters: one file each, and every list of methods follows from the methods that these files define.

A file defines what drafts (`decoding.drafter.Drafter`) and the methods that use it (subclasses of
`decoding.method.Method`). A new one is found by being here.
"""

import math
from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules

import pandas as pd

from specquant.decoding.method import ADAPTIVE, DraftSettings, Method, Plan, plans_in, require_tree
from specquant.errors import SpecquantError, unknown


def _found() -> dict[str, Method]:
    """The methods of all files, by name: the paper's in its order, then the others by name."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    methods = [
        defined()
        for module in modules
        for defined in vars(module).values()
        if isinstance(defined, type) and issubclass(defined, Method) and defined.__module__ == module.__name__
    ]
    order = sorted(methods, key=lambda method: (math.inf if method.place is None else method.place, method.name))
    return {method.name: method for method in order}


METHODS = _found()
# The methods that the paper compares, and that tables, notebooks and figures compare here.
PAPER_METHODS = tuple(name for name, method in METHODS.items() if method.place is not None)
# How methods are drawn.
MARKS = {name: method.mark for name, method in METHODS.items()}


def get_method(name: str) -> Method:
    """The method of this name. Raises SpecquantError where there is none."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def plan_label(plan: Plan) -> str:
    """A plan as figures and tables name it: "EAGLE-2, 24 nodes"."""
    name = MARKS[plan.method].label if plan.method in MARKS else plan.method
    tree = f"{plan.draft_size} nodes" if plan.draft_size else ""
    tree = "adaptive trees" if plan.draft_size == ADAPTIVE else tree
    least = f"at least {plan.min_draft_length} tokens" if plan.min_draft_length else ""
    least = "as many tokens as pay" if plan.min_draft_length == ADAPTIVE else least
    return ", ".join(part for part in (name, tree, least) if part)


def by_plan(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose index holds the fields of plans, with their labels for an index."""
    return table.set_axis(pd.Index(map(plan_label, plans_in(table.index.to_frame())), name="plan"))


def methods_with_trees(of: tuple[str, ...] = ("target", "intermediate")) -> list[str]:
    """The methods whose EAGLE-2 trees one of these models verifies."""
    return [name for name, method in METHODS.items() if method.trees_of in of]


def methods_with(companion: str) -> list[str]:
    """The methods that need a companion."""
    return [name for name, method in METHODS.items() if companion in method.companions]


def check_methods(names: Sequence[str], settings: DraftSettings) -> None:
    """Raises SpecquantError for a name that is none, for trees that its settings cannot grow, and where they let
    something adapt that no method has."""
    known = [get_method(name).name for name in names]
    for method in map(get_method, known):
        plan = method.plan(settings)
        if method.head and plan.draft_size != ADAPTIVE:
            require_tree(*plan.tree, settings.top_k)
    inner = set(methods_with("intermediate"))
    heads = {name for name, method in METHODS.items() if method.head}
    asked = {
        "--draft-size": (settings.tree[0], heads - inner),
        "--inner-draft-size": (settings.inner_tree[0], heads & inner),
        "--min-draft-length": (settings.least, inner),
    }
    for option, (value, able) in asked.items():
        if value == ADAPTIVE and not able & {*known}:
            raise SpecquantError(
                f"{option} adaptive does nothing for {' and '.join(known)}: choose one of {', '.join(sorted(able))}, "
                "or give a number"
            )
