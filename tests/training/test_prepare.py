"""By one command: text, heads, a small model and a profile, for any target; again, and it goes on."""

import json
import math
import shutil

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from specquant.cli import main
from specquant.decoding import generate
from specquant.decoding.models import Models
from specquant.errors import SpecquantError
from specquant.files import project_root
from specquant.models.checkpoint import open_checkpoint
from specquant.models.companions import COMPANIONS
from specquant.models.eagle3 import load_eagle3_config
from specquant.models.loading import load_model, load_tokenizer
from specquant.models.targets import quantized_target
from specquant.study.batch import parameter_types
from specquant.training import prepare as module
from specquant.training.options import HeadOptions
from specquant.training.prepare import Size, Workshop, make_head, make_small, prepare, prompts_of
from specquant.training.writing import Writing

SIZE = Size(Writing(row_length=40, question_tokens=6, answer_tokens=8), part_rows=16, step_rows=4)
MINUTES = 0.03


def read_profile_of(values):
    """Those that notebooks have a parameter for, and of its type."""
    types = {}
    for notebook in (project_root() / "notebooks").glob("0*.ipynb"):
        types |= parameter_types(notebook)
    return {name: value for name, value in values.items() if types.get(name) == type(value).__name__}


@pytest.fixture
def shop(small_models, tmp_path):
    return Workshop(small_models / "target", tmp_path / "training", None, "cpu", SIZE)


def test_all_of_it_is_made_and_decodes(small_models, shop, tmp_path):
    said = []
    out = tmp_path / "out"
    profile = yaml.safe_load(prepare(shop, 1, out, MINUTES, said.append).read_text())
    assert [line.split(" has")[0] for line in said] == ["the EAGLE head", "the intermediate model", "its EAGLE head"]
    assert "\n\f\n" in (out / "calibration.txt").read_text()
    assert profile["target"] == str(small_models / "target")
    assert read_profile_of(profile) == profile
    drafters = {name: profile[name] for name in ("eagle_target", "intermediate", "eagle_intermediate")}
    models = Models(profile["target"], **drafters, dtype=torch.float64)
    tokenizer = load_tokenizer(small_models / "target")
    texts = {
        method: generate(models.speculator(method), tokenizer, "1 plus 2", 16).token_ids
        for method in ("autoregressive", "eagle2", "vanilla", "hierarchical")
    }
    assert len(set(map(tuple, texts.values()))) == 1
    assert len(models.intermediate.layers) == 1
    assert torch.equal(models.intermediate.embed_tokens.weight, models.target.embed_tokens.weight)


