"""Which configurations are tried, and which are kept."""

import json
from types import SimpleNamespace

import pytest
import torch

from specquant.commands.models import _offer_tuning
from specquant.errors import SpecquantError
from specquant.kernels import products
from specquant.kernels.products import CONFIGURATIONS, Configuration, is_sound, winners
from specquant.kernels.warp_groups import FORMS, TILES, UNPACKED, WarpGroups
from specquant.measure import kernels, tuning
from specquant.models.llama import Llama
from specquant.models.synthetic import synthetic_config, synthetic_model
from specquant.quant import PackedLinear

TABLE = products.TABLE.format("w4a16")
SHAPE = "6144x8192"


@pytest.mark.parametrize("tile", tuning.CANDIDATES)
def test_candidates_leave_every_program_some_steps(tile):
    for outputs, inputs in (shape for layers in kernels.LAYERS.values() for shape in layers.values()):
        candidates = list(tuning.candidates(outputs, inputs, tile, torch.device("cpu")))
        assert len(candidates) >= 8
        assert len(set(candidates)) == len(candidates)
        assert all(1 <= each.splits <= inputs // 128 // 4 for each in candidates)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tile", TILES)
def test_warp_groups_fill_most_of_a_hopper(tile, form, monkeypatch):
    monkeypatch.setattr(tuning, "multiprocessors", lambda device: 132)
    code_bytes, x_bytes = 8192 if form in UNPACKED else 4096, tile * (256 if form == "w4a16" else 128)
    for _, _, (outputs, inputs) in kernels.layers(kernels.LAYERS):
        candidates = list(tuning.warp_group_candidates(form, outputs, inputs, tile, torch.device("cpu")))
        assert candidates
        assert len(set(candidates)) == len(candidates)
        for slabs, splits, stages in candidates:
            assert 92 <= -(-outputs // (64 * sum(slabs))) * splits <= 132
            assert stages * splits <= inputs // 128  # every program has as many steps
            assert stages * (sum(slabs) * code_bytes + x_bytes) <= tuning.SHARED_BYTES


def test_a_product_runs_as_it_was_chosen_last():
    tables = {"w4a16": {"128x256": {"64": [64, 1, 3, 4, 0]}}}
    groups = WarpGroups((2, 2, 1), 1, 4)
    tuning._choose(tables, "w4a16", "128x256", 64, groups)
    assert tables["w4a16"] == {"128x256": {"64": [64, 1, 3, 4, 0]}}  # for bf16 and row invariance
    assert tables[TABLE] == {"128x256": {"64": [2, 2, 1, 1, 4]}}
    tuning._choose(tables, "w4a16", "128x256", 64, Configuration(128, 1, 3, 4))
    assert tables == {"w4a16": {"128x256": {"64": [128, 1, 3, 4, 0]}}, TABLE: {"128x256": {}}}
    tuning._choose(tables, "w4a16", "128x256", 8, groups)
    assert tables[TABLE] == {"128x256": {"8": [2, 2, 1, 1, 4]}}
    tuning._choose(tables, "w4a16", "128x256", 8, Configuration(64, 1, 3, 4))  # which has no tile of 8 rows
    assert tables == {"w4a16": {"128x256": {"64": [128, 1, 3, 4, 0]}}, TABLE: {"128x256": {}}}
    tuning._choose(tables, "w8a8", "128x256", 16, Configuration(64, 2, 3, 4))
    assert tables["w8a8"] == {"128x256": {"16": [64, 2, 3, 4, 0]}}
    assert set(tuning._columns(groups)) - set(tuning._columns(Configuration(64, 2, 3, 4))) == {"slabs"}


def test_tuning_keeps_the_fastest_in_a_layer_and_the_fastest_ordinary_one(monkeypatch, tmp_path):
    """On a stand-in for a Hopper: alone, more outputs are faster; in a layer, what splits least, but for noise."""
    outputs, inputs = 57344, 8192
    table = {}

    class Layers:
        def __init__(self, *arguments):
            pass

        def time_us(self, tile):
            here = table["sm90"]
            groups = here.get(TABLE, {}).get(f"{outputs}x{inputs}", {}).get(str(tile))
            if groups:
                return 80.0
            together, splits, *_ = here["w4a16"][f"{outputs}x{inputs}"][str(tile)] if tile > 8 else (64, 4)
            return 100.0 + splits + together / 1000

    def alone_us(matrices, rows, repeats, chosen=None):
        return torch.tensor([1000.0 - tuning._columns(chosen)["outputs"] if chosen else 1.0])

    for name, stand_in in {
        "require_gpu": lambda device: None,
        "gpu_kind": lambda device: "sm90",
        "multiprocessors": lambda device: 132,
        "winners": lambda: table,
        "LayersAlone": Layers,
        "product_times_us": alone_us,
        "synthetic_matrices": lambda *arguments: [],
        "configuration": lambda *arguments: Configuration(64, 4, 3, 4),
        "layers": lambda models: [(model, "gate_up_proj", (outputs, inputs)) for model in models],
    }.items():
        monkeypatch.setattr(tuning, name, stand_in)
    path = tmp_path / "configurations.json"
    tried = tuning.tune(["llama-3-70b"], ["w4a16-g128"], 60, path, "cpu")
    assert json.loads(path.read_text()) == table
    ordinary, groups = (table["sm90"][product][f"{outputs}x{inputs}"] for product in ("w4a16", TABLE))
    assert {tile: numbers[1] for tile, numbers in ordinary.items()} == {"16": 1, "32": 1, "64": 1}
    # Of those that split least, whose layers take as long, the fastest alone, which has most outputs.
    assert {tile: numbers[0] for tile, numbers in ordinary.items()} == {"16": 128, "32": 256, "64": 256}
    few = [2, 2, 2, 1, 1, 4]
    assert groups == {"8": [2, 2, 2, 1, 1, 7], "16": few, "32": [2, 2, 2, 1, 1, 5], "64": few}
    assert set(tried.rows) == {8, 16, 32, 64}
    in_layer = tried.dropna(subset="layer_us")
    assert set(in_layer[in_layer.slabs.notna()].rows.astype(str)) == set(groups)


def test_every_recorded_winner_is_a_configuration_of_a_shape_that_is_measured():
    shapes = {f"{outputs}x{inputs}" for _, _, (outputs, inputs) in kernels.layers(kernels.LAYERS)}
    forms = {kernels.kernel_name(scheme) for scheme in kernels.BENCH_SCHEMES if scheme != "fp16"}
    forms |= set(kernels.FP8_SCHEMES)
    by_groups = {products.TABLE.format(form) for form in FORMS}
    for kind in winners().values():
        assert {"w4a16", "w8a8"} <= set(kind) <= forms | by_groups
        for by_shape in (kind.get(name, {}) for name in by_groups):
            assert set(by_shape) <= shapes
            for by_tile in by_shape.values():
                assert set(by_tile) <= {"8", "16", "32", "64"}
                assert all(tuple(slabs) in tuning.WARP_GROUPS for *slabs, _, _ in by_tile.values())
        for by_shape in (kind[name] for name in set(kind) - by_groups):
            assert set(by_shape) == shapes
            for by_tile in by_shape.values():
                assert set(by_tile) == {"16", "32", "64"}
                assert all(Configuration(*numbers).warps in (4, 8) for numbers in by_tile.values())
        for name, by_shape in kind.items():
            for shape, by_tile in by_shape.items():
                assert all(is_sound(name, shape, tile, numbers) for tile, numbers in by_tile.items())


def test_the_shapes_of_a_layer_are_those_that_are_measured():
    for model, shapes in kernels.LAYERS.items():
        assert tuning.layer_shapes(synthetic_config(model), "w4a16-g128") == [*shapes.values()]


def test_the_likeliest_candidates_are_like_the_one_in_use(monkeypatch):
    monkeypatch.setattr(tuning, "multiprocessors", lambda device: 132)
    monkeypatch.setattr(tuning, "gpu_kind", lambda device: "sm90 x 78")
    now, cpu = Configuration(64, 4, 4, 4, 128), torch.device("cpu")
    tried = tuning._tried("w4a16", ((4096, 14336), 32), cpu, now, likeliest=(6, 2))
    assert tried[0] == now
    assert len(set(tried)) == len(tried) == 8
    assert set(tried) < set(tuning._tried("w4a16", ((4096, 14336), 32), cpu, now, likeliest=None))
    assert all(each.outputs == 64 and abs(each.splits - 4) <= 2 for each in tried[:6])
    assert all(isinstance(each, WarpGroups) for each in tried[6:])
    tried = tuning._tried("w4a16", ((4096 + 16, 14336), 32), cpu, now, likeliest=None)  # the other kernel cannot
    assert not any(isinstance(each, WarpGroups) for each in tried)


@pytest.fixture
def card(monkeypatch, tmp_path):
    """A stand-in for a card, where fewer splits are faster in a layer: the file of what is tuned on it."""
    path, table = tmp_path / "configurations" / "card.json", {}

    class Layers:
        def __init__(self, *arguments):
            pass

        def time_us(self, tile):
            return 100.0 + table["w4a8-qqq"][SHAPE][str(tile)][1]

    for name, stand_in in {
        "require_gpu": lambda device: None,
        "multiprocessors": lambda device: 132,
        "tuned": lambda device: table,
        "tuned_path": lambda device: path,
        "LayersAlone": Layers,
        "product_times_us": lambda matrices, rows, repeats, chosen=None: torch.tensor([50.0]),
        "synthetic_matrices": lambda *arguments: [],
        "configuration": lambda *arguments: Configuration(64, 4, 3, 4),
        "layer_shapes": lambda config, scheme: [(6144, 8192 - 64)],  # of which the last step is filled up
    }.items():
        monkeypatch.setattr(tuning, name, stand_in)
    return path


def test_tuning_here_keeps_winners_for_this_user(card):
    found = tuning.tune_here("llama-3-8b", "w4a8-qqq", 60, device="cpu")
    assert found.path == card
    assert found.left == 0
    kept = products.read_tuned(card)["w4a8-qqq"][SHAPE]
    assert set(kept) == {"16", "32", "64"}
    assert all(numbers[1] < 4 for numbers in kept.values())
    *lines, last = tuning.told(found)
    assert len(lines) == 3
    assert lines[0] == f"6144 x 8128, up to 16 tokens: {100 + kept['16'][1]:.1f} us a layer, 104.0 before"
    assert last == str(card)


def test_the_same_command_goes_on_and_keeps_what_others_tuned(card, monkeypatch):
    clock = iter([0.0, *[1.0] * 5, *[99.0] * 9])  # over behind the candidates of one case
    monkeypatch.setattr(tuning.time, "monotonic", lambda: next(clock))
    found = tuning.tune_here("llama-3-8b", "w4a8-qqq", 50, device="cpu")
    monkeypatch.undo()
    assert found.left == 2
    assert tuning.told(found)[-2] == "the time was over before 2 others: the same command goes on with them"
    assert set(json.loads(card.read_text())["w4a8-qqq"][SHAPE]) == {"16"}


def test_what_was_tuned_is_left_alone_but_for_anew(card):
    for anew, tried in ((False, 3), (False, 0), (True, 3)):
        text = card.read_text() if card.exists() else "{}"
        card.parent.mkdir(exist_ok=True)
        card.write_text(json.dumps(json.loads(text) | {"w8a8": {"64x128": {"16": [64, 1, 2, 4, 0]}}}))
        found = tuning.tune_here("llama-3-8b", "w4a8-qqq", 60, anew, device="cpu")
        assert found.left == 0
        assert len({*found.rows.get("rows", ())}) == tried
        assert set(json.loads(card.read_text())) == {"w4a8-qqq", "w8a8"}  # that of another process, too
    assert tuning.told(tuning.tune_here("llama-3-8b", "w4a8-qqq", 60, device="cpu"))[0].startswith("all matrices were")


def test_what_is_in_use_is_what_it_was_before(card, monkeypatch):
    """Warp groups where the table has them."""
    monkeypatch.setattr(tuning, "known", lambda *about, groups=False: [2, 2, 1, 1, 4] if groups else None)
    found = tuning.tune_here("llama-3-8b", "w4a8-qqq", 60, device="cpu")
    before = found.rows[found.rows.before]
    assert len(before) == 3
    assert set(before.slabs) == {"2+2+1"}


@pytest.fixture
def hopper(card, monkeypatch):
    """The same card as a Hopper, whose layers take as long as what `known` finds for them: the fewer steps are held,
    the longer, and longest by the ordinary kernel."""
    table = tuning.tuned(None)

    class Layers:
        def __init__(self, *arguments):
            pass

        def time_us(self, tile):
            groups = products.known("w4a8-qqq", 6144, 8192 - 64, tile, "sm90", torch.device("cpu"), groups=True)
            return 100.0 - groups[-1] if groups else 110.0

    monkeypatch.setattr(products, "tuned", lambda device: table)
    monkeypatch.setattr(tuning, "gpu_kind", lambda device: "sm90")
    monkeypatch.setattr(tuning, "LayersAlone", Layers)
    return card


def test_up_to_8_rows_what_is_tried_in_a_layer_runs_there(hopper):
    found = tuning.tune_here("llama-3-8b", "w4a8-qqq", 60, device="cpu")
    kept = products.read_tuned(hopper)
    assert set(kept["w4a8-qqq"][SHAPE]) == {"16", "32", "64"}
    for tile in TILES:
        tried = found.rows[(found.rows.rows == tile) & found.rows.layer_us.notna()]
        by_groups = tried[tried.slabs.notna()]
        assert (by_groups.layer_us == 100 - by_groups.stages).all()
        assert (tried[tried.slabs.isna()].layer_us == 110).all()
        assert kept[products.TABLE.format("w4a8-qqq")][SHAPE][str(tile)][-1] == by_groups.stages.max()


def test_up_to_8_rows_what_was_tuned_is_not_tuned_again(hopper, monkeypatch):
    clock = iter([0.0, *[1.0] * 4, *[99.0] * 9])  # over behind the candidates of 8 rows
    monkeypatch.setattr(tuning.time, "monotonic", lambda: next(clock))
    assert tuning.tune_here("llama-3-8b", "w4a8-qqq", 50, device="cpu").left == 3
    assert set(products.read_tuned(hopper)) == {products.TABLE.format("w4a8-qqq")}
    monkeypatch.setattr(tuning.time, "monotonic", lambda: 0.0)
    found = tuning.tune_here("llama-3-8b", "w4a8-qqq", 50, device="cpu")
    assert [*found.rows.rows.unique()] == [16, 32, 64]


@pytest.mark.parametrize(
    ("model", "scheme", "seconds", "says"),
    [
        ("llama-3-8b", "fp16", 50, "fp16 has nothing to tune, for cuBLAS chooses by itself: give another scheme"),
        ("llama-3-8b", "w4", 50, "w4"),
        ("nowhere", "w8a8", 50, "nowhere"),
        ("llama-3-8b", "w8a8", 0, "--seconds is 0: give more than 0, and at most 86400"),
        ("llama-3-8b", "w8a8", float("nan"), "--seconds is nan: give more than 0"),
    ],
)
def test_what_cannot_be_tuned_is_refused(model, scheme, seconds, says, card):
    with pytest.raises(SpecquantError, match=says):
        tuning.tune_here(model, scheme, seconds, device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_tuned():
    with pytest.raises(
        SpecquantError, match="on an NVIDIA GPU with Triton, and cuda here is none: run this where there is one"
    ):
        tuning.tune_here("llama-3-8b", "w8a8", 50)


def test_a_model_on_a_cpu_lacks_no_configurations():
    config = synthetic_config("llama-3-8b")
    config.num_hidden_layers = 1
    with torch.device("meta"):
        assert not tuning.lacks_configurations(Llama(config, "w4a16-g128", 8))


@pytest.mark.parametrize(("tiles", "lacks"), [((), True), ((16,), True), ((16, 32, 64), False)])
def test_a_model_lacks_a_shape_until_all_its_tiles_are_known(tiles, lacks, monkeypatch):
    config = synthetic_config("llama-3-8b")
    config.num_hidden_layers = 1
    with torch.device("meta"):
        model = Llama(config, "w8a8", 8)
    monkeypatch.setattr(Llama, "device", torch.device("cuda", 0))
    monkeypatch.setattr(tuning, "gpu_kind", lambda device: "sm90")
    monkeypatch.setattr(tuning, "known", lambda *about: [64, 1, 3, 4, 0] if about[3] in tiles else None)
    assert tuning.lacks_configurations(model) == lacks


def test_tuning_is_offered_in_a_sentence(monkeypatch, capsys):
    model = SimpleNamespace(scheme=SimpleNamespace(name="w8a8"))
    for lacks, says in ((True, "specquant tune 'my models/a' --scheme w8a8 looks for them for a minute"), (False, "")):
        monkeypatch.setattr(tuning, "lacks_configurations", lambda model, lacks=lacks: lacks)
        _offer_tuning(model, "my models/a")
        told = capsys.readouterr().err
        assert says in told
        assert bool(told) == lacks


@pytest.mark.gpu
def test_a_model_lacks_configurations_until_it_is_tuned(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    products.tuned.cache_clear()
    config = synthetic_config("llama-3-8b")
    config.num_hidden_layers, config.vocab_size = 1, 1024
    config.intermediate_size = 4096
    model = synthetic_model(config, "w4a8-qqq", 64)
    assert tuning.lacks_configurations(model)
    config.save_pretrained(tmp_path / "model")
    found = tuning.tune_here(tmp_path / "model", "w4a8-qqq", 300)
    assert found.path.is_relative_to(tmp_path)
    assert found.left == 0
    cells = tuning._cells(tuning.layer_shapes(config, "w4a8-qqq"), model.device)
    assert len(tuning.told(found)) == len(cells) + 1
    assert not tuning.lacks_configurations(model)
    products.tuned.cache_clear()


@pytest.mark.gpu
def test_a_layer_alone_runs_every_product_of_it():
    alone = tuning.LayersAlone("llama-3-8b", "w4a8-qqq", torch.device("cuda"))
    assert alone.time_us(16, repeats=1) > 0
    in_order = [(m.out_features, m.in_features) for m in alone.model.modules() if isinstance(m, PackedLinear)]
    layers = alone.model.config.num_hidden_layers
    assert in_order == [*kernels.LAYERS["llama-3-8b"].values()] * layers


@pytest.mark.gpu
def test_tuning_stops_in_time_and_keeps_what_it_did_not_reach(tmp_path):
    path = tmp_path / "configurations.json"
    path.write_text(CONFIGURATIONS.read_text())
    assert tuning.tune(["llama-3-8b"], ["fp16", "w8a8"], 0, path).empty
    assert json.loads(path.read_text()) == json.loads(CONFIGURATIONS.read_text())
