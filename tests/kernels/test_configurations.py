"""How a product's configuration is found: tuned here, recorded, or that of the nearest shape."""

import json
from types import SimpleNamespace

import pytest
import torch

from specquant import __version__
from specquant.errors import SpecquantError
from specquant.kernels import products
from specquant.kernels.products import (
    TABLE,
    Configuration,
    known,
    nearest_shape,
    read_tuned,
    transferred,
    tuned,
    tuned_path,
    winners,
)
from specquant.tables import provenance

CARD = torch.device("cuda", 0)  # which need not be there: what is asked of it is answered by stand-ins


@pytest.fixture
def own_table(tmp_path, monkeypatch):
    """The file of what this user tuned on the card."""
    path = tmp_path / "card.json"
    monkeypatch.setattr(products, "tuned_path", lambda device: path)
    monkeypatch.setattr(provenance, "_tuned", {})
    tuned.cache_clear()
    yield path
    tuned.cache_clear()


@pytest.fixture
def card(monkeypatch, own_table):
    """A Hopper: a function that says how many multiprocessors it has."""

    def of(count):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr(products, "multiprocessors", lambda device: count)
        monkeypatch.setattr(products, "overlapping", lambda device: {"OVERLAPPING": True})
        products._unknown.cache_clear()
        return CARD

    yield of
    products._unknown.cache_clear()


@pytest.mark.parametrize("form", [name for name in winners()["sm90"] if "warp-groups" not in name])
def test_a_recorded_shape_runs_as_it_was_recorded(form, card):
    for shape, tiles in winners()["sm90"][form].items():
        for tile, numbers in tiles.items():
            outputs, inputs = map(int, shape.split("x"))
            assert products.configuration(form, outputs, inputs, int(tile), card(132)) == Configuration(*numbers)


