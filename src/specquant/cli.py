"""The command line. Commands import what they need when they run, so that `specquant --help` answers at once."""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from inspect import BoundArguments
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError, Parameter

from specquant import __version__
from specquant.commands import models, study
from specquant.commands.help import HelpPage
from specquant.commands.measures import measures
from specquant.commands.names import check_names
from specquant.commands.options import by_field, check_values, flat, read_values, sentence, shown
from specquant.errors import TERMINATED, SpecquantError, Terminated, full_memory_told, sigterm_raised

OUTPUT_ERRORS = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
READER_GONE = 128 + 13  # the exit status of a program that SIGPIPE ended
COMMANDS: tuple[Callable[..., Any], ...] = (
    *(study.study, study.plan, study.record, study.claims, study.figures),
    *(models.generate, models.calibrate, models.tune, models.quantize, models.export, models.convert_head),
    *(models.train_tiny, models.train_head, models.distill, models.prepare),
)
# What they write is put there whole.
WHOLE = (models.calibrate, models.quantize, models.export, models.convert_head, models.train_head, models.distill)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 a notebook failed, 2 bad input, 130 interrupted, 141 nobody
    reads the output any more, 143 terminated."""
    streams: tuple[Any, ...] = (sys.stdout, sys.stderr)
    for stream in streams:
        if getattr(stream, "errors", None) in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")  # a terminal or a file that cannot hold a character gets another
    try:
        try:
            return _run(sys.argv[1:] if argv is None else [*argv])
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        return _after(error)


def _run(words: list[str]) -> int:
    try:
        with sigterm_raised(), full_memory_told():
            app = command_line()
            command, bound = parsed(app, words)
            _require_a_command(app, words)
            check_values(bound.arguments)
            _check_output(command, by_field(bound.arguments).get("out"))
            check_names(command, by_field(bound.arguments))
            return command(*bound.args, **bound.kwargs) or 0
    except SpecquantError as error:
        return _complain(str(error), 2)
    except (KeyboardInterrupt, Terminated) as error:
        status = TERMINATED if isinstance(error, Terminated) else 130
        return _complain("interrupted; a command that goes on after a stop does so when it is repeated", status)


def parsed(app: App, words: list[str]) -> tuple[Callable[..., int | None], BoundArguments]:
    """The command that is called for, and what for. Raises SpecquantError where there is none of these words."""
    pydantic = sys.modules.pop("pydantic", None)  # where it is loaded, cyclopts would check values by its rules as well
    try:
        command, bound, _ = app.parse_args(words, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        raise SpecquantError(sentence(error)) from None
    finally:
        if pydantic:
            sys.modules["pydantic"] = pydantic
    return command, bound


def command_line() -> App:
    """All commands with their options."""
    app = App(
        name="specquant",
        help="A reproducibility study of Speculative Decoding Meets Quantization (arXiv 2505.22179).",
        version=f"specquant {__version__}",
        version_flags="--version",
        help_format="plaintext",
        help_formatter=HelpPage(),
        config=read_values,
        default_parameter=Parameter(negative=(), allow_repeating=True, show_default=shown),
    )
    options: tuple[type, ...] = (models.ModelOptions, models.DraftSettings)
    options += (models.TrainingOptions, models.AllTrainingOptions, models.HeadOptions)
    for each in options:
        flat(each)
    for command in COMMANDS:
        app.command(command)
    app.command(measuring := App(name="bench", help="Measure one thing at length and record it."))
    for command in measures():
        measuring.command(command)
    app.command(data := App(name="data", help="Get what the project does not contain."))
    data.command(study.fetch)
    return app


def _require_a_command(app: App, words: Sequence[str]) -> None:
    """Raises SpecquantError where there is none behind `specquant` or `specquant bench`."""
    _, apps, _ = app.parse_commands(words)
    if apps[-1].default_command is None and not {"--help", "-h"} & set(words):
        names = ", ".join(name for name in apps[-1] if not name.startswith("-"))
        raise SpecquantError(f"give a command: {names}; --help tells what they do")


def _complain(sentence: str, status: int) -> int:
    with suppress(OSError):  # nobody may read that, too
        print("specquant:", " ".join(sentence.split()), file=sys.stderr)
    return status


def _after(error: OSError) -> int:
    """The exit status behind an error of the operating system that no command knew: of the output, or of a path."""
    if error.filename is None and error.errno in OUTPUT_ERRORS:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python writes it once more at its end
        if isinstance(error, BrokenPipeError):
            return READER_GONE
        return _complain(f"cannot write the output ({error.strerror}): free space, or write it elsewhere", 2)
    if error.filename is None:
        raise error
    return _complain(f"cannot use {os.fsdecode(error.filename)} ({error.strerror}): choose another path", 2)


def _check_output(command: Callable[..., object], out: Path | None) -> None:
    """Raises SpecquantError where a command could not write what it would make, before it makes it."""
    from specquant.files import require_writable, resolve

    if out is not None:
        require_writable(resolve(out), command in WHOLE)


if __name__ == "__main__":
    sys.exit(main())
