"""The numbers that sentences say of SmolLM2: its quality, its answers, and what is accepted of its drafters."""

from specquant.measure.quality import ANSWERS, WIKITEXT2
from specquant.study.recorded_numbers import RECORDED, ends
from specquant.tables.intervals import interval
from specquant.tables.results import read_results

TABLES = (
    *(f"h200/smollm2/{name}" for name in ("humaneval", "gsm8k", "quality", "head_features", "acceptance")),
    *(f"cpu/smollm2/04_quality/{name}" for name in ("quality", "rounded/quality")),
)


def numbers() -> dict[str, float]:
    """All of them. "least" and "most", and "%", as in `recorded_numbers`."""
    return _of_answers() | _of_quality() | _of_rounding() | _of_head_features() | _of_lengths()


def _of_answers() -> dict[str, float]:
    """Of SmolLM2's answers to HumanEval and GSM8K, in fp16."""
    known: dict[str, float] = {}
    for name in ("humaneval", "gsm8k"):
        row = read_results(f"{RECORDED}/h200/smollm2/{name}.csv").iloc[0]
        known |= {f"{name} questions": row.questions, f"{name} correct %": row.correct_percent}
        known |= {f"{name} correct, {end} %": row[f"correct_percent_{end}"] for end in ("low", "high")}
    return known


def _of_quality() -> dict[str, float]:
    """Of SmolLM2: "smollm2 perplexity more w8a8 %" on WikiText-2, above FP16's; "smollm2 other tokens w8a8 %": where
    the likeliest is another. "smollm2 other tokens on answers w8a8, least %": of eight tasks."""
    rows = read_results(f"{RECORDED}/h200/smollm2/quality.csv")
    rows = rows.assign(other=100 - rows.agreement_percent)
    text = rows[rows.domain == WIKITEXT2].set_index("scheme")
    in_4_bits = text[text.index.str.startswith("w4")]
    known = {"smollm2 tokens of WikiText-2": text.tokens["fp16"], "smollm2 perplexity fp16": text.perplexity["fp16"]}
    for name, column in (("perplexity more", "increase_percent"), ("other tokens", "other")):
        known |= {f"smollm2 {name} {scheme} %": value for scheme, value in text[column].items()}
        known |= ends(f"smollm2 {name} 4 bits", in_4_bits[column], " %")
    for scheme, others in rows[rows.domain.str.startswith(ANSWERS)].groupby("scheme").other:
        known |= ends(f"smollm2 other tokens on answers {scheme}", others, " %")
    return known


def _of_rounding() -> dict[str, float]:
    """Of SmolLM2 in W4A16-g128: the means over domains, of GPTQ and of rounding."""
    folder, known = f"{RECORDED}/cpu/smollm2/04_quality", {}
    for name, table in (("gptq", "quality"), ("rounded", "rounded/quality")):
        rows = read_results(f"{folder}/{table}.csv").query("scheme == 'w4a16-g128'")
        known[f"smollm2 perplexity more {name} %"] = rows.increase_percent.mean()
        known[f"smollm2 agreement {name} %"] = rows.agreement_percent.mean()
        known["smollm2 tokens of both"] = rows.tokens.sum()
    return known


def _of_head_features() -> dict[str, float]:
    """Of SmolLM2's head: "smollm2 learnt on w4a16-g128", the accepted length over that of the one that learnt on
    FP16's features, and its interval; "none" did not learn on."""
    rows = read_results(f"{RECORDED}/h200/smollm2/head_features.csv")
    known: dict[str, float] = {"smollm2 prompts of heads that learnt on": rows.prompts.max()}
    for _, row in rows.iterrows():
        known |= {f"smollm2 learnt on {row.features}{name[5:]}": row[name] for name in interval("ratio")}
    return known


def _of_lengths() -> dict[str, float]:
    """Of SmolLM2's tasks, each method's largest tree: "smollm2 vanilla kept w4a16-g128, least", the accepted length
    over that in FP16, greedily; "smollm2 eagle2 sampled over greedy, most", at temperature 1 over that, in FP16;
    "smollm2 eagle2 over vanilla sampled, most"."""
    rows = read_results(f"{RECORDED}/h200/smollm2/acceptance.csv").sort_values("draft_size")
    lengths = rows.groupby(["method", "task", "scheme", "temperature"]).accepted_length.last().unstack([2, 3])
    sampled = lengths["fp16", 1.0]
    known = ends("smollm2 eagle2 over vanilla sampled", sampled["eagle2"] / sampled["vanilla"])
    for scheme, temperature in lengths.columns.drop(("fp16", 0.0)):
        name = "sampled over greedy" if temperature else f"kept {scheme}"
        ratios = (lengths[scheme, temperature] / lengths["fp16", 0.0]).dropna()
        for method, of_method in ratios.groupby("method"):
            known |= ends(f"smollm2 {method} {name}", of_method)
    return known
