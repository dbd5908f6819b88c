"""What decoding prompts measures, on the trained models; and the tables' arithmetic, on rows made by hand."""

import json
import math

import pandas as pd
import pytest
import torch

from specquant.benchmarks.prompts import prompt_ids, read_prompts
from specquant.decoding import DraftTree, Generation, Step, generate
from specquant.decoding.drafters import PAPER_METHODS
from specquant.decoding.method import DraftSettings
from specquant.decoding.models import tiny_models
from specquant.errors import SpecquantError
from specquant.files import project_root
from specquant.measure.throughput import (
    by_task,
    decode_prompts,
    first_difference,
    kept_lengths,
    losslessness,
    margin,
    mean_by,
    measurements,
    side_by_side,
)
from specquant.models.loading import load_tokenizer

TINY = project_root() / "data/tiny"
NEW_TOKENS = 24


def step(draft_size, tokens, inner_accepted_lengths, times_ms):
    tree = DraftTree.sequence(torch.zeros(draft_size, dtype=torch.long))
    return Step(tokens, tree, [], inner_accepted_lengths, *times_ms)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TINY / "target")


@pytest.fixture(scope="module")
def models():
    """In float64: rounding never decides about a token."""
    return tiny_models("data/tiny", scheme="w8a8", dtype=torch.float64)


@pytest.fixture(scope="module")
def prompts():
    chosen = read_prompts("data/prompts/prompts.jsonl", per_task=1)
    return [prompt for prompt in chosen if prompt["task"] in ("mathematics", "code")]


@pytest.fixture(scope="module")
def rows(models, tokenizer, prompts):
    return decode_prompts(models, tokenizer, prompts, PAPER_METHODS, "tiny", max_new_tokens=NEW_TOKENS)


def test_one_row_for_each_prompt_and_method(rows, prompts):
    expected = [(prompt["id"], prompt["task"], method) for prompt in prompts for method in PAPER_METHODS]
    assert list(zip(rows.id, rows.task, rows.method, strict=True)) == expected
    for column, value in {"model": "tiny", "scheme": "w8a8", "weights": "trained", "acceptance": "measured"}.items():
        assert set(rows[column]) == {value}


def test_every_method_gives_the_same_tokens(rows):
    assert (rows.first_difference == -1).all()
    assert rows.margin.isna().all()
    assert (rows.groupby("id").new_tokens.nunique() == 1).all()


def test_drafts_are_accepted(rows):
    lengths = rows.groupby("method").accepted_length.mean()
    assert lengths["autoregressive"] == 1
    assert (lengths.drop("autoregressive") > 1.3).all()
    hierarchical, others = rows.method == "hierarchical", rows.method.isin(["autoregressive", "eagle2"])
    assert (rows[hierarchical].inner_accepted_length > 1).all()
    assert (rows[others].inner_rounds == 0).all()


def test_a_row_is_what_generate_measures(models, tokenizer, prompts, rows):
    for method in PAPER_METHODS:
        row = rows[(rows.method == method) & (rows.id == prompts[0]["id"])].iloc[0]
        generation = generate(models.speculator(method), tokenizer, prompts[0]["prompt"], NEW_TOKENS)
        lengths = generation.accepted_lengths
        assert row.new_tokens == len(generation.token_ids) == 1 + sum(lengths)
        assert row.steps == len(lengths)
        assert row.accepted_length == pytest.approx(sum(lengths) / len(lengths))
        assert row.mean_draft_size == pytest.approx(sum(len(step.tree) for step in generation.steps) / len(lengths))
        assert row.tokens_per_s == pytest.approx(1e3 * sum(lengths) / row.decode_ms)
        assert row.steps * (row.draft_ms + row.verify_ms + row.other_ms) == pytest.approx(row.decode_ms)


def test_settings_reach_the_drafters(models, tokenizer, prompts):
    table = decode_prompts(models, tokenizer, prompts[:1], ["eagle2"], "tiny", DraftSettings(draft_size=5), 12)
    assert 1 < table.mean_draft_size.item() <= 5


