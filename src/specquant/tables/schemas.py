"""Every kind of table that planning, figures and recording rely on. Units stand in the names; lengths are in tokens."""

import pandas as pd
import pandera.pandas as pa

from specquant.tables.table import Table, count, number, positive, share, text

_WEIGHTS = {"weights": text("trained", "synthetic")}
_TARGET = {"model": text(), "scheme": text(), **_WEIGHTS}
_PLAN = {"method": text(), "draft_size": count(0), "iterations": count(0), "min_draft_length": count(0)}
_HEAD = {"head_scheme": text(), "head_vocabulary": count(0)}
_SPREAD = {"time_ms": positive(), "p10_ms": positive(), "p90_ms": positive(), "repeats": count()}
_CARD = {"clock_mhz": positive(required=False), "power_w": positive(required=False)}
_FLOOR = {"bytes": positive(required=False), "floor_ms": positive(required=False)}
_STEP = {"draft_ms": number(), "verify_ms": positive(), "other_ms": number()}

VERIFY_COST = Table(
    "verify_cost",
    pa.DataFrameSchema(
        {
            **_TARGET,
            "context_length": count(),
            "process": count(0),
            "protocol": text("blocks", "turns"),
            "block": count(0),
            "place": count(0),
            "draft_size": count(),
            **_SPREAD,
            **_CARD,
            **_FLOOR,
        }
    ),
    unit=("model", "scheme", "weights", "context_length", "process", "protocol"),
    row=("draft_size", "block"),
)
SETTLING = Table(
    "settling",
    pa.DataFrameSchema(
        {
            **_TARGET,
            "process": count(0),
            "what": text("pass", "draft", "verify"),
            "behind": count(0),
            "idle_ms": number(),
            "position": count(0),
            "time_ms": positive(),
            **_CARD,
        }
    ),
    unit=("model", "scheme", "weights", "process"),
    row=("what", "behind", "idle_ms", "position"),
)
REPLAYED = Table(
    "replayed",
    pa.DataFrameSchema(
        {
            **_TARGET,
            **_HEAD,
            "intermediate": text(),
            "intermediate_scheme": text(),
            "chances": text("fitted", "swept"),
            "process": count(0),
            **_PLAN,
            "head_chance": share(),
            "agreement": share(),
            "acceptance": text("replayed"),
            "context_length": count(),
            "new_tokens": count(),
            "steps": count(),
            "mean_draft_size": positive(),
            "accepted_length": positive(),
            "inner_rounds": number(),
            "inner_accepted_length": positive(required=False),
            "prefill_ms": positive(),
            **_STEP,
            "decode_ms": positive(),
            "tokens_per_s": positive(),
            "whole_drafts": share(),
        }
    ),
    unit=("model", "scheme", "weights", *_HEAD, "intermediate", "intermediate_scheme", "chances", "process"),
    row=(*_PLAN, "head_chance", "agreement"),
)
PLANTED = Table(
    "planted",
    pa.DataFrameSchema(
        {
            **_TARGET,
            "codes": text("uniform", "trained"),
            **_HEAD,
            "intermediate": text(),
            "intermediate_scheme": text(),
            "tokens": count(),
            "row_invariant": text("no", "yes"),
            "process": count(0),
            **_PLAN,
            "acceptance": text("planted"),
            "error_rate": share(),
            "inner_error_rate": share(),
            "context_length": count(),
            "new_tokens": count(),
            "steps": count(),
            "mean_draft_size": positive(),
            "accepted_length": positive(),
            "judged_tokens": count(0),
            "accepted_share": share(required=False),
            "inner_judged_tokens": count(0),
            "inner_accepted_share": share(required=False),
            "inner_rounds": number(),
            "inner_accepted_length": positive(required=False),
            "prefill_ms": positive(),
            **_STEP,
            "decode_ms": positive(),
            "tokens_per_s": positive(),
            **_CARD,
            "texts": count(),
            "compared_tokens": count(),
            "differing_texts": count(0),
            "first_differences": text(),
            "margins": text(),
            "distinct_tokens": count(),
            "median_margin": number(),
        }
    ),
    unit=(*_TARGET, "codes", *_HEAD, "intermediate", "intermediate_scheme", "tokens", "row_invariant", "process"),
    row=tuple(_PLAN),
)
DRAFTING = Table(
    "drafting",
    pa.DataFrameSchema(
        {
            "model": text(),
            **_WEIGHTS,
            "context_length": count(),
            "process": count(0),
            "head_scheme": text(),
            "head_vocabulary": count(),
            "draft_size": count(),
            "iterations": count(),
            "confirmed_rows": count(),
            "block": count(0),
            "place": count(0),
            **_SPREAD,
            **_CARD,
            **_FLOOR,
        }
    ),
    unit=("model", "weights", "context_length", "process"),
    row=(*_HEAD, "draft_size", "iterations", "block"),
)
ROUNDS = Table(
    "rounds",
    pa.DataFrameSchema(
        {
            **_TARGET,
            "context_length": count(),
            "process": count(0),
            "head_scheme": text(),
            "head_vocabulary": count(),
            "acceptance": text("replayed"),
            "draft_size": count(),
            "iterations": count(),
            "accepted_length": positive(),
            "draft_ms": positive(),
            "verify_ms": positive(),
            "other_ms": number(),
            **_SPREAD,
        }
    ),
    unit=("model", "scheme", "weights", "context_length", "process"),
    row=(*_HEAD,),
)
THROUGHPUT = {"method": text(), "task": text(), "acceptance": text(), "accepted_length": positive()}
THROUGHPUT = {**_TARGET, **THROUGHPUT, **_STEP, "tokens_per_s": positive()}
LOSSLESSNESS = {"scheme": text(), "method": text(), **_WEIGHTS}
LOSSLESSNESS |= {"prompts": count(), "new_tokens": count(0), "differing_prompts": count(0)}
QUALITY = {**_TARGET, "domain": text(), "perplexity": positive()}
KERNELS = {"implementation": text(), "scheme": text(), "layer": text(), **_WEIGHTS}
KERNELS |= {"in_features": count(), "out_features": count(), "draft_size": count(), "time_us": positive()}
KERNELS |= {"bytes": positive(required=False), "operations": positive(required=False)}
CEILINGS = {"what": text(), "unit": text(), **_WEIGHTS, "value": positive()}
PASS_PROFILES = {**_TARGET, "kernel": text(), "draft_size": count(), "context_length": count(), "launches": count(0)}
PASS_PROFILES |= {"time_us": number(), "alone_us": number(), "span_us": positive()}
TREES = {**_TARGET, "parents": text(), "draft_size": count(), "iterations": count(), "accepted_length": positive()}
PLANS = {"scheme": text(), "task": text(), **_WEIGHTS, "acceptance": text(), **_PLAN, "accepted_length": positive()}
PLANS |= {"tokens_per_s": positive(), "predicted_tokens_per_s": positive(required=False)}
CALIBRATION = {**_TARGET, **_HEAD, **_PLAN, "level": text()}
CALIBRATION |= {"drafts": count(0), "accepted": count(0), "rows": count(), **_STEP}
SPEEDUPS = dict.fromkeys(("source", "where", "model", "gpu", "scheme", "method"), text()) | {"value": positive()}
SPECMQUANT = {**_TARGET, "gpu": text()}
THEIR_PASSES = SPECMQUANT | {"draft_size": count(), "context_length": count(), "time_ms": positive()}
THEIR_STEPS = SPECMQUANT | {"method": text(), "what": text()}
THEIR_STEPS |= {"draft_size": count(), "iterations": count(0), "time_ms": positive()}
ASSUMPTIONS = {"name": text(), "source": text(), "value": positive(), "low": positive(), "high": positive()}

