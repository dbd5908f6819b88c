"""claims.csv: its facts are the published ones, its answers follow from the recorded tables, and readers show it."""

import re
from dataclasses import fields, replace

import pandas as pd
import pytest

from specquant.cli import main
from specquant.errors import SpecquantError
from specquant.files import project_root
from specquant.measure.replay import Parameters
from specquant.measure.throughput import kept_lengths
from specquant.planning.acceptance import Shapes
from specquant.planning.eagle2_speedups import ACCEPTED_LENGTHS
from specquant.study import claims, drafters, kernels_used, numbers, read_results, recorded_tables
from specquant.study.claims import MEASURED, NOT_REPRODUCED, NOT_TESTED, REPRODUCED, TIMES_ASSUMED, verdict
from specquant.tables.verify_cost import pass_growth


@pytest.fixture(scope="module")
def evidence():
    return claims.Evidence.read()


def of(table, model, scheme, quantity):
    rows = table[(table.model == model) & (table.scheme == scheme) & (table.quantity == quantity)]
    return rows[rows.card == "A100"].iloc[0]


def same(answered, written):
    numbers = answered.select_dtypes("number").columns
    pd.testing.assert_frame_equal(answered[numbers], written[numbers], rtol=1e-3, check_dtype=False)
    for name in answered.columns.difference(numbers):
        assert answered[name].fillna("").tolist() == written[name].fillna("").tolist(), name


def test_the_answers_are_those_of_the_recorded_tables(evidence):
    """Run `specquant claims` where they are not."""
    written = claims.read_claims()
    same(claims.answer(written, evidence), written)


def test_no_answer_depends_on_the_order_of_rows(evidence):
    shuffled = {
        field.name: getattr(evidence, field.name).sample(frac=1, random_state=seed)
        for seed, field in enumerate(fields(evidence))
        if isinstance(getattr(evidence, field.name), pd.DataFrame)
    }
    written = claims.read_claims()
    same(claims.answer(written, replace(evidence, **shuffled)), written)


def test_replays_with_other_heads_answer_no_claim(evidence):
    others = ({"head_scheme": "fp16"}, {"chances": "given"}, {"intermediate": ""}, {"intermediate_scheme": "fp16"})
    recorded = read_results("data/recorded/h200/replayed.csv")
    told = pd.concat([recorded, *(recorded.assign(**other) for other in others)])
    pd.testing.assert_frame_equal(told.query(claims.replays_with(claims.HEADS)), evidence.replayed)


def test_growth_is_that_of_the_passes(evidence):
    written = claims.read_claims()
    told = pass_growth(read_results("data/recorded/h200/verify_cost.csv")).xs("llama-3-8b", level="model")
    for scheme in ("fp16", "w8a8", "w4a16-g128"):
        row = of(written, "Llama-3-8B", scheme, "60 tokens over one")
        expected = told.xs((scheme, 60), level=("scheme", "draft_size")).iloc[0]
        assert [row.our_value, row.low, row.high] == pytest.approx(expected[["median", "low", "high"]], rel=1e-3)
        assert row.processes == expected.processes


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16-g128", "w4a8-qoq-g128"])
def test_accepted_lengths_are_of_other_models_so_the_paper_s_claim_is_not_tested(evidence, scheme):
    """Of SmolLM2 where it has the scheme, else of the tiny models; also where they are the same within a tenth."""
    row = of(claims.read_claims(), "Llama-3-8B", scheme, "accepted length, over FP16")
    of_smollm2 = scheme in set(evidence.smollm2.scheme)
    assert of_smollm2 == (scheme == "w4a16-g128")
    if of_smollm2:
        largest = evidence.smollm2.query("temperature == 0 and method == 'eagle2' and draft_size == 60")
        lengths = largest.pivot(index="task", columns="scheme", values="accepted_length")
        kept = (lengths[scheme] / lengths["fp16"]).agg(["min", "max"]).tolist()
        assert (row.tasks, row.our_model, row.our_card) == (8, "SmolLM2-135M", "H200")
    else:
        tiny = kept_lengths(evidence.accepted[evidence.accepted.method == "eagle2"], ["fp16", scheme]).loc[scheme]
        kept = tiny[["low", "high"]].tolist()
        assert (row.tasks, row.our_model, row.our_card) == (7, "tiny models", "CPU")
    assert [row.low, row.high] == pytest.approx(kept, rel=1e-3)
    assert row.low < row.our_value < row.high
    assert abs(row.our_value - 1) < claims.TOLERANCE
    assert pd.isna(row.processes)
    assert (row.basis, row.verdict) == (claims.ELSEWHERE, NOT_TESTED)
    assert ("of the tiny models" in row.note) == of_smollm2
    assert verdict("unchanged", 1, 1.05, 1.0, 1.1, MEASURED) == REPRODUCED
    assert verdict("unchanged", 1, 1.2, 1.0, 1.3, MEASURED) == NOT_REPRODUCED
    told = claims.shown(claims.read_claims().query("tasks > 0"), "01").iloc[0]
    assert told.iloc[1] == "hardly changed, 1, A100"
    assert told.iloc[2] == "not measured; 1.00 (0.95 to 1.02, 7 tasks) on tiny models, CPU"


