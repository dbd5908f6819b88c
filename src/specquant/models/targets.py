"""Quantized copies of a target, made once and kept: notebooks that need the same one share it."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from transformers import PreTrainedConfig

from specquant.errors import SpecquantError
from specquant.files import locked, resolve
from specquant.models.checkpoint import WEIGHT_FILES, lender_of
from specquant.models.companions import place_of
from specquant.models.config import load_config
from specquant.models.hub import locate, resolve_model
from specquant.models.llama import check_widths
from specquant.models.loading import stored_scheme
from specquant.models.quantize import CALIBRATION_TEXT, COPIED_FILES, FORMAT_VERSION, quantize_model
from specquant.quant import get_scheme, scheme_names


def calibration_text_beside(target: str | Path) -> Path:
    """The calibration text of a target's quantized copies: calibration.txt beside it, or else the tiny target's own.

    A relative path is below the project root.
    """
    beside = place_of(resolve_model(target)).parent / "calibration.txt"
    return beside if beside.is_file() else resolve(CALIBRATION_TEXT)


def quantized_target(
    model_dir: str | Path,
    scheme: str,
    keep_in: str | Path,
    method: str = "calibrated",
    device: str = "cpu",
    calibration_text: str | Path = CALIBRATION_TEXT,
) -> Path:
    """The directory of a target in `scheme`: `model_dir` itself if it is stored so, else a copy below `keep_in`.

    model_dir may be a hub id, which is downloaded first. The copy is made if it is not there, on `device`, calibrated
    on the file `calibration_text`. Relative paths are below the project root. The copy's name says the scheme, the
    method, and a digest of all that decides about its content, so that no stale one is ever used. Raises SpecquantError
    as `quantize_model` does, and where `model_dir` is stored in another scheme than fp16 and `scheme`.
    """
    model_dir = locate(resolve_model(model_dir))
    stored = stored_scheme(load_config(model_dir), model_dir)
    if get_scheme(scheme).name == stored:
        return model_dir
    if stored != "fp16":
        raise SpecquantError(f"{model_dir} is stored in {stored}, not in {scheme}: ask for that, or give fp16")
    text = resolve(calibration_text)
    copy = resolve(keep_in) / f"{scheme}-{method}-{_digest(model_dir, text)[:12]}"
    if not copy.is_dir():
        with locked(copy.with_name(f".{copy.name}.lock")):  # another process may be making it
            if not copy.is_dir():
                quantize_model(model_dir, scheme, copy, text, method=method, device=device, progress=False)
    return copy


def possible_schemes(
    names: str, model_dir: str | Path, say: Callable[[str], None] = print, more: Sequence[str] = ()
) -> list[str]:
    """The schemes to study a target in, of those that `quant.scheme_names` reads; the first is what others are compared
    with.

    model_dir: may be a hub id, which is downloaded first. more: schemes that "all" means besides the paper's. Of a
    target that is quantized already its own alone. With "all", schemes that the model cannot have are left out, each
    with a sentence to `say`. Raises SpecquantError for one that was named and that it cannot have.
    """
    path = locate(resolve_model(model_dir))
    config = load_config(path)
    stored = stored_scheme(config, path)
    if stored != "fp16":
        if names != "all" and stored not in scheme_names(names):
            raise SpecquantError(f"{model_dir} is stored in {stored}, not in {names}: ask for that, or all")
        return [stored]
    chosen = scheme_names(names)
    if names == "all":
        return storable_schemes(list(dict.fromkeys([*chosen, *more])), config, say)
    for name in chosen:
        require_storable(name, config)
    return chosen


def storable_schemes(
    names: Sequence[str], config: PreTrainedConfig, say: Callable[[str], None] = print, rotated: bool = True
) -> list[str]:
    """Those of `names` that a model of this configuration can have; of each other one a sentence to `say`.

    rotated: whether weights are really rotated in schemes that do so; random ones are not.
    """
    storable = []
    for name in names:
        try:
            require_storable(name, config, rotated)
            storable.append(name)
        except SpecquantError as error:
            say(f"{name} is left out: {error}")
    return storable


def require_storable(name: str, config: PreTrainedConfig, rotated: bool = True) -> None:
    """Raises SpecquantError where a model of this configuration cannot be stored in a scheme, or not be rotated."""
    scheme = get_scheme(name)
    check_widths(config, scheme, "this model", rotates=rotated and scheme.rotated)


def _digest(model_dir: Path, text: Path) -> str:
    """Of the model, of the one that it borrows embedding and LM head from, of the text and `FORMAT_VERSION`."""
    digest = hashlib.sha256(f"{FORMAT_VERSION}\0".encode())
    models = [model for model in (model_dir, lender_of(model_dir)) if model]
    patterns = (*WEIGHT_FILES, "config.json", *COPIED_FILES)
    files = [file for model in models for pattern in patterns for file in sorted(model.glob(pattern))]
    for path in (*files, text):
        if path.is_file():
            stamp = path.stat()
            digest.update(f"{path.name}\0".encode() + _digest_of_file(path, stamp.st_size, stamp.st_mtime_ns))
    return digest.hexdigest()


@cache
def _digest_of_file(path: Path, size: int, changed_ns: int) -> bytes:
    """Remembered while the file stays as it is: 140 GB take minutes to read."""
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").digest()