def test_an_interrupted_call_goes_on(small_models, shop, tmp_path, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "distill", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(shop, 1, tmp_path / "out", MINUTES, print)
    head = (tmp_path / "out/eagle-target/model.safetensors").read_bytes()
    text = json.loads((tmp_path / "training/text/text.json").read_text())
    again = Workshop(small_models / "target", tmp_path / "training", None, "cpu", SIZE)
    prepare(again, 1, tmp_path / "out", MINUTES, print)
    assert (tmp_path / "out/eagle-target/model.safetensors").read_bytes() == head
    assert json.loads((tmp_path / "training/text/text.json").read_text())["identity"] == text["identity"]


def test_text_and_checkpoints_of_another_model_of_the_same_name_are_not_gone_on_with(small_models, tmp_path):
    """Nor are those of the same model elsewhere taken for another's."""
    target = shutil.copytree(small_models / "target", tmp_path / "a/target")
    make_head(Workshop(target, tmp_path / "kept", None, "cpu", SIZE), tmp_path / "first", MINUTES)
    moved = shutil.copytree(target, tmp_path / "b/target")
    head = make_head(Workshop(moved, tmp_path / "kept", None, "cpu", SIZE), tmp_path / "second", MINUTES)
    assert head["curve"] == torch.load(tmp_path / "kept/checkpoints/eagle-target.pt")["curve"]
    weights = target / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(SpecquantError, match="holds text of another model or in another form: choose another --keep"):
        make_head(Workshop(target, tmp_path / "kept", None, "cpu", SIZE), tmp_path / "third", MINUTES)
    shutil.rmtree(tmp_path / "kept/text")
    with pytest.raises(SpecquantError, match=r"checkpoints is of another model than .*target is now: remove it, or"):
        make_head(Workshop(target, tmp_path / "kept", None, "cpu", SIZE), tmp_path / "third", MINUTES)


@pytest.fixture(scope="module")
def three_layers(small_models, tmp_path_factory):
    """A target that an EAGLE-3 head can be made for."""
    target = shutil.copytree(small_models / "target", tmp_path_factory.mktemp("deep") / "target")
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(target, num_hidden_layers=3)
    LlamaForCausalLM(config).half().save_pretrained(target)
    return target


def test_eagle3_heads_are_made_as_others_are(three_layers, tmp_path):
    """For both models, beside the heads that are there; they decode what the target alone does, and go on."""
    shop, out = Workshop(three_layers, tmp_path / "training", None, "cpu", SIZE), tmp_path / "out"
    prepare(shop, 3, out, MINUTES, lambda said: None)
    before = {path: path.read_bytes() for path in out.glob("*/model.safetensors")}
    eagle3 = HeadOptions("eagle3", draft_vocabulary=100)
    profile = yaml.safe_load(prepare(shop, 3, out, MINUTES, lambda said: None, eagle3).read_text())
    assert {path: path.read_bytes() for path in before} == before
    assert read_profile_of(profile) == profile
    companions = {which: out / which.replace("_", "-") for which in COMPANIONS}
    assert {which: profile[which] for which in COMPANIONS} == {name: str(path) for name, path in companions.items()}
    models = Models(profile["target"], **companions, dtype=torch.float64)
    tokenizer = load_tokenizer(three_layers)
    texts = [
        generate(models.speculator(method), tokenizer, "1 plus 2", 16).token_ids
        for method in ("autoregressive", "eagle3", "hierarchical-eagle3")
    ]
    assert texts[0] == texts[1] == texts[2]
    head = models.head("eagle3_target")
    assert len(head.vocabulary) == 100
    answers = shop.written.tokens[shop.written.held_out :][shop.written.answers[shop.written.held_out :]]
    counts = torch.bincount(answers, minlength=270)
    assert counts[head.vocabulary].min() >= counts[torch.isin(torch.arange(270), head.vocabulary).logical_not()].max()
    again = make_head(shop, tmp_path / "again", MINUTES, eagle3)
    assert again["curve"] == torch.load(tmp_path / "training/checkpoints/eagle3-target-100-tokens.pt")["curve"]
    files = [path / "model.safetensors" for path in (tmp_path / "again", out / "eagle3-target")]
    assert files[0].read_bytes() == files[1].read_bytes()
    make_head(shop, tmp_path / "fewer", MINUTES, HeadOptions("eagle3", draft_vocabulary=50))  # no checkpoint of the 100
    assert load_eagle3_config(tmp_path / "fewer").draft_vocab_size == 50


def test_the_command_trains_an_eagle3_head(three_layers, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "Size", lambda: SIZE)
    words = ["train-head", str(three_layers), "--out", str(tmp_path / "head"), "--kind", "eagle3"]
    assert main([*words, "--device", "cpu", "--minutes", str(MINUTES)]) == 0
    assert "held-out tokens right, by depth: 0." in capsys.readouterr().out
    assert load_eagle3_config(tmp_path / "head").draft_vocab_size == 68  # a quarter of 270


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_a_head_in_8_bits_is_half_as_large_and_nearly_the_same(three_layers, tmp_path, kind):
    shop = Workshop(three_layers, tmp_path / "training", None, "cpu", SIZE)
    for bits in (16, 8):
        make_head(shop, tmp_path / f"{bits}", MINUTES, HeadOptions(kind, bits=bits))
    exact, stored = (open_checkpoint(tmp_path / name) for name in ("16", "8"))
    assert stored.shapes == exact.shapes
    for name in exact.shapes:
        one, other = stored.read(name), exact.read(name)
        assert one.dtype == other.dtype
        half_a_step = max(0.006 * other.float().abs().max(), torch.finfo(torch.float16).tiny / 2)
        assert (one.float() - other.float()).abs().max() <= half_a_step * 1.01, name
    matrices = sum(math.prod(shape) for shape in exact.shapes.values() if len(shape) == 2)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("16", "8")]
    assert 0.9 * matrices < sizes[0] - sizes[1] < matrices


def test_head_and_small_model_share_a_text(small_models, shop, tmp_path):
    log = make_head(shop, tmp_path / "head", MINUTES)
    assert len(log["accuracy"]) == 4
    log = make_small(shop, 2, tmp_path / "small", MINUTES)
    assert log["layers"] == [0, 1]
    assert len(load_model(tmp_path / "small").layers) == 2
    with pytest.raises(SpecquantError, match="head exists and is not empty"):
        make_head(shop, tmp_path / "head", MINUTES)


def test_the_small_model_finds_its_ends_after_both_moved(small_models, tmp_path):
    (tmp_path / "a").mkdir()
    target = shutil.copytree(small_models / "target", tmp_path / "a/target")
    shop = Workshop(target, tmp_path / "training", None, "cpu", SIZE)
    make_small(shop, 1, tmp_path / "a/small", MINUTES)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len(load_model(tmp_path / "b/small").layers) == 1


def test_text_of_other_prompts_is_not_mixed_in(small_models, shop, tmp_path):
    shop.write(MINUTES / 10)
    (tmp_path / "prompts.txt").write_text("1 plus 2\n\nAnd then?\n")
    other = Workshop(small_models / "target", tmp_path / "training", tmp_path / "prompts.txt", "cpu", SIZE)
    assert other.prompts == ["1 plus 2", "And then?"]
    with pytest.raises(SpecquantError, match="holds text of another model or in another form: choose another"):
        other.write(MINUTES / 10)


