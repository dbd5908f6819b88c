"""How options are read by their types, what is refused of their values, and what is said then."""

import difflib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cyclopts import App, ArgumentCollection, CycloptsError, Parameter, exceptions
from cyclopts.argument import Argument

from specquant.errors import SpecquantError

# What numbers count, of which there is at least one; any other is called by its option.
COUNTS = {
    "prompts_per_task": "the number of prompts of each task",
    "limit": "the limit",
    "max_new_tokens": "the maximum of new tokens",
    "context_length": "the context length",
    "context": "the number of tokens in the cache",
    "head_vocabulary": "the number of tokens that an EAGLE head knows",
    "draft_vocabulary": "the number of tokens that an EAGLE-3 head drafts",
    "confirmed_rows": "the number of new tokens that a draft begins with",
    "draft_size": "the draft size",
    "iterations": "the number of iterations",
    "rows": "the number of plans to show",
    "ngram_length": "the n-gram length",
}
MOST = 10**9  # of anything that is counted
SECONDS = 86_400  # of looking for configurations
Executor = Literal["here", "slurm"]  # `measure.executors`
UNSET = object()  # in place of a default that only the code knows
EACH_FIELD = Parameter(name="*")  # of a dataclass is an option


def flat(kind: type) -> type:
    """A dataclass each of whose fields is to be an option, and each field of those that are dataclasses."""
    EACH_FIELD(kind)
    for hint in get_type_hints(kind).values():
        if isinstance(hint, type) and is_dataclass(hint):
            flat(hint)
    return kind


def shown(default: Any) -> str:
    """What help says of a default: what a user would write, and nothing where it means that nothing was chosen."""
    if isinstance(default, tuple | list):
        return ",".join(map(str, default))
    return "" if default is None or default is False or default is UNSET else str(default)


