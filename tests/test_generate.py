"""`specquant generate` on the models that ship: every method gives the same text."""

import json

import pytest

from specquant.cli import main
from specquant.paths import project_root

TARGET = str(project_root() / "data/tiny/target")
PROMPT = "Question: Tom has 3 boxes with 4 apples each. How many apples does he have?\nAnswer:"


def generate(capsys, *options):
    assert main(["generate", "--model", TARGET, "--prompt", PROMPT, "--max-new-tokens", "24", *options]) == 0
    return capsys.readouterr().out


@pytest.fixture
def expected(capsys):
    return json.loads(generate(capsys, "--json"))


@pytest.mark.parametrize("method", ["vanilla", "eagle2", "hierarchical"])
def test_every_method_gives_the_same_tokens(capsys, expected, method):
    result = json.loads(generate(capsys, "--json", "--method", method))
    assert result["token_ids"] == expected["token_ids"]
    assert sum(result["accepted_lengths"]) == len(result["token_ids"]) - 1
    assert max(result["accepted_lengths"]) > 1


def test_without_json_the_text_is_streamed(capsys, expected):
    assert generate(capsys) == expected["text"] + "\n"