@pytest.mark.parametrize("lacks", ["fp16", "w4a16-g128"])
def test_an_accepted_length_that_was_not_recorded_is_named(evidence, lacks):
    kept = evidence.smollm2[(evidence.smollm2.scheme != lacks) | (evidence.smollm2.temperature > 0)]
    sampled = evidence.smollm2[(evidence.smollm2.scheme == lacks) & (evidence.smollm2.method != "eagle2")]
    damaged = replace(evidence, smollm2=pd.concat([kept, sampled]))
    with pytest.raises(SpecquantError, match=f"accepted lengths of EAGLE-2 in {lacks} are not recorded"):
        claims.accepted_length(damaged, "llama-3-8b", "w4a16-g128")
    tiny = replace(evidence, accepted=evidence.accepted[evidence.accepted.scheme != "w8a8"])
    with pytest.raises(SpecquantError, match="accepted lengths of EAGLE-2 in w8a8 are not recorded"):
        claims.accepted_length(tiny, "llama-3-8b", "w8a8")


def test_a_ratio_of_two_schemes_is_taken_within_each_process(evidence):
    passes = evidence.passes
    slower = passes.process == 1
    drifted = replace(evidence, passes=passes.assign(time_ms=passes.time_ms.where(~slower, 2 * passes.time_ms)))
    for quantity in ("60 tokens over one, over the same in W8A8", "one by one, over W8A8"):
        before, after = (claims.QUANTITIES[quantity](each, "llama-3-70b", "w4a16-g128") for each in (evidence, drifted))
        pd.testing.assert_series_equal(before.values, after.values)


@pytest.mark.parametrize(
    ("relation", "value", "basis", "expected"),
    [
        ("about", 1.09, MEASURED, REPRODUCED),
        ("about", 1.11, MEASURED, NOT_REPRODUCED),
        ("about", 0.89, MEASURED, NOT_REPRODUCED),
        ("below", 1.21, MEASURED, REPRODUCED),
        ("below", 1.1, MEASURED, NOT_REPRODUCED),
        ("above", 0.79, MEASURED, REPRODUCED),
        ("above", 0.9, MEASURED, NOT_REPRODUCED),
        ("about", 1.0, TIMES_ASSUMED, NOT_TESTED),
        ("about", 1.0, claims.NONE, NOT_TESTED),
    ],
)
def test_the_verdict_s_rule(relation, value, basis, expected):
    assert verdict(relation, value, 1.0, 0.8, 1.2, basis) == expected


def test_what_rests_on_assumed_acceptance_is_never_reproduced():
    table = claims.read_claims()
    assumed = table.assumption.notna()
    assert set(table[assumed].verdict) == {NOT_TESTED}
    assert (table[assumed].over_assumption_low < table[assumed].our_value).all()
    assert (table[assumed].our_value < table[assumed].over_assumption_high).all()
    assert set(table[~assumed].basis) == {MEASURED, claims.NONE, claims.ELSEWHERE}
    assert set(table[table.basis == claims.ELSEWHERE].verdict) == {NOT_TESTED}


def test_the_figure_s_facts_are_the_published_ones():
    table = claims.read_claims()
    figure = table[table["where"].str.startswith("figure 1")]
    published = read_results("data/published/speedups.csv")
    published = published[published["where"].str.startswith("figure 1")]
    published = published[(published.method == "eagle2") | (published.value != 1)]
    keys = ["where", "model", "scheme", "method"]
    theirs = published.rename(columns={"gpu": "card"})[[*keys, "card", "value"]]
    told = [sorted(map(tuple, rows[[*keys, "card", "value"]].to_numpy())) for rows in (figure, theirs)]
    assert told[0] == told[1]


def test_assumptions_are_those_that_the_code_makes(evidence):
    known = evidence.assumptions.value
    defaults = Parameters("llama-3-70b", device="cpu")
    assert defaults.accepted_length == known.eagle2_length_70b
    assert defaults.hierarchical_length == known.hierarchical_length
    assert {name: length for name, (_, length) in ACCEPTED_LENGTHS.items()} == {
        "llama-3-8b": known.eagle2_length_8b,
        "llama-3-70b": known.eagle2_length_70b,
    }
    fitted = Shapes.of(evidence.trees).fitted_chances()
    assert fitted.inner_head[0] == known.inner_head_chance