def test_a_shape_that_is_left_out_gets_nearly_what_won_for_it():
    """Of every recorded shape, from the others: mostly the same outputs and splits, never another order of programs."""
    outputs_alike, splits_alike, count = 0, 0, 0
    for form, shapes in winners()["sm90"].items():
        cells = [(shape, tile) for shape, tiles in shapes.items() for tile in tiles if "-warp-groups" not in form]
        for shape, tile in cells:
            others = {other: tiles[tile] for other, tiles in shapes.items() if other != shape}
            outputs, inputs = map(int, shape.split("x"))
            winner, taken = Configuration(*shapes[shape][tile]), transferred(others, outputs, inputs)
            programs = sorted(-(-outputs // each.outputs) * each.splits * each.warps for each in (winner, taken))
            assert programs[1] <= 2 * programs[0], (form, shape, tile)
            outputs_alike += taken.outputs == winner.outputs
            splits_alike += abs(taken.splits - winner.splits) <= 1
            count += 1
    assert count == 192
    assert (outputs_alike, splits_alike) >= (170, 179)


def test_the_nearest_shape_is_alike_in_outputs_and_in_size():
    shapes = winners()["sm90"]["w4a16"]
    assert nearest_shape(shapes, 24576, 4096) == "28672x4096"  # Qwen3-8B's gate and up
    assert nearest_shape(shapes, 4096, 11008) == "4096x14336"  # Llama-2-7B's down
    assert nearest_shape(shapes, 8192, 28672) == "8192x28672"


def test_splits_fit_the_inputs_and_the_card():
    shapes = {"4096x4096": [64, 4, 6, 4, 96]}
    assert transferred(shapes, 4096, 4096) == (64, 4, 6, 4, 96)
    assert transferred(shapes, 2048, 4096).splits == 8
    assert transferred(shapes, 2048, 512).splits == 1
    assert transferred(shapes, 64, 65536).splits == 16
    assert transferred(shapes, 4096, 4096, larger=0.5).splits == 2


def test_a_card_of_other_size_takes_programs_in_proportion(card):
    recorded = Configuration(*winners()["sm90"]["w4a16"]["4096x14336"]["16"])
    assert products.configuration("w4a16", 4096, 14336, 1, card(132)) == recorded
    assert products.gpu_kind(card(132)) == "sm90"
    assert products.configuration("w4a16", 4096, 14336, 1, card(66)).splits == recorded.splits / 2
    assert products.gpu_kind(card(66)) == "sm90 x 66"


def test_a_winner_moves_only_to_shapes_that_it_suits(card):
    """As was measured on an H200."""
    assert products.configuration("w4a16", 4096, 12288, 1, card(132)) == (64, 4, 6, 4, 96)  # as 4096 x 14336
    # Eight warps: 28672 x 4096 has them, and 37888 x 3584 was faster without.
    assert transferred(winners_of("w4a16", 16), 37888, 3584).warps == 8
    assert products.configuration("w4a16", 37888, 3584, 1, card(132)) == (64, 1, 4, 4, 0)
    # 56 programs in three splits would leave most of the second wave idle.
    assert transferred(winners_of("w8a8", 64), 3584, 18944).splits == 3
    assert products.configuration("w8a8", 3584, 18944, 64, card(132)).splits == 7


def winners_of(form, tile):
    return {shape: tiles[str(tile)] for shape, tiles in winners()["sm90"][form].items()}


def test_whatever_the_shape_and_the_card_a_configuration_is_one_that_the_kernels_take(card):
    shapes = [(48, 64), (576, 576), (960, 576), (3072, 576), (2560, 1536), (57344, 8192), (151936, 896), (16, 1 << 17)]
    for count in (16, 78, 114, 132, 144):
        for form in ("w4a16", "w4a8-qqq", "w8a8", "fp16"):
            for (outputs, inputs), tile in ((shape, tile) for shape in shapes for tile in products.ROW_TILES):
                chosen = products.configuration(form, outputs, inputs, tile, card(count))
                assert products.is_sound(form, f"{outputs}x{max(inputs, 128)}", str(tile), list(chosen))
                assert chosen.splits == 1 or inputs // 128 // chosen.splits >= 4
                invariant = products.configuration(form, outputs, inputs, tile, card(count), row_invariant=True)
                assert invariant.splits == products.configuration(form, outputs, inputs, 1, card(count)).splits


def test_an_unknown_scheme_or_tile_gets_what_works_everywhere(card):
    assert products.configuration("fp16", 4096, 4096, 1, card(132)) == (64, 6, 4, 4, 0)
    assert products.configuration("w4a16", 4096, 4096, 128, card(132)).splits == 1


def test_what_this_user_tuned_comes_first_and_alone(own_table, card):
    groups = winners()["sm90"][TABLE.format("w4a16")]["57344x8192"]["64"]
    assert known("w4a16", 57344, 8192, 64, "sm90", card(132), groups=True) == groups
    own_table.write_text(
        json.dumps({"w4a16": {"57344x8192": {"64": [128, 1, 3, 4, 0]}, "64x512": {"16": [64, 1, 2, 4, 0]}}})
    )
    tuned.cache_clear()
    assert not provenance.provenance({}).get("tuned_configurations")
    assert products.configuration("w4a16", 57344, 8192, 60, CARD) == (128, 1, 3, 4, 0)
    assert known("w4a16", 57344, 8192, 64, "sm90", CARD, groups=True) is None  # the ordinary kernel was faster here
    assert known("w4a16", 57344, 8192, 32, "sm90", CARD, groups=True) is not None  # not tuned here
    assert products.configuration("w4a16", 64, 500, 1, CARD) == (64, 1, 2, 4, 0)  # kernels get whole steps
    assert provenance.provenance({})["tuned_configurations"] == {
        "w4a16 57344x8192, up to 64 rows": [128, 1, 3, 4, 0],
        "w4a16 64x512, up to 16 rows": [64, 1, 2, 4, 0],
    }


@pytest.mark.parametrize(
    "text",
    [
        *("", "[1]", '{"w4a16": 3}', '{"w4a16": {"64x128": {"16": ["64"]}}}', '{"a": {"b": {"c": [1]}}}'),
        *(json.dumps({"w4a16": {"64x512": {tile: numbers}}}) for tile, numbers in {
            "16": [64, 0, 3, 4, 0],
            "32": [64, 5, 3, 4, 0],  # splits of four steps
            "64": [96, 1, 3, 4, 0],
            "128": [64, 1, 3, 3, 0],
            "48": [64, 1, 3, 4, 0],
        }.items()),
        *(json.dumps({TABLE.format("w4a16"): {shape: {"64": numbers}}}) for shape, numbers in {
            "64x512": [1, 1, 4],
            "96x512": [1, 1, 1, 4],
            "128x512": [1, 1, 1, 0],
            "192x512": [1, 1, 5, 4],
        }.items()),
    ],
)  # fmt: skip
def test_a_bad_table_is_refused_in_a_sentence(text, own_table):
    own_table.write_text(text)
    with pytest.raises(
        SpecquantError, match=r"card.json is no table of configurations: remove it, and run specquant tune"
    ):
        tuned(CARD)


def test_where_nothing_can_be_read_nothing_was_tuned(own_table, monkeypatch):
    assert tuned(torch.device("cpu")) == {}
    assert tuned(CARD) == {}
    own_table.mkdir()
    assert read_tuned(own_table) == {}

    def no_home(device):
        raise SpecquantError("this user has no home folder")

    tuned.cache_clear()
    monkeypatch.setattr(products, "tuned_path", no_home)
    assert tuned(CARD) == {}


def test_cards_and_states_of_the_kernels_have_files_of_their_own(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def path(name="NVIDIA H200", gib=139, multiprocessors=132):
        about = SimpleNamespace(name=name, total_memory=gib << 30, multi_processor_count=multiprocessors)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
        return tuned_path(CARD)

    here = path()
    assert here.parent == tmp_path / "specquant" / "configurations"
    assert here.name.startswith(f"nvidia-h200-139gib-132-{__version__}-triton-")
    others = [path("NVIDIA H100 80GB HBM3 MIG 1g/10gb"), path(gib=79), path(multiprocessors=114)]
    assert len({here, *others, path()}) == 4
    assert all(each.parent == here.parent for each in others)
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "products.py").write_text("another state")
    monkeypatch.setattr(products, "CONFIGURATIONS", tmp_path / "kernels" / "configurations.json")
    assert path() != here
    assert read_tuned(path()) == {}
