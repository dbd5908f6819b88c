"""The methods, put together from model directories: real ones, and small random ones for what goes wrong."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from specquant.cli import main
from specquant.decoding import EagleDrafter, Speculator
from specquant.decoding.drafters import METHODS, PAPER_METHODS, get_method
from specquant.decoding.method import ADAPTIVE, DraftSettings, Plan
from specquant.decoding.models import Models, tiny_models
from specquant.errors import SpecquantError
from specquant.files import project_root
from specquant.models.loading import load_tokenizer
from specquant.models.options import ModelOptions
from specquant.models.quantize import quantize_model
from specquant.quant import SCHEMES, PackedLinear, get_scheme
from tests.decoding.conftest import decode_with_lengths

PROMPT = "Question: Tom has 3 boxes with 4 apples each. How many apples does he have?\nAnswer:"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_method_decodes_the_targets_own_tokens(small_models, tmp_path, scheme):
    """Random companions: nearly every draft is wrong, and the tokens are right all the same."""
    target = small_models / "target"
    if get_scheme(scheme).rotated:
        quantize_model(target, scheme, tmp_path / scheme, method="round-to-nearest", progress=False)
        models = tiny_models(small_models, tmp_path / scheme, dtype=torch.float64)
    else:
        models = tiny_models(small_models, scheme=scheme, dtype=torch.float64)
    assert models.target.scheme.name == scheme
    prompt = load_tokenizer(target)("7 plus 5 makes")["input_ids"]
    expected, lengths = decode_with_lengths(models.speculator("autoregressive"), prompt, 16)
    assert lengths == [1] * 15
    for method in METHODS:
        assert decode_with_lengths(models.speculator(method), prompt, 16)[0] == expected, method


def test_the_methods_are_built_as_the_settings_say(small_models):
    settings = DraftSettings(12, 4, 5, inner_draft_size=9, inner_iterations=2, min_draft_length=3)
    models = tiny_models(small_models)
    autoregressive, vanilla, eagle2, hierarchical = (models.speculator(method, settings) for method in PAPER_METHODS)
    assert autoregressive.drafter is None
    assert all(method.model is models.target for method in (autoregressive, vanilla, eagle2, hierarchical))

    def tree(drafter):
        assert isinstance(drafter, EagleDrafter)
        return drafter.draft_size, drafter.iterations, drafter.top_k

    assert tree(eagle2.drafter) == (12, 4, 5)
    assert eagle2.drafter.head.lm_head is models.target.lm_head
    for level in (vanilla.drafter, hierarchical.drafter):
        assert isinstance(level, Speculator)
        assert level.min_draft_length == 3
        assert level.model is models.intermediate  # loaded once
    assert vanilla.drafter.drafter is None
    assert tree(hierarchical.drafter.drafter) == (9, 2, 5)
    assert hierarchical.drafter.drafter.head.embed_tokens is models.intermediate.embed_tokens


def test_a_plan_is_built_as_it_says_with_a_head_that_is_loaded_once(small_models):
    models = tiny_models(small_models)
    eagle2, other = models.speculator(Plan("eagle2", 12, 4)), models.speculator(Plan("eagle2", 7, 2))
    assert (eagle2.drafter.draft_size, eagle2.drafter.iterations) == (12, 4)
    assert eagle2.drafter.head is other.drafter.head
    inner = models.speculator(Plan("hierarchical", 9, 2, 3)).drafter
    assert (inner.min_draft_length, inner.drafter.draft_size, inner.drafter.iterations) == (3, 9, 2)


def test_plans_say_what_they_are():
    assert str(Plan("autoregressive")) == "autoregressive"
    assert str(Plan("vanilla", min_draft_length=6)) == "vanilla (6 tokens or more)"
    assert str(Plan("hierarchical", 30, 3, 6)) == "hierarchical (30 nodes, 3 iterations, 6 tokens or more)"


def test_methods_that_were_given_their_companions(small_models):
    target, intermediate = small_models / "target", small_models / "intermediate"
    free = ["prompt-lookup", "suffix"]
    every = [*PAPER_METHODS, "eagle3", "hierarchical-eagle3", *free]
    assert tiny_models(small_models).given_methods() == every
    assert Models(target, intermediate=intermediate).given_methods() == ["autoregressive", "vanilla", *free]
    with_head = Models(target, eagle_target=small_models / "eagle-target")
    assert with_head.given_methods() == ["autoregressive", "eagle2", *free]


@pytest.mark.parametrize("options", [{"head_scheme": "w8a8"}, {"head_vocabulary": 64}])
def test_cheaper_heads_draft_otherwise_and_decode_the_same(small_models, tmp_path, options):
    text = tmp_path / "text.txt"
    text.write_text("7 plus 5 makes 12, and 7 times 5 makes 35.\n" * 3)
    models = tiny_models(small_models, dtype=torch.float64, head_text=text, **options)
    prompt = load_tokenizer(small_models / "target")("7 plus 5 makes")["input_ids"]
    expected, _ = decode_with_lengths(models.speculator("autoregressive"), prompt, 16)
    for method in ("eagle2", "hierarchical"):
        speculator = models.speculator(method)
        assert decode_with_lengths(speculator, prompt, 16)[0] == expected
        head = (speculator.drafter if method == "eagle2" else speculator.drafter.drafter).head
        if "head_scheme" in options:
            assert isinstance(head.fc, PackedLinear)
            assert isinstance(head.lm_head, PackedLinear)
            continue
        assert set(load_tokenizer(small_models / "target")(text.read_text())["input_ids"]) <= set(
            head.vocabulary.tolist()
        )
        drafted = speculator.drafter.propose(20).tokens.tolist()[1:] if method == "eagle2" else []
        assert set(drafted) <= set(head.vocabulary.tolist())


def test_few_tokens_without_a_text_to_count_them_in_are_refused(small_models, tmp_path, nothing_is_loaded):
    for text, says in ((None, "needs a text to count them in"), (tmp_path / "none.txt", "cannot count tokens in")):
        models = tiny_models(small_models, head_vocabulary=64, head_text=text)
        with pytest.raises(SpecquantError, match=says):
            models.speculator("eagle2")


def test_the_papers_settings_are_the_default(small_models):
    drafter = tiny_models(small_models).speculator("eagle2").drafter
    assert (drafter.draft_size, drafter.iterations, drafter.top_k) == (60, 6, 10)


@pytest.mark.parametrize(
    ("method", "missing"),
    [
        ("vanilla", "intermediate model"),
        ("eagle2", "eagle target model"),
        ("hierarchical", "intermediate model"),
    ],
)
def test_a_missing_companion_is_named(small_models, method, missing):
    models = Models(small_models / "target")
    assert models.speculator("autoregressive")
    with pytest.raises(SpecquantError, match=f"the method {method} needs the directory of the {missing}"):
        models.speculator(method)


def test_a_missing_head_of_the_intermediate_is_named(small_models):
    models = Models(small_models / "target", intermediate=small_models / "intermediate")
    assert models.speculator("vanilla")
    with pytest.raises(SpecquantError, match="hierarchical needs the directory of the eagle intermediate model"):
        models.speculator("hierarchical")


def test_companions_are_loaded_when_a_method_needs_them(small_models):
    models = Models(small_models / "target", eagle_target="nowhere", intermediate=small_models / "intermediate")
    assert models.speculator("vanilla")
    with pytest.raises(SpecquantError, match="nowhere is not a model directory"):
        models.speculator("eagle2")


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    def load(*_, **__):
        raise AssertionError("loaded before the companions were checked")

    for name in ("load_model", "load_eagle_head"):
        monkeypatch.setattr(f"specquant.decoding.models.{name}", load)


def change(directory, file, **fields):
    content = json.loads((directory / file).read_text()) | fields
    (directory / file).write_text(json.dumps(content))


def test_models_with_other_tokens_are_refused_before_any_is_loaded(small_models, tmp_path, nothing_is_loaded):
    root = shutil.copytree(small_models, tmp_path / "models")
    for field, value, says in (
        ("vocab_size", 269, "the drafter's vocabulary has 269 entries and its target's 270"),
        ("bos_token_id", 2, "texts begin with token 2 in .*intermediate and with 0 in .*target: use a drafter with"),
    ):
        change(root / "intermediate", "config.json", **{field: value})
        for method in ("vanilla", "hierarchical"):
            with pytest.raises(SpecquantError, match=says):
                tiny_models(root).speculator(method)
        shutil.copyfile(small_models / "intermediate/config.json", root / "intermediate/config.json")
    change(root / "intermediate", "config.json", eos_token_id=3)  # the target decides where a text ends

    model = json.loads((root / "intermediate/tokenizer.json").read_text())["model"]
    first, second = (next(token for token, number in model["vocab"].items() if number == n) for n in (100, 101))
    change(root / "intermediate", "tokenizer.json", model=model | {"vocab": model["vocab"] | {first: 101, second: 100}})
    with pytest.raises(SpecquantError, match=r"token 100 is .* in .*intermediate and .* in .*target: use a drafter"):
        tiny_models(root).speculator("vanilla")
    (root / "intermediate/tokenizer.json").unlink()
    with pytest.raises(AssertionError, match="loaded before"):
        tiny_models(root).speculator("vanilla")


def pad(directory, rows):
    """Rows at the end of a vocabulary that stand for no token, as likely as any."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    name = "model.embed_tokens.weight"
    if name in tensors:
        more = tensors[name].mean(0).expand(rows, -1) + tensors[name][:rows].flip(1)
        save_file(tensors | {name: torch.cat((tensors[name], more.half()))}, file, {"format": "pt"})
    change(directory, "config.json", vocab_size=270 + rows)


