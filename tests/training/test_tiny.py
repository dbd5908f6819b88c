import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from specquant.cli import main
from specquant.errors import SpecquantError
from specquant.training import tiny
from specquant.training.corpora import DOMAINS, Document
from specquant.training.fit import Schedule
from specquant.training.tiny import Recipe, train_tiny

SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
}
RECIPE = Recipe(
    vocabulary_size=300,
    row_length=32,
    target_shape={**SHAPE, "num_hidden_layers": 2},
    intermediate_shape=SHAPE,
    target=Schedule(steps=40, learning_rate=5e-3, weight_decay=0.1, warmup_steps=5, evaluate_every=10),
    target_rows={"mathematics": 2, "code": 2, "prose": 2},
    written_rows={"mathematics": 2, "code": 4, "prose": 2},
    intermediate=Schedule(steps=6, learning_rate=5e-3, weight_decay=0.1, muon=True, evaluate_every=3),
    intermediate_rows={"mathematics": 1, "code": 1, "prose": 1, "written": 2},
    eagle_target=Schedule(steps=6, learning_rate=5e-3, weight_decay=0.1, evaluate_every=3),
    eagle_intermediate=Schedule(steps=4, learning_rate=5e-3, weight_decay=0.1, evaluate_every=2),
    eagle_rows={"mathematics": 1, "code": 1, "prose": 1, "written": 2},
    prompts=2,
    prompt_tokens=4,
    continuation_tokens=12,
    calibration_tokens=6000,
)


def synthetic_corpora(*_):
    """Texts with a secret word in each held-out one, so that a leak into training would show."""
    texts = {
        "mathematics": "Question: There are {i} apples and {i} pears. How many?\nAnswer: {i} + {i}.\n",
        "code": "def add_{i}(number):\n    return number + {i}\n",
        "prose": "In the year {i} the river rose again, and the town was flooded.\n",
    }
    documents = []
    for domain, text in texts.items():
        for i in range(400):
            document = Document(domain, str(i), text.format(i=i))
            if document.held_out:
                document = dataclasses.replace(document, text=document.text + "Zanzibar\n")
            documents.append(document)
    return documents


@pytest.fixture(autouse=True)
def corpora(monkeypatch):
    monkeypatch.setattr(tiny, "load_corpora", synthetic_corpora)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "load_corpora", synthetic_corpora)
        return out, train_tiny("anywhere", out, RECIPE, device="cpu")


def test_training_lowers_the_held_out_loss(trained):
    curve = trained[1]["training"]["target"]["curve"]
    assert curve[-1]["held_out_loss"] < curve[0]["held_out_loss"] - 0.5


def test_training_never_sees_held_out_text():
    documents = synthetic_corpora()
    tokenizer = tiny.train_tokenizer([d.text for d in documents if not d.held_out], 300, 32)
    data = tiny.Data(documents, tokenizer, RECIPE, torch.device("cpu"))
    assert sum(d.held_out for d in documents) > 30
    for domain in DOMAINS:
        training = tokenizer.decode([int(i) for document in data.training[domain] for i in document])
        held_out = tokenizer.decode(data.held_out[domain].flatten())
        assert "Zanzibar" not in training
        assert "Zanzibar" in held_out


def test_the_models_load_and_are_what_was_measured(trained):
    out, log = trained
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "calibration.txt",
        "eagle-intermediate",
        "eagle-target",
        "intermediate",
        "target",
        "training.json",
        "training.png",
    ]
    tokenizer = AutoTokenizer.from_pretrained(out / "target")
    data = tiny.Data(synthetic_corpora(), tokenizer, RECIPE, torch.device("cpu"))
    for name in ("target", "intermediate"):
        model = AutoModelForCausalLM.from_pretrained(out / name)
        assert model.dtype == torch.float16
        assert data.held_out_losses(model.float()) == pytest.approx(log["held_out"][name]["loss_fp16"], abs=1e-5)
        assert log["held_out"][name]["loss_fp16"]["mean"] == pytest.approx(
            log["held_out"][name]["loss_fp32"]["mean"], abs=1e-3
        )


def test_the_heads_are_fp16_and_have_a_config(trained):
    out, _ = trained
    for name, hidden in (("eagle-target", 64), ("eagle-intermediate", 64)):
        weights = load_file(out / name / "model.safetensors")
        assert weights["fc.weight"].shape == (hidden, 2 * hidden)
        assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
        config = json.loads((out / name / "config.json").read_text())
        assert (config["architectures"], config["bias"], config["num_hidden_layers"]) == (["EagleHead"], True, 1)