def read_values(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Bring what was written into the form in which cyclopts reads it: find places, and part lists at their commas.

    Raises SpecquantError where a whole number belongs and another value was written, of which cyclopts would make one.
    It also does for an empty path or model, which would mean the folder in which the user is.
    """
    for argument in arguments:
        kinds = _kinds(argument.hint)
        if Path in kinds and any(not token.value for token in argument.tokens):
            raise SpecquantError(f"{argument.name} is '': give a path, such as . for this folder")
        if kinds == [Path]:
            argument.tokens = [token.evolve(value=str(Path(token.value).absolute())) for token in argument.tokens]
        elif int in kinds and any(_whole(token.value) is None for token in argument.tokens):
            words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
            if argument.tokens[-1].value not in words:
                belongs = ", or ".join(["a whole number", *words])
                raise SpecquantError(f"{argument.name} is {quoted(argument.tokens[-1].value)}: give {belongs}")
        elif kinds and get_origin(kinds[0]) is tuple and argument.tokens and argument.tokens[-1].keyword:
            _part(argument, get_args(kinds[0])[0])


def _kinds(hint: Any) -> list[Any]:
    """The types that a value may have, other than that of None."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else [hint]
    return [kind for kind in kinds if kind is not NoneType]


def _whole(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _part(argument: Argument, kind: Any) -> None:
    """Make each word between commas a token of its own. Raises SpecquantError for numbers that count nothing."""
    text = argument.tokens[-1].value
    words = [word.strip() for word in text.split(",")]
    if kind is int and not all(word.isdecimal() and 0 < (_whole(word) or 0) <= MOST for word in words):
        raise SpecquantError(
            f"{argument.name} is {quoted(text)}: give whole numbers above 0 with commas between them, such as 1,8"
        )
    argument.tokens = [argument.tokens[-1].evolve(value=word, index=place) for place, word in enumerate(words)]


def check_values(values: Mapping[str, Any]) -> None:
    """Raises SpecquantError for numbers that no command can use, whether this one would use them or not."""
    for name, value in by_field(values).items():
        what = COUNTS.get(name, option(name))
        if name == "seed":
            if not -(2**63) <= value < 2**64:
                raise SpecquantError(f"the seed {value} does not fit into 64 bits: choose a smaller one")
        elif name == "repeats":
            if not 1 <= value <= MOST:
                raise SpecquantError(f"{value} repeats give no median: give at least 1, and at most {MOST}")
        elif type(value) is int and value < 1:
            raise SpecquantError(f"{what} is {value}; it must be at least 1")
        elif type(value) is int and value > MOST:
            raise SpecquantError(f"{what} is {value}; it must be at most {MOST}")
        elif name == "tune" and not 0 <= value <= SECONDS:
            raise SpecquantError(f"--tune is {value}: give seconds, from 0 to {SECONDS}")


def by_field(values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, with the fields of dataclasses in place of these."""
    named: dict[str, Any] = {}
    for name, value in values.items():
        if is_dataclass(value) and not isinstance(value, type):
            named |= by_field({field.name: getattr(value, field.name) for field in fields(value)})
        elif value is not UNSET:
            named[name] = value
    return named


def quoted(text: str) -> str:
    """What was written, or its ends where it is long."""
    return repr(text) if len(text) <= 100 else f"{text[:50]!r}...{text[-10:]!r}"


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def sentence(error: CycloptsError) -> str:
    """What is wrong with a command line, and what to do: in one sentence."""
    command = " ".join(("specquant", *(error.command_chain or ())))
    if isinstance(error, exceptions.UnknownCommandError) and error.unused_tokens and error.app:
        names = [name for name in error.app if not name.startswith("-")]
        return _unknown("command", error.unused_tokens[0], names, f"choose one of {', '.join(names)}")
    if isinstance(error, exceptions.UnknownOptionError):
        return _unknown_option(error.token.keyword or error.token.value, error.argument_collection, command)
    if isinstance(error, exceptions.MissingArgumentError) and error.argument:
        known = error.app.assemble_argument_collection() if error.app else ArgumentCollection()
        words = [word for word in error.unused_tokens or () if word.startswith("--") and word != "--"]
        if unknown := [word for word in words if word.split("=")[0] not in _names(known)]:
            return _unknown_option(unknown[0], known, command)
        if error.keyword or error.argument.tokens:
            name = error.keyword or error.argument.name
            return f"{name} has no value: give one, as in {name}=VALUE where it begins with a dash"
        return f"{error.argument.name} is missing: {command} --help tells what it is"
    if isinstance(error, exceptions.CoercionError) and error.token and error.argument:
        return f"{error.argument.name} is {quoted(error.token.value)}: {_belongs(_kinds(error.argument.hint))}"
    if isinstance(error, exceptions.UnusedCliTokensError) and error.unused_tokens:
        return f"{quoted(error.unused_tokens[0])} belongs to no option: {command} --help lists what there is"
    return f"{error}: {command} --help lists what there is"


def _unknown_option(given: str, known: ArgumentCollection, command: str) -> str:
    return _unknown("option", given.split("=")[0], _names(known), f"{command} --help lists what there is")


def _names(known: ArgumentCollection) -> list[str]:
    return [argument.name for argument in known if argument.parse and not argument.children]


def _unknown(what: str, given: str, names: Iterable[str], otherwise: str) -> str:
    near = [name for name in names if name.startswith(given)] if len(given) > 2 else []
    near += difflib.get_close_matches(given, list(names), n=1)
    return f"there is no {what} {quoted(given)}: {f'did you mean {near[0]}?' if near else otherwise}"


def _belongs(kinds: list[Any]) -> str:
    kinds = [get_args(kind)[0] if get_origin(kind) is tuple else kind for kind in kinds]
    for kind in kinds:
        if get_origin(kind) is Literal:
            return f"choose one of {', '.join(map(str, get_args(kind)))}"
    kind = kinds[0]
    kind = {int: "a whole number", float: "a number", bool: "yes or no, or no value at all"}.get(kind, "another value")
    return f"give {kind}"


def tell(sentence: str) -> None:
    """Say something beside the result."""
    print(f"specquant: {sentence}", file=sys.stderr)
