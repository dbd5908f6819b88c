"""With which kernels a table was measured: a digest of their sources, by which rows of others are told apart.

It covers what `specquant/kernels` does: the modules, without comments, docstrings and layout, and the table of
configurations. It does not cover the code around them, nor Triton: the commit and the versions in a table's JSON do.
"""

import ast
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

FIELD = "kernels_sha256"  # in the JSON of a table of a GPU's times
NO_CLOCK = "none"  # of what is not timed
KERNELS = Path(__file__).parents[1] / "kernels"


@cache
def kernels_sha256() -> str:
    """The digest of the kernels of this process's code."""
    paths = [path for path in KERNELS.iterdir() if path.suffix in (".py", ".json")]
    return digest_of_sources({path.name: path.read_bytes() for path in paths})


def digest_of_sources(sources: Mapping[str, bytes]) -> str:
    """The SHA-256 of what modules and JSON files say.

    Args:
        sources: The content of each, by its name.

    Returns:
        A digest that comments, docstrings, layout and the version of Python do not change.
    """
    told = [
        [name, json.loads(content) if name.endswith(".json") else code_of(content)]
        for name, content in sorted(sources.items())
    ]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def code_of(source: bytes) -> str:
    """What a module does, as text: its syntax tree without docstrings. Raises SyntaxError where it is none."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node, clean=False) is not None
            node.body = (node.body[1:] or [ast.Pass()]) if documented else node.body
    return _told(tree)


def _told(node: Any) -> str:
    """A node as text: as `ast.dump`, which leaves out other fields in each version of Python."""
    if isinstance(node, ast.AST):
        fields = [f"{name}={_told(value)}" for name, value in ast.iter_fields(node) if value not in (None, [])]
        return f"{type(node).__name__}({', '.join(fields)})"
    return f"[{', '.join(map(_told, node))}]" if isinstance(node, list) else repr(node)


def needs_kernels(device: str, clock: str | None) -> bool:
    """Whether times that are taken on this device, by this clock, depend on the kernels."""
    return device.startswith("cuda") and clock not in (None, NO_CLOCK)


def several(value: Any) -> list[Any]:
    """The values of a field of a table's JSON: where its rows differ it is a list of them."""
    return value if isinstance(value, list) else [value]


def measured_with_others(record: Mapping[str, Any], kernels: str | None) -> str | None:
    """With which kernels rows were measured, in words; None where it was with these, or their kernels do not matter.

    Args:
        record: The provenance of the rows.
        kernels: The digest of those that are here now; None where rows do not depend on any.
    """
    theirs = record.get(FIELD)
    if kernels is None or theirs == kernels:
        return None
    told = " and ".join(each or "unknown" for each in several(record.get("commit")))
    return f"measured with {'other kernels' if theirs else 'kernels that its JSON does not name'} (commit {told})"