def test_a_method_that_gives_other_tokens_is_found_with_its_margin(models, tokenizer, prompts, monkeypatch):
    """A decoder that adds the begin token in every step, whatever the model says."""
    good, bad = models.speculator("autoregressive"), models.speculator("autoregressive")
    honest = generate(good, tokenizer, prompts[0]["prompt"], 6).token_ids
    monkeypatch.setattr(bad, "step", lambda limit: step(1, [0], [], (0.0, 1.0, 0.0)))
    monkeypatch.setattr(models, "speculator", lambda method, settings: {"good": good, "bad": bad}[method])
    table = decode_prompts(models, tokenizer, prompts[:1], ["good", "bad"], "tiny", max_new_tokens=6)
    assert list(table.first_difference) == [-1, 1]
    prompt = tokenizer(prompts[0]["prompt"])["input_ids"]
    assert table.margin[1] == margin(models.target, prompt + honest[:1]) > 0


def test_the_margin_is_between_the_two_likeliest_tokens(models, tokenizer):
    tokens = tokenizer("import os\nimport")["input_ids"]
    features = models.target.prefill(torch.tensor(tokens), models.target.new_cache(32))
    *_, second, first = models.target.logits(features[-1]).sort().values.tolist()
    assert margin(models.target, tokens) == pytest.approx(first - second)


@pytest.mark.parametrize(
    ("expected", "tokens", "position"),
    [([], [], -1), ([1, 2], [1, 2], -1), ([1, 2], [1, 3], 1), ([1, 2], [1], 1), ([1], [1, 2], 1), ([1], [2, 1], 0)],
)
def test_first_difference(expected, tokens, position):
    assert first_difference(expected, tokens) == position


def test_measurements_are_means_over_steps():
    steps = [step(6, [7, 7, 7], [2, 1], (1.0, 4.0, 1.0)), step(4, [7, 7, 7], [3], (3.0, 6.0, 1.0))]
    generation = Generation([0] * 6, "", "maximum new tokens", [3, 2], 9.0, steps)  # the last step was cut off by one
    assert measurements(generation) == {
        "new_tokens": 6,
        "steps": 2,
        "mean_draft_size": 5,
        "accepted_length": 2.5,
        "inner_rounds": 1.5,
        "inner_accepted_length": 2,
        "prefill_ms": 9,
        "draft_ms": 2,
        "verify_ms": 5,
        "other_ms": 1,
        "decode_ms": 16,
        "tokens_per_s": 1e3 * 5 / 16,
    }


def test_a_prompt_that_ends_at_its_first_token_has_no_steps_to_measure():
    row = measurements(Generation([1], "", "end token", [], 9.0, []))
    assert (row["new_tokens"], row["steps"], row["decode_ms"]) == (1, 0, 0)
    for column in ("accepted_length", "inner_rounds", "draft_ms", "tokens_per_s"):
        assert math.isnan(row[column])


def made_by_hand() -> pd.DataFrame:
    """Two prompts of code and one of prose, by two methods."""
    common = {"model": "tiny", "scheme": "fp16", "weights": "trained", "acceptance": "measured", "margin": math.nan}
    common |= {"inner_rounds": 0.0, "inner_accepted_length": math.nan, "first_difference": -1}
    columns = ("id", "task", "method", "new_tokens", "accepted_length", "decode_ms", "mean_draft_size", "draft_ms")
    rows = [
        ("code-1", "code", "autoregressive", 11, 1.0, 100.0, 1, 0.0),
        ("code-1", "code", "eagle2", 11, 2.0, 40.0, 60, 3.0),
        ("code-2", "code", "autoregressive", 31, 1.0, 300.0, 1, 0.0),
        ("code-2", "code", "eagle2", 31, 4.0, 60.0, 50, 5.0),
        ("prose-1", "prose", "autoregressive", 21, 1.0, 200.0, 1, 0.0),
        ("prose-1", "prose", "eagle2", 21, 3.0, 250.0, 60, 4.0),
    ]
    times = {"verify_ms": 2.0, "other_ms": 0.5}
    return pd.DataFrame([common | times | dict(zip(columns, row, strict=True)) for row in rows])


