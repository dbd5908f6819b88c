"""The card of the models that ship says what their training recorded, and nothing by hand."""

import json

import pytest
from safetensors.torch import load_file

from specquant.files import project_root
from specquant.training.card import card_text, draw_curves, parameters, write_card

TINY = project_root() / "data/tiny"


@pytest.fixture(scope="module")
def log():
    return json.loads((TINY / "training.json").read_text())


def test_the_card_that_ships_is_what_the_recording_says(log):
    assert card_text(log) == (TINY / "README.md").read_text()


def test_other_numbers_give_another_card(log):
    other = json.loads(json.dumps(log))
    other["held_out"]["target"]["loss_fp16"]["code"] += 1
    assert card_text(other) != card_text(log)


def test_heads_of_another_command_are_told_where_there_are_some(log):
    card = card_text(log)
    for name, head in log["eagle3"]["heads"].items():
        assert head["bytes"] == (TINY / name / "model.safetensors").stat().st_size
        assert head["command"].endswith(f" --out data/tiny/{name}")
        assert head["command"] in card.replace(" \\\n      ", " ")
        assert f"| `{name}` | {head['bytes'] / 1e6:.1f} MB | {head['accuracy'][0]:.3f} |" in card
    without = card_text({key: value for key, value in log.items() if key != "eagle3"})
    assert "## EAGLE-3 heads" not in without
    assert card.startswith(without)


@pytest.mark.parametrize("name", ["target", "intermediate"])
def test_parameters_are_those_of_the_file(log, name):
    weights = load_file(TINY / name / "model.safetensors")
    sizes = [tensor.numel() for tensor in weights.values()]
    assert parameters(log["recipe"][f"{name}_shape"], log["recipe"]["vocabulary_size"]) == sum(sizes)


def test_every_network_has_its_curves(log):
    figure = draw_curves(log["training"])
    assert [axes.get_title() for axes in figure.axes] == list(log["training"])
    for axes, run in zip(figure.axes, log["training"].values(), strict=True):
        trained, held_out = axes.get_lines()
        assert list(trained.get_ydata()) == [point["train_loss"] for point in run["curve"]]
        assert list(held_out.get_ydata()) == [point["held_out_loss"] for point in run["curve"]]
        assert list(held_out.get_xdata()) == [point["step"] for point in run["curve"]]


def test_card_and_curves_are_written_beside_the_recording(log, tmp_path):
    (tmp_path / "training.json").write_text(json.dumps(log))
    write_card(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"training.json", "README.md", "training.png"}
    assert (tmp_path / "README.md").read_text() == card_text(log)
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
