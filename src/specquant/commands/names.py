"""Names of schemes, methods, benchmarks, models and devices: a wrong one is refused before a command imports torch.

Which option takes which kind of name, its own name says: a scheme's ends with `scheme` or `schemes`.
"""

import ast
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import specquant
from specquant.errors import unknown
from specquant.models.companions import COMPANIONS, OWN, target_in
from specquant.models.names import SHAPES, require_model
from specquant.models.options import DEVICES, no_device

# Commands whose models may be names, of shapes alone; and what stands for some of the names, in one command or in all.
OF_SHAPES = ("tune", "adaptive", "peer_decoding", "planted", "profile", "replay", "rounds", "verify_cost")
ALSO = {"generate": {"method": "auto"}, "planted": {"methods": "sequence"}}
ALL = {"schemes": "all", "models": "all"}


def check_names(command: Callable[..., object], values: Mapping[str, Any]) -> None:
    """Raises SpecquantError for the name of something that there is not, in the values of a command's options.

    What else would be wrong with it, such as a model that does not fit, the command says.
    """
    known: dict[str, Callable[[], Iterable[str]]]
    known = {"scheme": schemes, "method": methods, "benchmark": benchmarks}
    for name, value in values.items():
        kind = name.rpartition("_")[2].removesuffix("s")
        also = ALSO.get(command.__name__, {}).get(name)
        for word in _words(value) if kind in known else ():
            if word not in (also, ALL.get(name)) and word not in (there := known[kind]()):
                raise unknown(kind, word, [*there, f"or {also}"] if also else there)
    if command.__name__ != "plan":  # which knows models by their names in tables
        _check_models(values, command.__name__ in OF_SHAPES)
    if (device := values.get("device")) and device not in DEVICES:
        raise no_device(device)


def _check_models(values: Mapping[str, Any], shapes: bool) -> None:
    for name in ("model", "head", *COMPANIONS):
        model = values.get(name)
        if name == "intermediate" and str(model).startswith(OWN):
            if (scheme := str(model).removeprefix(OWN)) not in schemes():
                raise unknown("scheme", scheme, schemes())
        elif isinstance(model, str | Path):
            require_model(model, shapes)
    if others := [name for name in _words(values.get("models")) if name not in (*SHAPES, ALL["models"])]:
        raise unknown("model", others[0], SHAPES)
    if (folder := values.get("models_dir")) is not None:
        require_model(target_in(folder))


def _words(value: Any) -> list[str]:
    """The names in a value; none where nothing was chosen."""
    return [word for word in (value if isinstance(value, tuple) else (value,)) if isinstance(word, str)]


def benchmarks() -> list[str]:
    """The names in `benchmarks.registry`."""
    from specquant.benchmarks.registry import BENCHMARKS

    return list(BENCHMARKS)


def schemes() -> list[str]:
    """The names in `quant.SCHEMES`, read from their source, for that package imports torch."""
    source = ast.parse((_sources() / "quant" / "schemes.py").read_text(encoding="utf-8"))
    made = [node for node in ast.walk(source) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Scheme"]
    return [ast.literal_eval(node.args[0]) for node in made]


def methods() -> list[str]:
    """The names in `decoding.drafters.METHODS`, read from the source of the drafters, for these import torch."""
    found = []
    for path in (_sources() / "decoding" / "drafters").glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            given = {
                ast.unparse(each.targets[0]): each.value
                for each in getattr(node, "body", ())
                if isinstance(each, ast.Assign)
            }
            if isinstance(node, ast.ClassDef) and "name" in given and "mark" in given:
                place = ast.literal_eval(given["place"]) if "place" in given else math.inf
                found.append((place, ast.literal_eval(given["name"])))
    return [name for _, name in sorted(found)]


def _sources() -> Path:
    return Path(specquant.__file__).parent
