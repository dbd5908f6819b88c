"""What a model may be named, without torch: a name that is none is refused before anything is imported or loaded."""

import os
from contextlib import suppress
from errno import ENOENT
from pathlib import Path
from typing import Any

from specquant.errors import SpecquantError
from specquant.files import resolve
from specquant.models.hub import SMALL_FILES, is_gguf, is_hub_id, locate, resolve_model
from specquant.models.packaged import is_packaged

# What the Llama-3 models have in common, and what not (arXiv 2407.21783, table 3).
LLAMA_3: dict[str, Any] = {
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "tie_word_embeddings": False,
}
SHAPES = {
    "llama-3-8b": LLAMA_3
    | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "llama-3-70b": LLAMA_3
    | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
}


def require_model(model: str | Path, shapes: bool = False) -> None:
    """Raises SpecquantError where there is no file or directory of a name, below the working folder or the project
    root, and it is no other model's name either.

    Args:
        model: As it was given.
        shapes: Whether it may be a name in `SHAPES`.
    """
    if is_packaged(model) or is_hub_id(model) or (shapes and str(model) in SHAPES) or _is_there(model):
        return
    if is_gguf(model):
        raise no_gguf(model, os.strerror(ENOENT))
    raise no_shapes(model) if shapes else no_model(model)


def source_of(model: str | Path) -> str | Path:
    """What a model's shapes are read of: a name in `SHAPES`, or a directory, for which a hub id's is fetched.

    Raises SpecquantError as `locate`.
    """
    return str(model) if str(model) in SHAPES else locate(resolve_model(model), SMALL_FILES)


def _is_there(path: str | Path) -> bool:
    """Whether there is something, or a reason why it cannot be looked at, which is told where it is read."""
    places = [Path(path)]
    with suppress(SpecquantError):  # there is no clone, in whose place a relative path could be
        places.append(resolve(path))
    for place in places:
        try:
            os.lstat(place)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError):
            pass
        return True
    return False


def no_model(path: str | Path) -> SpecquantError:
    """For what is no directory of a model: says what is there instead."""
    found = "it is a file" if os.path.exists(path) else "nothing is there"
    if os.path.isdir(path):
        found = "it has no config.json"
    return SpecquantError(f"{path} is not a model directory: {found}; name a directory that has a config.json")


def no_gguf(file: str | Path, reason: object) -> SpecquantError:
    """For what is called as a GGUF file is, and cannot be read."""
    return SpecquantError(f"cannot read {file} ({reason}): give a GGUF file that can be read")


def no_shapes(model: str | Path) -> SpecquantError:
    """The same where a name in `SHAPES` would do, too."""
    return SpecquantError(f"{model} is neither a model directory nor one of {', '.join(SHAPES)}")