@pytest.mark.parametrize(
    "padded", [("target",), ("intermediate",), ("target", "eagle-target"), ("eagle-intermediate",)]
)
def test_vocabularies_that_differ_in_padding_fit_and_decode_the_same(small_models, tmp_path, padded):
    root = shutil.copytree(small_models, tmp_path / "models")
    for name in padded:
        pad(root / name, 50)
    text = tmp_path / "text.txt"
    text.write_text("7 plus 5 makes 12, and 7 times 5 makes 35.\n" * 3)
    prompt = load_tokenizer(root / "target")("7 plus 5 makes")["input_ids"]
    for options in ({}, {"head_vocabulary": 270, "head_text": text}):
        models = tiny_models(root, dtype=torch.float64, **options)
        expected, _ = decode_with_lengths(models.speculator("autoregressive"), prompt, 16)
        for method in METHODS:
            assert decode_with_lengths(models.speculator(method), prompt, 16)[0] == expected, method


def test_added_tokens_may_be_one_models_alone_but_never_others(small_models, tmp_path, nothing_is_loaded):
    root = shutil.copytree(small_models, tmp_path / "models")

    def add(name, content, number=270):
        file = root / name / "tokenizer.json"
        fields = json.loads((small_models / name / "tokenizer.json").read_text())
        fields["added_tokens"].append(fields["added_tokens"][0] | {"id": number, "content": content})
        file.write_text(json.dumps(fields))
        change(root / name, "config.json", vocab_size=number + 1)

    add("target", "<|user|>")
    with pytest.raises(AssertionError, match="loaded before"):
        tiny_models(root).speculator("vanilla")
    add("intermediate", "<|user|>")
    with pytest.raises(AssertionError, match="loaded before"):
        tiny_models(root).speculator("vanilla")
    add("intermediate", "<|other|>")
    with pytest.raises(SpecquantError, match=r"token 270 is '<\|other\|>' in .* and '<\|user\|>' in .*: use a drafter"):
        tiny_models(root).speculator("vanilla")
    (root / "intermediate/tokenizer.json").unlink()
    change(root / "intermediate", "config.json", vocab_size=270)
    with pytest.raises(SpecquantError, match="the drafter's vocabulary has 270 entries and its target's 271"):
        tiny_models(root).speculator("vanilla")


