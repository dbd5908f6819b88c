"""The pages of --help: plain text in two columns, as wide as the terminal."""

import re
import textwrap
from typing import Any, get_origin

from cyclopts.help import HelpEntry, HelpPanel

from specquant.commands.names import benchmarks, methods

REGISTRIES = {"methods": methods, "benchmarks": benchmarks}
COLUMN = 24  # where what an option does begins
# What stands for a value, by what cyclopts makes of its type.
METAVARS = {"PATH": "PATH", "STR": "TEXT", "INT": "N", "FLOAT": "X"}
METAVARS |= dict.fromkeys(("PATH|STR", "STR|PATH", "CHOICE"), "NAME")
_ANY_METAVAR = re.compile(rf"(?<= )({'|'.join(map(re.escape, sorted(METAVARS, key=len, reverse=True)))})(?=[ .]|$)")


class HelpPage:
    """How cyclopts prints help. Names that stand in registries are asked for only where they are shown."""

    def render_usage(self, console: Any, options: Any, usage: Any) -> None:
        if usage:
            print("Usage:", re.sub(_ANY_METAVAR, lambda found: METAVARS[found[0]], _text(usage)) + "\n")

    def render_description(self, console: Any, options: Any, description: Any) -> None:
        for paragraph in filter(None, _text(description).split("\n\n")):
            print(textwrap.fill(_named(" ".join(paragraph.split())), console.width) + "\n")

    def __call__(self, console: Any, options: Any, panel: HelpPanel) -> None:
        if panel.entries:
            print(f"{_text(panel.title)}:")
            for entry in panel.entries:
                print(*_lines(entry, console.width), sep="\n")
            print()


def _lines(entry: HelpEntry, width: int) -> list[str]:
    labels = [entry.positional_label] if entry.positional_label else [*entry.all_options]
    label = f"  {', '.join(labels)}"
    if entry.metavar and not entry.positional_label:
        word = METAVARS.get(entry.metavar.removesuffix("..."), entry.metavar)
        label += f" {word},{word}" if get_origin(entry.type) is tuple else f" {word}"
    told = [_named(" ".join(_text(entry.description).split()))]
    if entry.default:
        told.append(f"(default: {entry.default})")
    if entry.choices:
        told.append(f"({', '.join(entry.choices)})")
    if entry.required:
        told.append("(required)")
    lines = textwrap.wrap(" ".join(filter(None, told)), max(40, width - COLUMN), break_on_hyphens=False) or [""]
    if len(label) > COLUMN - 2:
        return [label, *(" " * COLUMN + line for line in lines)]
    return [label.ljust(COLUMN) + lines[0], *(" " * COLUMN + line for line in lines[1:])]


def _text(shown: Any) -> str:
    """What cyclopts gives as text, or as something for rich to print."""
    return str(getattr(shown, "plain", getattr(shown, "primary_renderable", shown)) or "").strip()


def _named(text: str) -> str:
    """Text with the names of a registry in place of {methods} and {benchmarks}."""
    return re.sub(r"\{(methods|benchmarks)\}", lambda found: ", ".join(REGISTRIES[found[1]]()), text)
