"""What parameters of every question are checked for, before anything is measured."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from specquant.errors import SpecquantError
from specquant.models.names import SHAPES

SEEDS = 2**64
LONGEST_MS = 60_000  # of what passes before something is timed
LONGEST_REST = 100  # behind a run, over the time of the run


def require_at_least(parameters: object, **lowest: float) -> None:
    """Raises SpecquantError for a parameter that is below its lowest value, or no number; None is the default."""
    for name, least in lowest.items():
        if getattr(parameters, name) is not None and not getattr(parameters, name) >= least:
            raise SpecquantError(f"{name} is {getattr(parameters, name)}: give at least {least}")


def require_draft_sizes(draft_sizes: Sequence[int]) -> None:
    """Raises SpecquantError where there is none, or one is below 1."""
    if not draft_sizes or min(draft_sizes) < 1:
        raise SpecquantError(f"draft_sizes is {draft_sizes}: give whole numbers of at least 1")


def require_short(name: str, *times_ms: float) -> None:
    """Raises SpecquantError for times that are negative, no numbers, or longer than anybody would wait."""
    for time_ms in times_ms:
        if not 0 <= time_ms <= LONGEST_MS:
            raise SpecquantError(f"{name} is {time_ms}: give at least 0 and at most {LONGEST_MS} milliseconds")


def require_rest(rest_over_run: float) -> None:
    """Raises SpecquantError for rests that are negative, no number, or longer than anybody would wait."""
    if not 0 <= rest_over_run <= LONGEST_REST:
        raise SpecquantError(f"rest_over_run is {rest_over_run}: give at least 0 and at most {LONGEST_REST}")


def require_shapes(models: Iterable[str]) -> None:
    """Raises SpecquantError where a model has no shapes here (`models.names.SHAPES`), or no model is named."""
    models = list(models)
    unknown = [name for name in models if name not in SHAPES]
    if unknown or not models:
        raise SpecquantError(
            f"there are no shapes for {', '.join(unknown) or 'no model'}: choose of {', '.join(SHAPES)}"
        )


def require_weights(model: str | Path, weights: str | None) -> None:
    """Raises SpecquantError where trained weights are asked of a name in `models.names.SHAPES`."""
    if weights == "trained" and str(model) in SHAPES:
        raise SpecquantError(f"{model} is a name, without weights: give a model directory, or take synthetic weights")


def later_seed(seed: int, place: int) -> int:
    """The seed of what stands at a place of many: behind the last that there is, the first ones follow."""
    return seed + place if seed + place < SEEDS else seed + place - SEEDS
