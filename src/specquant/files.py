"""Where the project's files are, and how a file or a directory is written whole or not at all."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from uuid import uuid4

from specquant.errors import SpecquantError

SEEN_AFTER_S = 90.0  # NFS caches what is in a folder for up to 60 s, where nobody chose otherwise
LONGEST_NAME = 230  # bytes: file systems take 255, and what is unfinished has a longer name


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


def cache_folder() -> Path:
    """Where this user keeps what can be made or fetched again: below XDG_CACHE_HOME, by default ~/.cache.

    Raises SpecquantError where the user has no home folder.
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(named) if os.path.isabs(named) else Path.home() / ".cache") / "specquant"
    except RuntimeError:
        raise SpecquantError("this user has no home folder: set XDG_CACHE_HOME to a folder to keep models in") from None


def read_text(path: str | os.PathLike, what: str) -> str:
    """The content of a UTF-8 text file; `what` it is stands in the SpecquantError where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecquantError(f"cannot read {what} {path} ({error}): give a UTF-8 text file") from None


def with_part(text: str, markers: tuple[str, str], told: str, where: str | os.PathLike) -> str:
    """A page's text with `told` between its markers, two lines.

    Raises SpecquantError that names the page `where` the markers are not there, in their order.
    """
    begin, end = markers
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise SpecquantError(f"{where} lacks the lines {begin} and {end}, in this order: put them where its list goes")
    return f"{text[: text.index(begin)]}{begin}\n{told}{text[text.index(end) :]}"


def write_parts(page: Path, what: str, parts: Mapping[tuple[str, str], str]) -> list[Path]:
    """Write what a page has between markers anew; returns the page where that changed it, else nothing.

    Args:
        page: The page.
        what: It is, as for `read_text`.
        parts: What is to stand between each two markers, with an empty line before and behind.

    Raises:
        SpecquantError: The page cannot be read, or lacks markers.
    """
    text = written = read_text(page, what)
    for markers, told in parts.items():
        written = with_part(written, markers, f"\n{told}\n", page)
    return [write_file(page, written)] if written != text else []


def sha256_of(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's content; a relative path is below the project root.

    Raises SpecquantError where it cannot be read.
    """
    try:
        with open(resolve(path), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SpecquantError(f"cannot read {path}: {error.strerror}: give a file that you can read") from None


def write_file(path: str | os.PathLike, content: bytes | str, by_several: bool = False) -> Path:
    """Write a file so that readers, and whoever comes after a crash, see the old content or the new, never a part.

    Makes the folder. by_several: other processes, of this machine or another, may write the same file meanwhile. Raises
    SpecquantError where the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp" if by_several else f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # a part of it would take the little space there is
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some, or choose a folder elsewhere" if full else "choose a folder you can write to"
        raise SpecquantError(f"cannot write {path}: {error.strerror}; {advice}") from None
    return path


def wait_until_seen(lacking: Callable[[], int], folder: Path) -> None:
    """Wait until this machine sees what others have written: a network file system may show new files late.

    Args:
        lacking: Looks, and says how much is not there yet.
        folder: Where it looks.

    Raises:
        SpecquantError: Something is not seen in time.
    """
    ends = time.monotonic() + SEEN_AFTER_S
    while number := lacking():
        if time.monotonic() >= ends:
            raise SpecquantError(
                f"{number} results of jobs that ended well are not in {folder}, as this machine sees it after "
                f"{SEEN_AFTER_S:.0f} s: ask for the same again, or choose a folder that the nodes share"
            )
        time.sleep(0.5)


def require_writable(path: Path, whole: bool = False) -> None:
    """Find out before work begins whether a folder can be made, if it is not there, and written to; leaves nothing.

    whole: the path is that of a file or a directory which is put there whole, so the folder is the one around it.
    Raises SpecquantError where it cannot.
    """
    there = folder = path.parent if whole else path
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    try:
        for part in path.parts:
            if len(os.fsencode(part)) > LONGEST_NAME:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise SpecquantError(f"cannot write to {folder} ({error.strerror}): choose another directory") from None


def require_new(directory: Path) -> None:
    """Raises SpecquantError where something is at `directory` that is more than an empty one."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise SpecquantError(f"{directory} exists and is not empty: choose another output directory or remove it")


@contextmanager
def written_whole(directory: Path) -> Iterator[Path]:
    """A directory to fill beside `directory`, which takes its place at the end; after an error nothing is left.

    Raises SpecquantError where it cannot be made or filled.
    """
    new_folders = [folder for folder in directory.parents if not folder.exists()]
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        unfinished = directory.with_name(f".{directory.name}.{uuid4().hex[:8]}")
        unfinished.mkdir()  # for all whom the user lets read it; mkdtemp's are for the user alone
    except OSError as error:
        reason = f"cannot write to {directory.parent} ({error.strerror})"
        raise SpecquantError(f"{reason}: choose another directory") from None
    try:
        yield unfinished
        os.replace(unfinished, directory)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SpecquantError(f"cannot write {directory} ({reason}): free space or choose another directory") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        with suppress(OSError):  # of a folder that turned read-only, what went wrong first is what counts
            if not directory.exists():
                for folder in new_folders:
                    folder.rmdir()


@contextmanager
def written_in_parts(directory: Path, identity: Mapping[str, object]) -> Iterator[Path]:
    """A directory to fill file by file beside `directory`, which takes its place at the end; after an interruption what
    is there stays, for the next call to go on from.

    identity: all that decides about the content, as JSON. Raises SpecquantError where parts of another content are
    there, and where it cannot be made or filled.
    """
    unfinished = directory.with_name(f".{directory.name}.unfinished")
    made_of = unfinished / "made_of.json"
    new_folders = [folder for folder in directory.parents if not folder.exists()]
    identity = json.loads(json.dumps(identity))
    before = _read_identity(made_of) if made_of.is_file() else identity
    different = [name for name in identity if before.get(name) != identity[name]]
    if different:
        raise SpecquantError(
            f"{unfinished} is what an interrupted command left, with another {different[0]} "
            f"({before.get(different[0])}, not {identity[different[0]]}): remove it, or choose another directory"
        )
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot write to {directory.parent} ({error.strerror})"
        raise SpecquantError(f"{reason}: choose another directory") from None
    try:
        write_file(made_of, json.dumps(identity))
        yield unfinished
        made_of.unlink()
        os.replace(unfinished, directory)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SpecquantError(f"cannot write {directory} ({reason}): free space or choose another directory") from None
    finally:
        with suppress(OSError):  # as above
            if unfinished.is_dir() and {file.name for file in unfinished.iterdir()} <= {made_of.name}:
                shutil.rmtree(unfinished)
            if not unfinished.exists() and not directory.exists():
                for folder in new_folders:
                    folder.rmdir()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Meanwhile no other process holds the lock file `path`, which is made, and removed at the end.

    Others wait. A process that dies gives its lock back. Raises SpecquantError where the file cannot be made.
    """
    new_folders = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _lock(path)
    except OSError as error:
        raise SpecquantError(f"cannot write to {path.parent} ({error.strerror}): choose another directory") from None
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        file.close()
        with suppress(OSError):  # where nothing was made after all
            for folder in new_folders:
                folder.rmdir()


def _lock(path: Path) -> IO[bytes]:
    """The lock file, held: it is the one at `path` still, and not one that its last holder has removed meanwhile."""
    while True:
        file = path.open("ab")
        hold(file)
        with suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def hold(file: IO[bytes]) -> None:
    """Keep other processes from holding an open file until it is closed; one that dies gives it back.

    Where the file system has no locks, nothing is kept.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise


def _read_identity(made_of: Path) -> dict:
    """What the parts beside this file are of. Raises SpecquantError where it does not say."""
    try:
        identity = json.loads(made_of.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        identity = None
    if not isinstance(identity, dict):
        raise SpecquantError(f"{made_of} does not say what its folder is a part of: remove {made_of.parent}")
    return identity