def test_a_head_for_another_vocabulary_is_refused(small_models, tmp_path, nothing_is_loaded):
    """It brings no tokenizer: by what its size says."""
    root = shutil.copytree(small_models, tmp_path / "models")
    for rows in (269, 270 + 1025):
        change(root / "eagle-target", "config.json", vocab_size=rows)
        with pytest.raises(SpecquantError, match=f"has vocab_size {rows}, and its model 270: they do not fit"):
            tiny_models(root).speculator("eagle2")


def test_heads_of_other_models_are_refused_before_any_is_loaded(small_models, nothing_is_loaded):
    heads = {"eagle_target": small_models / "eagle-intermediate", "eagle_intermediate": small_models / "eagle-target"}
    models = Models(small_models / "target", intermediate=small_models / "intermediate", **heads)
    with pytest.raises(SpecquantError, match="has hidden_size 128, and its model 256"):
        models.speculator("eagle2")
    with pytest.raises(SpecquantError, match="has hidden_size 256, and its model 128"):
        models.speculator("hierarchical")


def test_an_unknown_method_is_refused(small_models):
    with pytest.raises(SpecquantError, match="unknown method 'medusa': choose one of autoregressive, vanilla"):
        Models(small_models / "target").speculator("medusa")


def test_a_draft_size_that_the_tree_cannot_have_is_refused(small_models):
    with pytest.raises(SpecquantError, match="a draft size of 512 does not exist: 6 iterations with top-k 10"):
        tiny_models(small_models).speculator("eagle2", DraftSettings(draft_size=512))