def test_the_throughput_tables_arithmetic():
    table = by_task(made_by_hand()).set_index(["task", "method"])
    methods = ("autoregressive", "eagle2")
    assert list(table.index) == [(task, method) for task in ("code", "prose") for method in methods]
    code, prose = table.loc[("code", "eagle2")], table.loc[("prose", "eagle2")]
    assert (code.prompts, prose.prompts) == (2, 1)
    assert (code.accepted_length, code.mean_draft_size, code.draft_ms, code.verify_ms) == (3, 55, 4, 2)
    # All 10 + 30 new tokens of the steps over all their 100 ms: longer answers weigh more.
    assert code.tokens_per_s == pytest.approx(1e3 * 40 / 100)
    assert table.loc[("code", "autoregressive")].tokens_per_s == pytest.approx(1e3 * 40 / 400)
    assert code.speedup == pytest.approx(4)
    assert prose.speedup == pytest.approx(200 / 250)
    assert list(table.xs("autoregressive", level="method").speedup) == [1, 1]


def test_each_scheme_is_compared_with_itself():
    fast = made_by_hand().assign(scheme="w4a16-g128", decode_ms=lambda rows: rows.decode_ms / 2)
    table = by_task(pd.concat([made_by_hand(), fast])).set_index(["scheme", "task", "method"])
    assert table.loc[("w4a16-g128", "code", "eagle2")].tokens_per_s == pytest.approx(800)
    assert table.loc[("w4a16-g128", "code", "eagle2")].speedup == pytest.approx(4)


def test_without_autoregressive_rows_there_is_no_speedup():
    rows = made_by_hand()
    assert by_task(rows[rows.method == "eagle2"]).speedup.isna().all()


def test_losslessness_counts_prompts_that_differ():
    rows = made_by_hand()
    rows.loc[[1, 5], "first_difference"] = [4, 0]
    rows.loc[[1, 5], "margin"] = [1e-7, 2e-6]
    table = losslessness(rows).set_index("method")
    assert table.loc["autoregressive", ["prompts", "new_tokens", "differing_prompts"]].tolist() == [3, 63, 0]
    assert table.loc["eagle2", ["prompts", "new_tokens", "differing_prompts"]].tolist() == [3, 63, 2]
    assert table.largest_margin["eagle2"] == 2e-6
    assert math.isnan(table.largest_margin["autoregressive"])


def test_prompts_are_read_in_their_order_and_limited_by_task(tmp_path):
    prompts = [{"id": f"{task}-{i}", "task": task, "prompt": "1 plus"} for i in range(3) for task in ("a", "b")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    assert read_prompts(tmp_path / "prompts.jsonl") == prompts
    assert [prompt["id"] for prompt in read_prompts(tmp_path / "prompts.jsonl", 2)] == ["a-0", "b-0", "a-1", "b-1"]


@pytest.mark.parametrize("line", ['{"id": "a", "task": "b"}', "{", "[]", '"text"', "3"])
def test_a_broken_prompt_is_named_with_its_line(tmp_path, line):
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"id": "a", "task": "b", "prompt": "c"}) + f"\n{line}\n")
    with pytest.raises(SpecquantError, match=r"prompts\.jsonl, line 2: not an object with id, task, prompt"):
        read_prompts(file)


def test_a_prompt_file_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / "prompts.jsonl").write_bytes('{"id": "1", "task": "a", "prompt": "caf\u00e9"}\n'.encode("latin-1"))
    with pytest.raises(SpecquantError, match=r"cannot read the prompts in .*prompts.jsonl"):
        read_prompts(tmp_path / "prompts.jsonl")


