"""Quantized copies of a target, made once and kept: notebooks that need the same one share it."""

import hashlib
from pathlib import Path

from specquant.models.hub import locate, resolve_model
from specquant.models.quantize import CALIBRATION_TEXT, quantize_model
from specquant.paths import resolve
from specquant.quant import get_scheme

# What decides about the codes: the weights, the text, and this package's code below `decoding`.
CODE = ("kernels", "quant", "models")


def quantized_target(model_dir: str | Path, scheme: str, keep_in: str | Path, method: str = "calibrated") -> Path:
    """The directory of a target in `scheme`: `model_dir` itself for fp16, else a copy below `keep_in`.

    model_dir may be a hub id, which is downloaded first. The copy is made if it is not there. Relative paths are below
    the project root. The copy's name says the scheme, the method, and a digest of all that decides about its content,
    so that no stale one is ever used. Raises SpecquantError as `quantize_model` does.
    """
    model_dir = locate(resolve_model(model_dir))
    if get_scheme(scheme).name == "fp16":
        return model_dir
    copy = resolve(keep_in) / f"{scheme}-{method}-{_digest(model_dir)[:12]}"
    if not copy.is_dir():
        quantize_model(model_dir, scheme, copy, method=method, progress=False)
    return copy


def _digest(model_dir: Path) -> str:
    package = Path(__file__).parents[1]
    files = [*sorted(model_dir.glob("*.safetensors")), model_dir / "config.json", resolve(CALIBRATION_TEXT)]
    for folder in CODE:
        files += sorted((package / folder).glob("*.py"))
    digest = hashlib.sha256()
    for path in files:
        if path.is_file():
            with open(path, "rb") as content:
                digest.update(f"{path.name}\0".encode() + hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
