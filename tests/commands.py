"""Every command of the command line, with its options."""

from collections.abc import Iterator

from cyclopts import App, ArgumentCollection

from specquant.cli import command_line


def leaves() -> list[tuple[list[str], ArgumentCollection]]:
    """The words of each command, and what it takes."""

    def found(app: App, words: list[str]) -> Iterator[tuple[list[str], ArgumentCollection]]:
        if app.default_command is not None:
            yield words, taken(app)
        for name in app:
            if not name.startswith("-"):
                yield from found(app[name], [*words, name])

    return list(found(command_line(), []))


def taken(app: App) -> ArgumentCollection:
    """What a command takes: one for each option, and for each word without one."""
    arguments = app.assemble_argument_collection(parse_docstring=True)
    return ArgumentCollection([each for each in arguments if each.parse and not each.children])


def is_flag(argument) -> bool:
    return argument.hint is bool


def is_option(argument) -> bool:
    return argument.name.startswith("--")
