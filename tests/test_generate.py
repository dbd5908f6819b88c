"""`specquant generate` on the models that ship: every method gives the same text."""

import json

import pytest

from specquant.cli import main
from specquant.paths import project_root

TARGET = str(project_root() / "data/tiny/target")
PROMPT = "Question: Tom has 3 boxes with 4 apples each. How many apples does he have?\nAnswer:"


def generate(capsys, *options):
    status = main(["generate", "--model", TARGET, "--prompt", PROMPT, "--max-new-tokens", "24", *options])
    return status, capsys.readouterr()


@pytest.fixture
def expected(capsys):
    return json.loads(generate(capsys, "--json")[1].out)


@pytest.mark.parametrize("method", ["vanilla", "eagle2", "hierarchical"])
def test_every_method_gives_the_same_tokens(capsys, expected, method):
    result = json.loads(generate(capsys, "--json", "--method", method)[1].out)
    assert result["token_ids"] == expected["token_ids"]
    assert sum(result["accepted_lengths"]) == len(result["token_ids"]) - 1
    assert max(result["accepted_lengths"]) > 1


def test_without_json_the_text_is_streamed(capsys, expected):
    assert generate(capsys)[1].out == expected["text"] + "\n"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--scheme", "w3a16"], "w3a16"),
        (["--method", "medusa"], "medusa"),
        (["--prompt", ""], "empty"),
        (["--prompt", "word " * 2000], "context"),
        (["--max-new-tokens", "0"], "at least 1"),
        (["--temperature", "-1"], "temperature"),
        (["--model", "nowhere"], "nowhere"),
        (["--method", "eagle2", "--eagle-target", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_gives_one_line_and_status_2(capsys, options, says):
    status, output = generate(capsys, *options)
    assert status == 2
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert says in output.err