TABLES = {
    table.name: table
    for table in (
        VERIFY_COST,
        SETTLING,
        REPLAYED,
        PLANTED,
        DRAFTING,
        ROUNDS,
        Table("throughput", pa.DataFrameSchema(THROUGHPUT)),
        Table("losslessness", pa.DataFrameSchema(LOSSLESSNESS)),
        Table("quality", pa.DataFrameSchema(QUALITY)),
        Table("kernels", pa.DataFrameSchema(KERNELS)),
        Table(
            "ceilings",
            pa.DataFrameSchema(CEILINGS),
            needs=("what", ("read-only stream", "fp16 product (cuBLAS)", "int8 product (cuBLASLt)")),
        ),
        Table("pass_profiles", pa.DataFrameSchema(PASS_PROFILES)),
        Table("trees", pa.DataFrameSchema(TREES)),
        Table("plans", pa.DataFrameSchema(PLANS)),
        Table("calibration", pa.DataFrameSchema(CALIBRATION)),
        Table("speedups", pa.DataFrameSchema(SPEEDUPS)),
        Table(
            "specmquant_verify_cost",
            pa.DataFrameSchema(THEIR_PASSES),
            row=("gpu", "model", "scheme", "weights", "draft_size", "context_length"),
        ),
        Table(
            "specmquant_steps",
            pa.DataFrameSchema(THEIR_STEPS),
            row=("gpu", "model", "scheme", "weights", "method", "what", "draft_size", "iterations"),
        ),
        Table(
            "assumptions",
            pa.DataFrameSchema(ASSUMPTIONS),
            row=("name",),
            needs=("name", ("eagle2_length_70b", "eagle2_length_8b", "hierarchical_length")),
        ),
    )
}


def medians(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """`Table.one_row_each` of the table of this name, where its rows are of processes; others as they are."""
    return TABLES[name].one_row_each(rows) if name in TABLES and "process" in rows else rows
