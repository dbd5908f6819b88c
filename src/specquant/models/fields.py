"""Fields of JSON files: what each may hold is said in one place, and checked before anything is computed from it."""

import json
import math
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from specquant.errors import SpecquantError

MOST = 2**31 - 1  # of anything that is counted

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80
_short.maxlist = _short.maxtuple = _short.maxdict = 8


class Kind(NamedTuple):
    """What a field may hold: in words, and as a test."""

    words: str
    fits: Callable[[Any], bool]


def read_json(file: Path, remedy: str = "copy it again") -> dict[str, Any]:
    """The object in a JSON file. Raises SpecquantError where it is none."""
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise SpecquantError(f"{file} is nested too deeply for JSON of a model: {remedy}") from None
    except (OSError, ValueError) as error:
        raise SpecquantError(f"{file} is not JSON ({error}): {remedy}") from None
    if not isinstance(fields, dict):
        raise SpecquantError(f"{file} is no JSON object: {remedy}")
    return fields


def check_fields(fields: Mapping[str, Any], kinds: Mapping[str, Kind], place: Path | str) -> None:
    """Raises SpecquantError where a field that is there does not hold what its kind says. place: the file, for it."""
    for name, kind in kinds.items():
        if name in fields and not kind.fits(fields[name]):
            raise SpecquantError(f"{place}: {name} is {shown(fields[name])}; it must be {kind.words}")


def shown(value: Any) -> str:
    """A value as a sentence shows it: not longer than a line, however long it is."""
    return _short.repr(value)


def whole(lowest: int, highest: int = MOST) -> Kind:
    """Whole numbers between two, inclusive."""
    return Kind(
        f"a whole number, {lowest} to {highest}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest,
    )


def number(lowest: float, highest: float) -> Kind:
    """Finite numbers between two, inclusive."""

    def fits(value: Any) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and lowest <= value <= highest and math.isfinite(value)

    return Kind(f"a number above 0, {lowest:g} to {highest:g}", fits)


def optional(kind: Kind) -> Kind:
    """The same, or null."""
    return Kind(f"{kind.words}, or null", lambda value: value is None or kind.fits(value))


def list_of(kind: Kind) -> Kind:
    """Lists of what is of a kind."""
    words = f"a list, each of it {kind.words}"
    return Kind(words, lambda value: isinstance(value, list) and all(map(kind.fits, value)))


COUNT = whole(1)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a text", lambda value: isinstance(value, str))
OBJECT = Kind("a JSON object", lambda value: isinstance(value, dict))