@pytest.mark.parametrize("template", [None, "{{ '<|begin|>' }}{{ messages[0]['content'] }}"])
def test_a_prompt_has_one_begin_token_and_is_text(tokenizer, template, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", template)
    text = "1 plus" if template else "<|begin|>1 plus"
    assert prompt_ids(text, tokenizer).count(tokenizer.bos_token_id) == 1
    with pytest.raises(SpecquantError, match="the prompt is not valid text"):
        prompt_ids("caf\ud83d", tokenizer)


def test_a_missing_prompt_file_is_named(tmp_path):
    with pytest.raises(SpecquantError, match=r"there is no prompt file .*nowhere\.jsonl"):
        read_prompts(tmp_path / "nowhere.jsonl")


def test_means_keep_the_order_of_the_table():
    table = pd.DataFrame({"method": ["vanilla", "eagle2", "vanilla"], "draft_size": [6, 60, 8]})
    assert mean_by(table, "method", "draft_size").to_dict() == {"vanilla": 7, "eagle2": 60}
    assert list(mean_by(table, "method", ["draft_size"]).index) == ["vanilla", "eagle2"]


def test_a_file_without_prompts_is_refused(tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(SpecquantError, match="holds no prompt"):
        read_prompts(tmp_path / "none.jsonl")


def test_prompts_are_a_users_message_where_there_is_a_chat_template():
    tokenizer = load_tokenizer(project_root() / "data/tiny/target")
    assert prompt_ids("1 plus 1", tokenizer) == tokenizer("1 plus 1")["input_ids"]
    tokenizer.chat_template = "<|begin|>{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}you:"
    assert tokenizer.decode(prompt_ids("1 plus 1", tokenizer)) == "<|begin|>user: 1 plus 1\nyou:"


@pytest.mark.parametrize("field", ["id", "task", "prompt"])
@pytest.mark.parametrize("value", ["3", "[]", '["a"]', "NaN", "null", "true", "{}", '""', '" "', '"\\ud800"'])
def test_a_field_of_a_prompt_that_is_no_text_is_named(tmp_path, field, value):
    fields = {"id": '"a"', "task": '"b"', "prompt": '"c"'} | {field: value}
    line = ", ".join(f'"{name}": {text}' for name, text in fields.items())
    (tmp_path / "prompts.jsonl").write_text(f"{{{line}}}\n")
    with pytest.raises(SpecquantError, match=rf"prompts\.jsonl, line 1: {field} is no text"):
        read_prompts(tmp_path / "prompts.jsonl")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"id": "a", "task": "b", "prompt": "c"}\n' * 2, "line 2: prompt a is there twice"),
        (b"[" * 100_000, "line 1: not an object"),
        (b'{"id": "\xff"}', r"cannot read .*prompts\.jsonl"),
        (b"\n \n", "holds no prompt"),
    ],
)
def test_prompts_that_cannot_be_told_apart_or_read_are_refused(tmp_path, content, says):
    (tmp_path / "prompts.jsonl").write_bytes(content)
    with pytest.raises(SpecquantError, match=says):
        read_prompts(tmp_path / "prompts.jsonl")


def test_a_prompt_may_hold_any_line_end_of_unicode(tmp_path):
    prompt = {"id": "a", "task": "b", "prompt": "one\u2028two\x85three"}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(prompt, ensure_ascii=False) + "\n")
    assert read_prompts(tmp_path / "prompts.jsonl") == [prompt]
    with pytest.raises(SpecquantError, match="0 prompts of each task were asked for"):
        read_prompts(tmp_path / "prompts.jsonl", 0)


def test_what_a_scheme_keeps_of_the_accepted_length():
    rows = [("fp16", "code", 4.0), ("fp16", "prose", 2.0), ("w8a8", "code", 3.0), ("w8a8", "prose", 2.2)]
    table = pd.DataFrame(rows, columns=["scheme", "task", "accepted_length"])
    kept = kept_lengths(table, ["fp16", "w8a8"])
    assert kept.loc["fp16"].tolist() == [3, 1, 1, 1]
    assert kept.loc["w8a8"].tolist() == pytest.approx([2.6, 2.6 / 3, 0.75, 1.1])


def test_methods_side_by_side_are_ratios_of_sums_with_intervals_over_prompts():
    about = {"scheme": "fp16", "new_tokens": 13, "mean_draft_size": 8.0, "draft_ms": 2.0}
    times = {("autoregressive", "1"): (12, 60.0), ("autoregressive", "2"): (12, 60.0)}
    times |= {("suffix", "1"): (4, 20.0), ("suffix", "2"): (12, 60.0)}
    rows = [about | {"method": m, "id": i, "steps": n, "decode_ms": ms} for (m, i), (n, ms) in times.items()]
    told = side_by_side(pd.DataFrame(rows)).loc["suffix"]
    assert told.accepted_length == 24 / 16
    assert told.speedup == 120 / 80
    assert (told.speedup_low, told.speedup_high) == (1, 3)
    assert (told.mean_draft_size, told.draft_ms) == (8, 2)
