"""Where the project's files are, and how a file is written whole or not at all."""

import os
from pathlib import Path

from specquant.errors import SpecquantError


def project_root() -> Path:
    """The clone with `data/` and `notebooks/`: the one this package runs from, else the one around the working folder.

    Raises SpecquantError where there is none, as after an installation that left the clone behind.
    """
    for start in (Path(__file__).resolve().parent, Path.cwd()):
        for folder in (start, *start.parents):
            if (folder / "data").is_dir() and (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file():
                return folder
    raise SpecquantError(
        f"no specquant clone with its data/ and notebooks/ around {Path.cwd()}: go into the clone, or install it with "
        "pip install -e ."
    )


def resolve(path: str | os.PathLike) -> Path:
    """An absolute path as it is; a relative one below the project root, so that notebooks run from any folder."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else project_root() / path


def write_file(path: str | os.PathLike, content: bytes | str) -> Path:
    """Write a file so that readers, and whoever comes after a crash, see the old content or the new, never a part.

    Makes the folder. Raises SpecquantError where the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except OSError as error:
        raise SpecquantError(f"cannot write {path}: {error.strerror}; choose a folder you can write to") from None
    return path
