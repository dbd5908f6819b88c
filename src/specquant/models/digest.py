"""What tells a model from another one of the same name, cheaply: of large files only samples are read."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from specquant.errors import SpecquantError
from specquant.models.checkpoint import named_lender
from specquant.models.hub import COMMIT, HEAD_FILES, SMALL_FILES, as_given, is_hub_id, locate, resolve_model
from specquant.models.packaged import PACKAGED, is_packaged

SAMPLES, SAMPLE_BYTES = 64, 64 * 1024  # of a file; one of no more bytes is read whole
DIGEST = "digest of "  # before a model's name, in the parameters of a table


def digests_of(models: Mapping[str, str | Path]) -> dict[str, str]:
    """The digest of each of these models that has one, as a parameter of a table (`model_digest`).

    Args:
        models: A model by what it is called.
    """
    found = {f"{DIGEST}{name}": model_digest(model) for name, model in models.items()}
    return {name: digest for name, digest in found.items() if digest}


def given_digests(models: Mapping[str, str | Path | None]) -> dict[str, str]:
    """`digests_of` models as a command line names them, relative ones below the working folder; None is none."""
    return digests_of({name: as_given(model) for name, model in models.items() if model})


def by_name_alone(names: Sequence[str]) -> str:
    """What is said where rows are gone on with that name none of these digests."""
    return (
        f"no {' and no '.join(names)} is named, so what is there is taken to be of the model or file that "
        "has that name today: choose another folder if that may be wrong"
    )


def model_digest(model: str | Path) -> str | None:
    """A SHA-256 of the names, sizes and content of a model's configurations, tokenizer and weights.

    A file above 4 MiB counts by 64 samples of 64 KiB, evenly spread from its first byte to its last. So a model that
    was trained on is told apart, and one in which few weights were changed perhaps not. Where it borrows embedding and
    LM head, the digest of that model counts. A model of the hub has its commit instead, and a packaged one the SHA-256
    of its file.

    Args:
        model: A directory, a GGUF file, a hub id, or a name; a relative path is below the project root.

    Returns:
        The digest; None where there are no such files, as for shapes that are known by name.

    Raises:
        SpecquantError: A file cannot be read, or the hub cannot be reached.
    """
    model = resolve_model(model)
    if is_packaged(model):
        return PACKAGED[str(model)].sha256
    if is_hub_id(model):
        return _commit(str(model))
    path, digest = Path(model), hashlib.sha256()
    files = [path] if path.is_file() else sorted({file for pattern in HEAD_FILES for file in path.glob(pattern)})
    if not files:
        return None
    for file in files:
        digest.update(f"{file.name if path.is_dir() else ''}\0".encode())
        try:
            _add_file(digest, file)
        except OSError as error:
            raise SpecquantError(f"cannot read {file} ({error.strerror}): give a model that you can read") from None
    if (lender := named_lender(path)) is not None and named_lender(lender) is None:
        digest.update(f"{model_digest(lender)}".encode())
    return digest.hexdigest()


@cache
def _commit(model: str) -> str | None:
    commit = locate(model, SMALL_FILES).name
    return commit if COMMIT.fullmatch(commit) else None


def _add_file(digest: "hashlib._Hash", path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{size}\0".encode())
    with path.open("rb") as file:
        if size <= SAMPLES * SAMPLE_BYTES:
            digest.update(file.read())
            return
        for place in range(SAMPLES):
            file.seek(place * (size - SAMPLE_BYTES) // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