@pytest.mark.parametrize(("page", "short"), [(claims.README, True), (claims.PAGE, False)])
def test_the_pages_show_the_table(page, short):
    text = (project_root() / page).read_text()
    if not short:
        assert all(f"`{name}.csv` `" in text for name in ("verify_cost", "drafting", "replayed"))
    table = claims.shown(claims.read_claims(), "README")
    assert claims.with_table(text, table, page, short) == text
    assert all(claim.partition(":")[0] in text for claim in table.claim)


def test_a_readme_without_markers_is_refused():
    with pytest.raises(SpecquantError, match="lacks the lines"):
        claims.with_table("# specquant\n", pd.DataFrame())


def test_an_unknown_quantity_is_refused(evidence):
    wrong = claims.read_claims().head(1).assign(quantity="speed")
    with pytest.raises(SpecquantError, match='no quantity is called "speed"'):
        claims.answer(wrong, evidence)


@pytest.mark.parametrize(
    ("table", "command"),
    [
        ("acceptance.csv", "specquant bench acceptance"),
        ("traces.csv", "specquant bench acceptance"),
        ("losslessness.csv", "specquant bench throughput"),
    ],
)
def test_a_table_of_smollm2_that_is_missing_is_named_and_nothing_is_written(tmp_path, monkeypatch, table, command):
    """Not answered by the CPU's table in its place, which has other questions."""
    missing = f"h200/smollm2/{table}"

    def without(path, *arguments, **options):
        return read_results(tmp_path / missing if str(path).endswith(missing) else path, *arguments, **options)

    for module in (claims, numbers):
        monkeypatch.setattr(module, "read_results", without)
    monkeypatch.setattr(claims, "write_file", lambda *_: pytest.fail("written"))
    with pytest.raises(SpecquantError, match=rf"no results at .*{missing}: measure them first \({command}"):
        claims.write_claims()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": "Llama-9"}, 'the model "Llama-9" is none of Llama-3-8B, Llama-3-70B'),
        ({"scheme": "w3"}, 'the scheme "w3" is none of fp16, w8a8, '),
    ],
)
def test_a_claim_about_what_is_unknown_is_refused(evidence, change, told):
    with pytest.raises(SpecquantError, match=rf"claims\.csv: {told}"):
        claims.answer(claims.read_claims().tail(1).assign(**change), evidence)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": ""}, "column model is empty"),
        ({"value": ""}, "nothing in column value where a number belongs"),
        ({"value": "many"}, '"many" in column value where a number belongs'),
        ({"shown_in": "READ ME"}, r'"READ ME" in column shown_in \(give README and numbers of notebooks\)'),
    ],
)
def test_a_damaged_claim_is_refused_with_its_line(tmp_path, change, told):
    claims.read_claims().astype(object).head(3).assign(**change).to_csv(tmp_path / "claims.csv", index=False)
    with pytest.raises(
        SpecquantError, match=rf"claims\.csv, line 2: {told}: correct it, or take it from the repository"
    ):
        claims.read_claims(tmp_path / "claims.csv")


@pytest.mark.parametrize(
    ("table", "column", "value"), [("drafting", "model", "llama-3-70b"), ("replayed", "method", "")]
)
def test_rows_that_an_answer_lacks_are_told_with_the_tables(evidence, table, column, value):
    rows = getattr(evidence, table)
    damaged = replace(evidence, **{table: rows[rows[column] != (value or "hierarchical")]})
    with pytest.raises(SpecquantError, match=rf"h200/{table}\.csv.* lacks rows of .* that are needed: measure them \("):
        claims.answer(claims.read_claims(), damaged)


def test_the_command_rewrites_answers(tmp_path, monkeypatch, capsys):
    table, readme, page = (tmp_path / name for name in ("claims.csv", "README.md", "findings.md"))
    claims.read_claims()[claims.FACTS].to_csv(table, index=False)
    for text in (readme, page):
        text.write_text("\n".join(claims.MARKERS))
    write = claims.write_claims
    monkeypatch.setattr(claims, "write_claims", lambda: write(table, readme, page))
    monkeypatch.setattr(numbers, "changed_pages", lambda known: {})  # the project's own stay as they are, stale or not
    for module, name in (
        (drafters, "write_drafters_card"),
        (kernels_used, "write_kernels_used"),
        (recorded_tables, "write_recorded_tables"),
    ):
        monkeypatch.setattr(module, name, lambda *_: [])
    assert main(["claims"]) == 0
    assert capsys.readouterr().out.split() == [str(table), str(readme), str(page)]
    same(claims.read_claims(table), claims.read_claims())
    assert "| 60 tokens over one: Llama-3-8B, W8A8 | under 1.2, A100 | " in page.read_text()
    number = r"1\.\d\d"
    ours = rf"{number} \({number} to {number}\)"
    row = rf"\| 60 tokens over one: Llama-3-8B, W8A8 \| under 1\.2 \| {ours} \| not reproduced \|\n"
    assert re.search(row, readme.read_text())
