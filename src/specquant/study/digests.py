"""What decides whether a notebook runs again: digests of what it does, of what it may read, and of what it wrote."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat

from specquant.errors import SpecquantError
from specquant.files import resolve, sha256_of
from specquant.models.companions import COMPANIONS
from specquant.tables.sources import code_of

# What any notebook may read: a change in these makes all of them run again.
SHARED_INPUTS = ("src", "data", "requirements.lock")


def digest_of_files(root: Path) -> str:
    digest = hashlib.sha256()
    for top in SHARED_INPUTS:
        for path in sorted([root / top, *(root / top).rglob("*")]):
            if path.is_file() and "__pycache__" not in path.parts and ".egg-info" not in str(path):
                digest.update(digest_of_texts(path.relative_to(root).as_posix()).encode())
                try:
                    digest.update(_digest_of_content(path))
                except OSError as error:
                    raise SpecquantError(f"cannot read {path} ({error.strerror}), which notebooks may need") from None
    return digest.hexdigest()


def digests_of_named(parameters: Mapping[str, Any]) -> dict[str, str]:
    """What tells the models, and the calibration text, that a notebook's parameters name from others of these names."""
    named, text = {name: parameters.get(name) for name in ("target", *COMPANIONS)}, parameters.get("calibration_text")
    models = {name: str(model) for name, model in named.items() if model}
    told = {"calibration_text": sha256_of(text)} if text and resolve(text).is_file() else {}
    if models:
        from specquant.models.digest import digests_of  # loads torch

        told |= digests_of(models)
    return told


def source_of(notebook: Path) -> str:
    """What a notebook does: its cells' sources and tags, not their outputs."""
    cells = nbformat.read(notebook, as_version=4).cells
    return json.dumps([(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in cells])


def digest_of_output(path: Path) -> str | None:
    """What tells a whole file from a damaged one: its SHA-256, of weights only their size; None where it is gone."""
    try:
        if path.suffix == ".safetensors":
            return str(path.stat().st_size)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def digest_of_texts(*texts: str) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _digest_of_content(path: Path) -> bytes:
    """Of a file; of a module only what it does, which comments, docstrings and line breaks do not change."""
    with path.open("rb") as file:
        if path.suffix == ".py":
            with suppress(SyntaxError, ValueError, RecursionError):  # as it stands, then
                return hashlib.sha256(code_of(file.read()).encode()).digest()
            file.seek(0)
        return hashlib.file_digest(file, "sha256").digest()
