"""The one exception that is meant for people, how another is told that says the same every time, and how SIGTERM ends
what runs."""

import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

# What torch says of memory on a CPU and on a GPU, the libraries that it calls there (cuBLAS, cuSOLVER, cuDNN), and the
# loader of its libraries.
MEMORY_PHRASES = ("allocate memory", "out of memory", "failed to map segment", "ALLOC_FAILED", "ALLOCATION_FAILED")
OF_A_GPU = ("CUDA", "CUBLAS", "CUSOLVER", "CUDNN")

TERMINATED = 128 + signal.SIGTERM  # the exit status

# Characters of a sentence: what is longer, as a value of a damaged file may be, loses its middle.
LONGEST = 1400


class SpecquantError(Exception):
    """Bad input or an unusable environment. The message is one line: what is wrong, where, and what to do.

    Line breaks in it, as of a file's name or of what a library says, become blanks; other characters that cannot be
    printed are escaped. The command line prints the message and exits with status 2.
    """

    def __init__(self, message: str):
        sentence = "".join(map(_printable, message))
        if len(sentence) > LONGEST:  # its beginning says where, its end what to do
            sentence = f"{sentence[: LONGEST - 405]} ... {sentence[-400:]}"
        super().__init__(sentence)


def unknown(what: str, name: str, known: Iterable[str]) -> SpecquantError:
    """For a name that is none of those there are."""
    return SpecquantError(f"unknown {what} {name!r}: choose one of {', '.join(known)}")


def lacks_memory(error: BaseException) -> bool:
    """Whether an error of any library says that memory was asked for in vain."""
    return isinstance(error, MemoryError) or any(phrase in str(error) for phrase in MEMORY_PHRASES)


@contextmanager
def full_memory_told(what: Callable[[], str] = str) -> Iterator[None]:
    """Raise what any library says of a full memory as a SpecquantError. what: did not fit, if that is known then."""
    try:
        yield
    except (MemoryError, RuntimeError, ImportError, OSError) as error:
        if not lacks_memory(error):
            raise
        begin = f"{what()} did not fit: " if what() else ""
        raise SpecquantError(f"{begin}{_memory_sentence(error)}") from None


class Terminated(SystemExit):
    """SIGTERM, as an exception."""


@contextmanager
def sigterm_raised() -> Iterator[None]:
    """Meanwhile SIGTERM raises `Terminated`, as Ctrl-C raises an exception: what was started is then ended, too."""
    if threading.current_thread() is not threading.main_thread():  # others cannot
        yield
        return

    def raise_it(*_: object) -> None:
        raise Terminated(TERMINATED)

    before = signal.signal(signal.SIGTERM, raise_it)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _memory_sentence(error: BaseException) -> str:
    if not any(name in str(error) for name in OF_A_GPU):
        return "there is not enough memory: give it more, or choose a smaller model"
    asked = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error))
    more = f" for {asked[1]} more" if asked else ""
    return (
        f"the GPU's memory has no room{more}: let fewer processes share it (--jobs), or choose a scheme of fewer "
        "bits, a shorter context, or a smaller model"
    )


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else ascii(character)[1:-1]
