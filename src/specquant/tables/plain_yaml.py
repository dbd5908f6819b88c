"""YAML of options, such as profiles and those of Slurm, in which a value is what it looks like."""

import re
from typing import Any, ClassVar

import yaml

from specquant.errors import SpecquantError


def plain_yaml(text: str, place: str) -> Any:
    """What a text says; `place` stands in the SpecquantError where it is no plain YAML.

    Plain numbers are decimal: 010, 0x10 and 1:30 are text here, as dates are.
    """
    try:
        return yaml.load(text, PlainLoader)
    except RecursionError:
        raise SpecquantError(f"{place} is not valid YAML: it is nested too deeply") from None
    except (ValueError, LookupError, yaml.YAMLError) as error:
        raise SpecquantError(f"{place} is not valid YAML: {error}") from None


class PlainLoader(yaml.SafeLoader):
    """YAML without what no option needs: anchors, which let ten lines stand for a billion values, tags, names
    that are there twice, and plain words that YAML 1.1 reads as dates or as numbers to the base 8, 16 or 60."""

    yaml_implicit_resolvers: ClassVar[dict] = {}

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor or event.tag:
            line = event.start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: anchors, aliases and tags are not for options: write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]
        for place, (key, _) in enumerate(node.value):
            if isinstance(key.value, str) and key.value in names[:place]:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: {key.value} is there twice: keep one")
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("bool", r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    PlainLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list(_first))
