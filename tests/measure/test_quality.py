"""Perplexity against transformers' own loss, and agreement, on documents of the models' own tokenizer."""

import math

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from specquant.decoding import Speculator, generate
from specquant.errors import SpecquantError
from specquant.measure.measure import record
from specquant.measure.quality import (
    MEASURE,
    WIKITEXT2,
    Parameters,
    Prediction,
    answers,
    beside_fp16,
    by_scheme,
    compare,
    draw,
    predict,
    quality,
    read_documents,
)
from specquant.models.loading import load_model, load_tokenizer
from specquant.study import read_results
from tests.questions import write_questions


@pytest.fixture(scope="module")
def model(small_models):
    return load_model(small_models / "target")


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "texts.txt").write_text("1 plus 1 makes 2.\n\f\n3 times 4 makes 12, and more.\n\f\n \n\f\nlast\n")
    return tmp_path / "texts.txt"


def test_perplexity_is_that_of_transformers(small_models, tokenizer, model):
    tokens = tokenizer("17 plus 5 makes 22, and 17 times 5 makes 85.")["input_ids"]
    ids = torch.tensor([tokens])
    with torch.inference_mode():
        theirs = AutoModelForCausalLM.from_pretrained(small_models / "target", dtype=torch.float32)(ids, labels=ids)
    prediction = predict(model, [tokens])
    assert math.log(prediction.perplexity) == pytest.approx(float(theirs.loss), abs=1e-5)
    assert prediction.greedy_tokens.tolist() == theirs.logits[0].argmax(dim=-1).tolist()
    assert prediction.tokens == len(tokens)


def test_every_document_starts_anew_and_counts_by_its_length(model, tokenizer):
    first, second = (tokenizer(text)["input_ids"] for text in ("1 plus 1 makes 2.", "a"))
    losses = [math.log(predict(model, [tokens]).perplexity) * (len(tokens) - 1) for tokens in (first, second)]
    both = predict(model, [first, second])
    assert math.log(both.perplexity) * (len(first) + len(second) - 2) == pytest.approx(sum(losses))
    assert both.tokens == len(first) + len(second)


def test_agreement_is_the_share_of_equal_tokens(model, tokenizer):
    prediction = predict(model, [tokenizer("2 plus 2 makes 4.")["input_ids"]])
    assert prediction.agreement(prediction) == 1
    three_of_four = Prediction(1.0, torch.tensor([1, 2, 3, 4])).agreement(Prediction(9.0, torch.tensor([1, 2, 0, 4])))
    assert three_of_four == 0.75


def test_documents_are_cut_and_empty_ones_left_out(texts, tokenizer):
    whole = read_documents(texts, tokenizer, longest=100)
    expected = ("1 plus 1 makes 2.\n", "3 times 4 makes 12, and more.\n", "last\n")
    assert whole == [tokenizer(text)["input_ids"] for text in expected]
    cut = read_documents(texts, tokenizer, longest=4)
    assert max(map(len, cut)) == 4
    assert min(map(len, cut)) > 1  # a single token has no next one
    assert cut[0] + cut[1] == whole[0][:8]
    assert read_documents(texts, tokenizer, 100, most_tokens=len(whole[0]) + 1) == whole[:2]
    assert read_documents(texts, tokenizer, 100, most_tokens=1) == whole[:1]


def test_texts_that_are_missing_or_empty_are_refused(tmp_path, tokenizer):
    with pytest.raises(SpecquantError, match=r"there is no text file .*missing\.txt"):
        read_documents(tmp_path / "missing.txt", tokenizer, 100)
    (tmp_path / "empty.txt").write_text("\n\f\n \n")
    with pytest.raises(SpecquantError, match=r"empty\.txt holds no text"):
        read_documents(tmp_path / "empty.txt", tokenizer, 100)


def test_the_table_compares_with_the_reference(small_models, model, texts, tokenizer):
    documents = read_documents(texts, tokenizer, 100)
    domains = {"mathematics": documents[:2], "prose": documents[2:]}
    rows, reference = quality(model, "small", "synthetic", domains)
    assert list(rows.domain) == ["mathematics", "prose"]
    assert set(rows.scheme) == {"fp16"}
    assert list(rows.increase_percent) == [0, 0]
    assert list(rows.agreement_percent) == [100, 100]
    assert list(rows.perplexity) == [reference[domain].perplexity for domain in domains]

    other = load_model(small_models / "target", "w4a16-g128")
    quantized, own = quality(other, "small", "synthetic", domains, reference)
    assert set(quantized.scheme) == {"w4a16-g128"}
    ratios = [own[domain].perplexity / reference[domain].perplexity for domain in domains]
    assert list(quantized.increase_percent) == pytest.approx([100 * (ratio - 1) for ratio in ratios])
    assert (quantized.increase_percent != 0).all()
    assert list(quantized.agreement_percent) == [100 * own[domain].agreement(reference[domain]) for domain in domains]


