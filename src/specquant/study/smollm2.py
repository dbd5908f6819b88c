"""The numbers that sentences say of SmolLM2: its quality, its answers, and what is accepted of its drafters.

"least" and "most", and "%", as in `recorded_numbers`.
"""

import pandas as pd

from specquant.measure.quality import ANSWERS, DOMAINS, WIKITEXT2
from specquant.tables.intervals import ends, interval
from specquant.tables.results import read_results

IN_STUDY = "SmolLM2-135M-Instruct (fp16 of Q4_1)"  # the model, as 04_quality calls it


def _read(table: str, model: str = "smollm2") -> pd.DataFrame:
    """The rows of a recorded table that are of SmolLM2."""
    return read_results(f"data/recorded/{table}.csv").query("model == @model")


def _of_answers() -> dict[str, float]:
    """Of SmolLM2's answers to HumanEval and GSM8K, in fp16, one by one."""
    known: dict[str, float] = {}
    for name, task in (("humaneval", "HumanEval"), ("gsm8k", "GSM8K")):
        rows = _read(f"h200/smollm2/{name}").set_index(["scheme", "method", "task"])
        row = rows.loc["fp16", "autoregressive", task]
        known |= {f"{name} questions": row.questions, f"{name} correct %": row.correct_percent}
        known |= {f"{name} correct, {end} %": row[f"correct_percent_{end}"] for end in ("low", "high")}
    return known


def _of_quality() -> dict[str, float]:
    """Of SmolLM2: "smollm2 perplexity more w8a8 %" on WikiText-2, above FP16's; "smollm2 other tokens w8a8 %": where
    the likeliest is another. "smollm2 other tokens on answers w8a8, least %": of eight tasks."""
    rows = _read("h200/smollm2/quality")
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
    known: dict[str, float] = {}
    for name, table in (("gptq", "quality"), ("rounded", "rounded/quality")):
        rows = _read(f"cpu/smollm2/04_quality/{table}", IN_STUDY).query("scheme == 'w4a16-g128'")
        rows = rows[rows.domain.isin(DOMAINS)]
        known[f"smollm2 perplexity more {name} %"] = rows.increase_percent.mean()
        known[f"smollm2 agreement {name} %"] = rows.agreement_percent.mean()
        known["smollm2 tokens of both"] = rows.tokens.sum()
    return known


def _of_head_features() -> dict[str, float]:
    """Of SmolLM2's head, with the target in W4A16: "smollm2 learnt on w4a16-g128", the accepted length over that of the
    one that learnt on FP16's features, and its interval; "none" did not learn on."""
    rows = _read("h200/smollm2/head_features").query("scheme == 'w4a16-g128'")
    known: dict[str, float] = {"smollm2 prompts of heads that learnt on": rows.prompts.max()}
    for _, row in rows.iterrows():
        names = interval(f"smollm2 learnt on {row.features}")
        known |= dict(zip(names, row[[*interval("ratio")]], strict=True))
    return known


def _of_lengths() -> dict[str, float]:
    """Of SmolLM2's tasks, each method's largest tree: "smollm2 vanilla kept w4a16-g128, least", the accepted length
    over that in FP16, greedily; "smollm2 eagle2 sampled over greedy, most", at temperature 1 over that, in FP16;
    "smollm2 eagle2 over vanilla sampled, most"."""
    rows = _read("h200/smollm2/acceptance")
    largest = rows[rows.draft_size == rows.groupby("method").draft_size.transform("max")]
    keys = ["method", "benchmark", "task", "scheme", "temperature"]
    lengths = largest.set_index(keys).accepted_length.unstack(keys[3:])
    sampled, greedy = lengths["fp16", 1.0], lengths["fp16", 0.0]
    known = ends("smollm2 eagle2 over vanilla sampled", sampled["eagle2"] / sampled["vanilla"])
    kept = {f"kept {scheme}": lengths[scheme, 0.0] for scheme in lengths.columns.unique("scheme").drop("fp16")}
    for name, others in (kept | {"sampled over greedy": sampled}).items():
        for method, of_method in (others / greedy).dropna().groupby("method"):
            known |= ends(f"smollm2 {method} {name}", of_method)
    return known


# What computes them, and the recorded tables that they follow from.
SOURCES = (
    (_of_answers, ("h200/smollm2/humaneval", "h200/smollm2/gsm8k")),
    (_of_quality, ("h200/smollm2/quality",)),
    (_of_rounding, ("cpu/smollm2/04_quality/quality", "cpu/smollm2/04_quality/rounded/quality")),
    (_of_head_features, ("h200/smollm2/head_features",)),
    (_of_lengths, ("h200/smollm2/acceptance",)),
)