def test_a_head_drafts_for_a_rotated_target_as_for_the_target_itself(tmp_path):
    """On the trained models: a head that read rotated features would have hardly a draft accepted."""
    tiny = project_root() / "data/tiny"
    quantize_model(tiny / "target", "w4a16-g128-rot", tmp_path / "rot", method="round-to-nearest", progress=False)
    prompt = load_tokenizer(tiny / "target")(PROMPT)["input_ids"]
    means = []
    for options in ({"scheme": "w4a16-g128"}, {"target": tmp_path / "rot"}):
        models = tiny_models("data/tiny", dtype=torch.float64, **options)
        expected, _ = decode_with_lengths(models.speculator("autoregressive"), prompt, 40)
        tokens, lengths = decode_with_lengths(models.speculator("eagle2"), prompt, 40)
        assert tokens == expected
        means.append(sum(lengths) / len(lengths))
    assert means[1] > 0.7 * means[0] > 1.1


@pytest.mark.parametrize("method", ["eagle2", "eagle3", "suffix-eagle2", "hierarchical", "hierarchical-eagle3"])
def test_adaptive_trees_change_no_token(small_models, method):
    """Whatever passes cost here; and prices are measured once."""
    models = tiny_models(small_models, dtype=torch.float64)
    prompt = load_tokenizer(small_models / "target")("7 plus 5 makes")["input_ids"]
    settings = DraftSettings(draft_size="adaptive", inner_draft_size="adaptive", iterations=3, top_k=4)
    assert get_method(method).plan(settings).draft_size == ADAPTIVE
    assert str(get_method(method).plan(settings)).startswith(f"{method} (adaptive trees, 3 iterations")
    expected, _ = decode_with_lengths(models.speculator("autoregressive"), prompt, 24)
    assert decode_with_lengths(models.speculator(method, settings), prompt, 24)[0] == expected
    ((key, prices),) = models._prices.items()
    assert sorted(prices.verify_ms) == [1, 8, 16, 24, 32]
    assert len(prices.draft_ms) == key[1] == 3
    assert all(time_ms > 0 for time_ms in (*prices.verify_ms.values(), *prices.draft_ms))
    models.speculator(method, settings)
    assert models._prices == {key: prices}


def test_a_draft_size_of_a_wrong_word(small_models, capsys):
    words = ["generate", "--model", str(small_models / "target"), "--prompt", "7", "--method", "eagle2"]
    for given, says in (("adaptve", "give a whole number, or adaptive"), ("2.5", "give a whole number, or adaptive")):
        assert main([*words, "--draft-size", given]) == 2
        assert capsys.readouterr().err == f"specquant: --draft-size is '{given}': {says}\n"
    assert main([*words, "--draft-size", "-1"]) == 2
    assert capsys.readouterr().err == "specquant: the draft size is -1; it must be at least 1\n"


def test_row_invariance_is_the_targets_and_an_option_of_all_who_decode(small_models):
    options = ModelOptions(small_models / "target", device="cpu")
    for row_invariant in (False, True):
        models = Models.of(replace(options, row_invariant=row_invariant))
        assert models.target.row_invariant is row_invariant
        assert {layer.row_invariant for layer in models.target.layers} == {row_invariant}
        assert not models.rounds_by_draft  # on a CPU


@pytest.mark.parametrize(("method", "says"), [("vanilla", True), ("autoregressive", False)])
def test_generate_says_where_a_draft_may_change_the_text(small_models, monkeypatch, capsys, method, says):
    monkeypatch.setattr(Models, "rounds_by_draft", True)
    words = ["--model", str(small_models / "target"), "--prompt", "a", "--max-new-tokens", "2", "--method", method]
    assert main(["generate", *words]) == 0
    assert ("--row-invariant" in capsys.readouterr().err) is says