def test_the_summary_is_the_mean_over_domains_in_the_order_asked_for():
    rows = pd.DataFrame(
        {
            "scheme": ["fp16", "fp16", "w8a8", "w8a8"],
            "domain": ["code", "prose"] * 2,
            "increase_percent": [0.0, 0.0, 1.0, 4.0],
            "agreement_percent": [100.0, 100.0, 99.0, 90.0],
        }
    )
    table = by_scheme(rows, ["w8a8", "fp16"])
    assert list(table.index) == ["w8a8", "fp16"]
    assert table.loc["w8a8"].tolist() == [2.5, 94.5]


def with_intervals() -> pd.DataFrame:
    """Two schemes beside FP16, on a text and on the answers of two tasks; 1 to either side."""
    read = [("fp16", 0.0, 100.0, 0.0), ("w8a8", 10.0, 80.0, 0.5), ("w4a16-g128", 2.0, 90.0, 0.2)]
    rows = [
        {"model": "small", "scheme": scheme, "weights": "trained", "domain": domain, "tokens": 7}
        | {"perplexity": 20 * (1 + (more + extra) / 100), "documents": 3}
        | {f"increase_percent{end}": more + extra + by for end, by in ENDS.items()}
        | {f"agreement_percent{end}": agreement - extra + by for end, by in ENDS.items()}
        | {f"divergence{end}": divergence + by / 10 for end, by in ENDS.items()}
        for scheme, more, agreement, divergence in read
        for domain, extra in ((WIKITEXT2, 0.0), ("answers, GSM8K", 1.0), ("answers, HumanEval", 3.0))
    ]
    return pd.DataFrame(rows)


ENDS = {"": 0.0, "_low": -1.0, "_high": 1.0}


def test_schemes_stand_beside_fp16_the_best_first():
    table = beside_fp16(with_intervals(), WIKITEXT2)
    assert list(table.index) == ["w4a16-g128", "w8a8"]
    assert table.loc["w8a8"].tolist() == [
        *(pytest.approx(22.0), "10.0 (9.0 to 11.0)", "80.0 (79.0 to 81.0)", "0.500 (0.400 to 0.600)"),
        *("77.0 to 79.0", "0.500 to 0.500"),
    ]


def test_the_figure_has_texts_with_their_intervals_and_no_answers():
    (axis,) = draw(with_intervals()).axes
    (points,) = [line for line in axis.lines if not line.get_label().startswith("_")]
    assert points.get_label() == "WikiText-2"
    assert list(points.get_xdata()) == pytest.approx([10.0, 2.0])
    (bars,) = axis.collections
    assert [segment[:, 0].tolist() for segment in bars.get_segments()] == [[9.0, 11.0], [1.0, 3.0]]
    without = with_intervals().drop(columns="increase_percent_low")
    assert not draw(without).axes[0].collections


def test_text_that_cannot_be_read_or_predicted_is_refused(tmp_path, tokenizer):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(SpecquantError, match=r"cannot read .*latin\.txt"):
        read_documents(tmp_path / "latin.txt", tokenizer, 16)
    (tmp_path / "short.txt").write_text("1")
    with pytest.raises(SpecquantError, match=r"short\.txt holds less than 2 tokens"):
        read_documents(tmp_path / "short.txt", lambda text, **_: {"input_ids": [7]}, 16)
    with pytest.raises(SpecquantError, match="documents need at least 2 tokens"):
        read_documents(tmp_path / "short.txt", tokenizer, 1)


