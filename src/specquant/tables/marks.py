"""How one thing looks in every figure. Without matplotlib, for what says so of itself and is not drawn now."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mark:
    """How one scheme or method looks in every figure."""

    label: str
    color: str
    marker: str