def test_prompts_begin_rows(small_models, tmp_path):
    (tmp_path / "prompts.txt").write_text("1 plus 2 makes")
    shop = Workshop(small_models / "target", tmp_path / "training", tmp_path / "prompts.txt", "cpu", SIZE)
    shop.write(MINUTES / 10)
    begins = [shop.tokenizer.decode(row, skip_special_tokens=True) for row in shop.written.tokens]
    assert sum(text.startswith("1 plus 2 makes") for text in begins) >= len(begins) // 2


def test_prompts_that_are_none(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(SpecquantError, match="holds no prompts: write one to a line"):
        prompts_of(tmp_path / "empty.txt")
    with pytest.raises(SpecquantError, match="cannot read prompts"):
        prompts_of(tmp_path / "nowhere.txt")


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        ("train-head", ["--minutes", "0"], "--minutes is 0: give a number above 0"),
        ("prepare", ["--minutes", "nan"], "--minutes is nan: give a number above 0"),
        ("distill", ["--minutes", "-3"], "--minutes is -3: give a number above 0"),
        ("distill", ["--layers", "3"], "a target of 2 layers has no intermediate model of 3: give --layers 1 to 2"),
        ("prepare", ["--layers", "6"], "a target of 2 layers has no intermediate model of 6: give --layers 1 to 2"),
        ("prepare", ["--prompts", "nowhere.txt"], "cannot read prompts"),
        ("train-head", ["--kind", "eagle3"], "a model of 2 layers has no 3 that an EAGLE-3 head could read"),
        ("prepare", ["--kind", "eagle3", "--layers", "2"], "a model of 2 layers has no 3 that an EAGLE-3 head"),
        ("train-head", ["--kind", "medusa"], "--kind is 'medusa': choose one of eagle, eagle3"),
        ("train-head", ["--scheme", "w3a16"], "w3a16"),
        ("train-head", ["--bits", "4"], "--bits is 4: heads are stored in 16 or in 8 bits"),
        ("train-head", ["--kind", "eagle3", "--scheme", "w8a8"], "--scheme is for --kind eagle: EAGLE-3 heads"),
        ("train-head", ["--draft-vocabulary", "9"], "--draft-vocabulary is for --kind eagle3: other heads draft all"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(small_models, tmp_path, capsys, command, options, says):
    words = [command, str(small_models / "target"), "--out", str(tmp_path / "out"), "--device", "cpu", *options]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_that_the_model_does_not_have(three_layers, tmp_path, capsys):
    words = ["train-head", str(three_layers), "--out", str(tmp_path / "out"), "--device", "cpu", "--kind", "eagle3"]
    assert main([*words, "--draft-vocabulary", "271"]) == 2
    assert "a vocabulary of 270 has no 271 most frequent tokens: choose fewer" in capsys.readouterr().err
    assert main([*words, "--draft-vocabulary", "0"]) == 2
    assert "the number of tokens that an EAGLE-3 head drafts is 0; it must be at least 1" in capsys.readouterr().err
    assert not (tmp_path / "out.training").exists()


def test_a_model_that_is_none(tmp_path, capsys):
    assert main(["train-head", str(tmp_path / "no"), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16-g128-rot"])
def test_features_in_a_scheme_are_those_that_decoding_hands_to_the_head(small_models, shop, tmp_path, scheme):
    """Also of a rotated target, whose own features no head knows."""
    shop.write(MINUTES / 10)
    written = shop.written_in(scheme)
    assert torch.equal(written.tokens, shop.written.tokens)
    text = tmp_path / "training/calibration.txt"
    target = quantized_target(small_models / "target", scheme, tmp_path / "training/targets", calibration_text=text)
    models = Models(target, eagle_target=small_models / "eagle-target")
    row = written.tokens[0]
    known = models.head("eagle_target").known(models.target.prefill(row, models.target.new_cache(len(row))))
    assert torch.equal(written.features[0], known.half())
    error = (written.features.float() - shop.written.features.float()).norm() / shop.written.features.float().norm()
    assert 0 < error < 0.6


def test_the_command_trains_a_head_for_a_quantized_target(small_models, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "Size", lambda: SIZE)
    words = ["train-head", str(small_models / "target"), "--device", "cpu", "--minutes", str(MINUTES)]
    words += ["--keep-in", str(tmp_path / "text"), "--out"]
    assert main([*words, str(tmp_path / "head"), "--scheme", "w4a16-g128"]) == 0
    assert main([*words, str(tmp_path / "other")]) == 0
    assert capsys.readouterr().out.count("held-out tokens right, by depth: 0.") == 2
    heads = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("head", "other")]
    assert heads[0] != heads[1]