def test_the_command_says_what_the_functions_say(small_models, tmp_path, in_process):
    """Perplexity and agreement as above, divergence by its definition, and the answers are the fp16 model's own."""
    options = {"model": small_models / "target", "name": "small", "schemes": ("fp16", "w4a16-g128"), "dtype": "float64"}
    options |= {"tokens_per_domain": 200, "longest": 50, "keep_targets_in": tmp_path / "targets", "max_new_tokens": 7}
    (tmp_path / "sums.txt").write_text("17 plus 5 makes 22, and 17 times 5 makes 85.\n")
    options |= {
        "text": tmp_path / "sums.txt",
        "benchmarks": ("mt-bench",),
        "data_dir": write_questions(tmp_path / "questions"),
    }
    parameters = Parameters(**options)
    rows = read_results(record(MEASURE, parameters, tmp_path)).set_index(["scheme", "domain"])
    tokenizer, models = load_tokenizer(small_models / "target"), [parameters.loaded(s) for s in options["schemes"]]
    texts, reference = parameters.texts(tokenizer), None
    for model in models:
        expected, own = quality(model, "small", "trained", texts, reference)
        reference = reference or own
        for each in expected.itertuples():
            row = rows.loc[(each.scheme, each.domain)]
            assert row.tokens == each.tokens
            assert row.perplexity == pytest.approx(each.perplexity)
            assert row.increase_percent == pytest.approx(each.increase_percent, abs=1e-9)
            assert row.agreement_percent == pytest.approx(each.agreement_percent)
            assert row.increase_percent_low <= row.increase_percent <= row.increase_percent_high
    fp16, quantized = (rows.loc[(scheme, "answers, MT-Bench")] for scheme in options["schemes"])
    assert fp16.documents == 2
    assert fp16.divergence == 0 < quantized.divergence_low <= quantized.divergence <= quantized.divergence_high

    (first, _) = answers(parameters, models[0], tokenizer)["answers, MT-Bench"]
    generation = generate(Speculator(models[0]), tokenizer, "2 plus 3 makes\n\n", 7)
    assert first.tokens[first.given :] == generation.token_ids
    (told,) = compare(models[1], models[0], [first])
    ids = torch.tensor(first.tokens)
    with torch.inference_mode():
        q, p = (
            model.logits(model.prefill(ids, model.new_cache(99)))[first.given - 1 :].softmax(-1)
            for model in models[::-1]
        )
    assert told["divergence"] == pytest.approx(float((p * (p / q).log()).sum()))
    assert told["reference_loss"] == pytest.approx(-float(p[range(7), first.tokens[first.given :]].log().sum()))
    assert told["agreed"] == int((p.argmax(-1) == q.argmax(-1)).sum())


def test_documents_longer_than_the_context_are_refused(small_models, model, tmp_path, in_process):
    sentence = rf"a document of \d+ tokens does not fit the model's context of {model.context_length}: give --longest "
    parameters = Parameters(model=small_models / "target", schemes=("fp16",), longest=model.context_length + 1)
    with pytest.raises(SpecquantError, match=sentence):
        record(MEASURE, parameters, tmp_path)
    with pytest.raises(SpecquantError, match=sentence):
        quality(model, "small", "random", {"prose": [[1] * (model.context_length + 1)]})


def test_a_scheme_whose_logits_are_no_numbers_is_left_out(small_models, tmp_path, in_process, monkeypatch, capsys):
    """In half precision some activations overflow. NaN is nobody's likeliest token."""
    loaded = Parameters.loaded

    def overflowing(self: Parameters, scheme: str) -> object:
        model = loaded(self, scheme)
        if scheme == "w8a8":
            model.rotary.cosines[4:] = torch.nan
        return model

    monkeypatch.setattr(Parameters, "loaded", overflowing)
    options = {"model": small_models / "target", "name": "small", "tokens_per_domain": 20, "longest": 10}
    parameters = Parameters(**options, keep_targets_in=tmp_path / "targets", schemes=("fp16", "w8a8"))
    assert set(read_results(record(MEASURE, parameters, tmp_path)).scheme) == {"fp16"}
    assert "small in w8a8 is left out: the model's logits are no numbers" in capsys.readouterr().err
    with pytest.raises(SpecquantError, match="logits are no numbers"):
        predict(overflowing(parameters, "w8a8"), [list(range(10))])


def test_a_table_is_gone_on_with_by_the_same_texts_alone(small_models, tmp_path, in_process):
    """A scheme without the rows of a text would else stand beside one with them."""
    (tmp_path / "sums.txt").write_text("17 plus 5 makes 22, and 17 times 5 makes 85.\n")
    options = {"model": small_models / "target", "name": "small", "tokens_per_domain": 20, "longest": 10}
    options |= {"keep_targets_in": tmp_path / "targets", "schemes": ("fp16",)}
    record(MEASURE, Parameters(**options, text=tmp_path / "sums.txt"), tmp_path)
    with pytest.raises(SpecquantError, match=r"quality\.csv holds rows measured with text sums\.txt, not None"):
        record(MEASURE, Parameters(**options | {"schemes": ("fp16", "w8a8")}), tmp_path)


def test_a_text_of_ones_own_does_not_take_a_domains_place(small_models, tmp_path):
    (tmp_path / "prose.txt").write_text("a text\n")
    with pytest.raises(SpecquantError, match=r"prose\.txt is called as the domain prose is: give it another name"):
        Parameters(model=small_models / "target", text=tmp_path / "prose.txt").check()
    with pytest.raises(SpecquantError, match=r"there is no text file .*none\.txt"):
        Parameters(model=small_models / "target", text=tmp_path / "none.txt").check()
