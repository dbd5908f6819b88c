"""`specquant generate` on the models that ship: every method gives the same text."""

import json

import pytest
from tqdm import tqdm

from specquant.cli import main
from specquant.decoding.method import ADAPTIVE, Plan
from specquant.decoding.models import Models
from specquant.files import project_root

TARGET = str(project_root() / "data/tiny/target")
PROMPT = "Question: Tom has 3 boxes with 4 apples each. How many apples does he have?\nAnswer:"

PROBES = (
    Plan("autoregressive"),
    Plan("vanilla", min_draft_length=2),
    Plan("vanilla", min_draft_length=12),
    Plan("eagle2", 16, 3),
    Plan("hierarchical", 8, 2, 6),
)


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


def test_auto_decodes_by_the_plan_that_it_tells(capsys, expected, few_prompts, tmp_path, monkeypatch):
    """By a calibration on the spot, and by a file that `calibrate` wrote."""
    monkeypatch.setattr("specquant.planning.calibration.PROMPTS", str(few_prompts))
    monkeypatch.setattr("specquant.planning.calibration.PROBES", PROBES)
    told, speculator = [], Models.speculator
    monkeypatch.setattr(Models, "speculator", lambda *given: (told.append(given[1:]), speculator(*given))[1])
    result = json.loads(generate(capsys, "--method", "auto", "--json"))
    plan, _, pays = told[-1]
    assert plan == Plan(**result["plan"])
    assert (pays is None) == (plan.method == "autoregressive" or plan.draft_size == ADAPTIVE)
    assert (result["token_ids"], result["text"]) == (expected["token_ids"], expected["text"])
    speeds = result["predicted_tokens_per_s"]
    assert {told.split()[0] for told in speeds} == {plan.method for plan in PROBES}
    assert str(Plan(**result["plan"])) == max(speeds, key=speeds.get)

    file = tmp_path / "calibration.csv"
    assert main(["calibrate", "--model", TARGET, "--rows", "3", "--out", str(file)]) == 0
    header, first, *_, path = capsys.readouterr().out.splitlines()
    assert (header.split()[0], path) == ("method", str(file))
    monkeypatch.setattr("specquant.measure.plans.calibrate", None)
    result = json.loads(generate(capsys, "--method", "auto", "--json", "--calibration", str(file)))
    assert result["token_ids"] == expected["token_ids"]
    assert result["plan"]["method"] == first.split()[0]


@pytest.mark.parametrize("slow", [False, True])
def test_auto_tells_its_choice_in_one_line(capsys, monkeypatch, slow):
    """Behind the progress bar, too, which a slow machine shows."""
    monkeypatch.setattr("specquant.planning.calibration.PROBES", PROBES)
    if slow:
        at_once = lambda *arguments, **options: tqdm(*arguments, **options | {"delay": 0})  # noqa: E731
        monkeypatch.setattr("specquant.planning.calibration.tqdm", at_once)
    assert main(["generate", "--model", TARGET, "--prompt", PROMPT, "--max-new-tokens", "4", "--method", "auto"]) == 0
    error = capsys.readouterr().err
    if slow:
        assert "calibrating" in error
    line = error.split("\r")[-1]  # each state of the bar overwrites the one before
    assert line.startswith("specquant: decoding by ")
    assert "; predicted tokens per second: " in line
    assert error.count("\n") == 1
    assert error.count("specquant: ") == 1