def test_calibration_documents_can_be_read_back(trained):
    documents = (trained[0] / "calibration.txt").read_text(encoding="utf-8").split("\n\f\n")
    assert len(documents) > 1
    assert not any("\f" in document or "<|" in document for document in documents)


def test_the_card_says_what_was_recorded(trained):
    out, log = trained
    card = (out / "README.md").read_text(encoding="utf-8")
    assert json.loads((out / "training.json").read_text()) == log
    assert f"{log['held_out']['agreement']['mean']:.1%} of held-out positions" in card
    assert f"{log['corpora']['code']['held_out_tokens']:,}" in card
    assert (out / "training.png").stat().st_size < 200_000


class Interruption(Exception):
    pass


def test_an_interrupted_recipe_continues(trained, tmp_path, monkeypatch):
    whole, _ = trained
    with monkeypatch.context() as patch:
        patch.setattr(tiny, "train_intermediate", lambda *_: (_ for _ in ()).throw(Interruption))
        with pytest.raises(Interruption):
            train_tiny("anywhere", tmp_path / "tiny", RECIPE, device="cpu")
    assert not (tmp_path / "tiny/training.json").exists()

    with pytest.raises(SpecquantError, match="another recipe"):
        train_tiny("anywhere", tmp_path / "tiny", dataclasses.replace(RECIPE, seed=1), device="cpu")

    monkeypatch.setattr(tiny, "next_token_losses", counted := Counted(tiny.next_token_losses))
    train_tiny("anywhere", tmp_path / "tiny", RECIPE, device="cpu")
    assert counted.training_calls == 0  # the target is not trained again; the intermediate trains on distributions
    for name in ("target", "intermediate", "eagle-target", "eagle-intermediate"):
        first, second = (
            load_file(whole / name / "model.safetensors"),
            load_file(tmp_path / f"tiny/{name}/model.safetensors"),
        )
        assert all(torch.equal(first[key], second[key]) for key in first)


class Counted:
    def __init__(self, function):
        self.function, self.training_calls = function, 0

    def __call__(self, model, rows):
        self.training_calls += torch.is_grad_enabled()
        return self.function(model, rows)


def test_an_unwritable_directory_is_said(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(SpecquantError, match="cannot write to"):
        train_tiny("anywhere", tmp_path / "file", RECIPE, device="cpu")


def test_the_command_line_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.undo()
    options = ["--corpora", str(tmp_path / "none"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["train-tiny", *options]) == 2
    assert main(["train-tiny", *options, "--budget", "0"]) == 2
    missing, nothing = capsys.readouterr().err.splitlines()
    assert "cannot read the corpus" in missing
    assert "a budget of 0 trains nothing" in nothing
    assert not (tmp_path / "out").exists()


def test_the_target_continues_rows_of_the_corpora(trained, tmp_path):
    out, _ = trained
    tokenizer = AutoTokenizer.from_pretrained(out / "target")
    data = tiny.Data(synthetic_corpora(), tokenizer, RECIPE, torch.device("cpu"))
    target = AutoModelForCausalLM.from_pretrained(out / "target").float()
    rows = tiny.written_text(target, data, RECIPE, tmp_path)
    assert rows.shape == (8, 32)
    corpora = data.training_rows(RECIPE.written_rows, RECIPE.seed + 3).batch(0)
    same = (rows[:, None] == corpora).long().cumprod(-1).sum(-1).amax(-1)  # how far each follows some row
    assert (same >= 1).all()
    assert (same > 2).any()
    assert (same < 32).all()
    assert torch.equal(rows, tiny.written_text(target, data, RECIPE, tmp_path))  # from the checkpoint


def test_distillation_is_cross_entropy_against_distribution_and_argmax():
    torch.manual_seed(0)
    logits, teacher = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    soft = torch.nn.functional.cross_entropy(logits.flatten(0, 1), teacher.softmax(-1).flatten(0, 1))
    hard = torch.nn.functional.cross_entropy(logits.flatten(0, 1), teacher.argmax(-1).flatten())
    assert tiny.Distillation(0.0)(logits, teacher) == pytest.approx(soft.item())
    assert tiny.Distillation(0.3)(logits, teacher) == pytest.approx((0.7 * soft + 0.3 * hard).item())
