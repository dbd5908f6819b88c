"""Every kind of table that planning, figures and recording rely on. Units stand in the names; lengths are in tokens."""

import pandas as pd
import pandera.pandas as pa

from specquant.tables.intervals import interval
from specquant.tables.table import Table, anything, count, number, positive, share, text

_WEIGHTS = {"weights": text("trained", "synthetic")}
_TARGET = {"model": text(), "scheme": text(), **_WEIGHTS}
_OF_TARGET = tuple(_TARGET)
_PLAN = {"method": text(), "draft_size": count(0), "iterations": count(0), "min_draft_length": count(0)}
_HEAD = {"head_scheme": text(), "head_vocabulary": count(0)}  # 0 was "all tokens" before 0.2
_SPREAD = {"time_ms": positive(), "p10_ms": positive(), "p90_ms": positive(), "repeats": count()}
_CARD = {"clock_mhz": positive(required=False), "power_w": positive(required=False)}
_LAUNCH = {"launch_us": positive(required=False)}  # the host's; older tables lack it
_FLOOR = {"bytes": positive(required=False), "floor_ms": positive(required=False)}
# In tables of before there were processes and blocks they are missing: each row is then the only one of its quantity.
_PROCESS = {"process": count(0, required=False)}
_BLOCK = {**_PROCESS, "block": count(0, required=False), "place": count(0, required=False)}
_SPREAD_US = {"time_us": positive(), "p10_us": positive(required=False), "p90_us": positive(required=False)}
_SPREAD_US |= {"repeats": count(required=False)}
_MEANS = {"inner_rounds": number(required=False), "inner_accepted_length": positive(required=False)}
_DECODED = {"prompts": count(), "new_tokens": count(0), "differing_prompts": count(0)}
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
            **_LAUNCH,
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
            "chances": text("fitted", "planned", "swept", "traced"),
            "process": count(0),
            **_PLAN,
            "head_chance": share(required=False),
            "agreement": share(required=False),
            "acceptance": text("replayed", "traced"),
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
    command="specquant bench replay",
)
ADAPTIVE = Table(
    "adaptive",
    pa.DataFrameSchema(
        {
            **_TARGET,
            **_HEAD,
            "process": count(0),
            "choice": text(),
            "draft_size": count(0),  # 0: adaptive
            "iterations": count(0),
            "acceptance": text("traced"),
            "new_tokens": count(),
            "steps": count(),
            "mean_draft_size": positive(),
            "accepted_length": positive(),
            **_STEP,
            "decode_ms": positive(),
            "tokens_per_s": positive(),
            "predicted_tokens_per_s": positive(),
        }
    ),
    unit=(*_OF_TARGET, *_HEAD, "process"),
    row=("choice", "draft_size", "iterations"),
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
            **_LAUNCH,
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
_ANSWERED = {**_TARGET, "benchmark": text(), "task": text(), "temperature": number(), **_PLAN}
_OF_ANSWERED = (*_OF_TARGET, "benchmark", "task", "temperature", "method")
_OF_PLAN = ("draft_size", "iterations", "min_draft_length")
ACCEPTANCE = Table(
    "acceptance",
    pa.DataFrameSchema(
        {
            **_ANSWERED,
            "acceptance": text("measured"),
            "questions": count(),
            "new_tokens": count(),
            "cut_tokens": count(0),
            "steps": count(),
            **{name: positive() for name in interval("accepted_length")},
            "mean_draft_size": positive(),
            **_MEANS,
            "judged_tokens": count(0),
            **{name: share(required=False) for name in interval("acceptance_rate")},
        }
    ),
    unit=_OF_ANSWERED,
    row=_OF_PLAN,
)
TRACES = Table(
    "traces",
    pa.DataFrameSchema({**_ANSWERED, "id": text(), "steps": text()}),
    unit=_OF_ANSWERED,
    row=(*_OF_PLAN, "id"),
    command="specquant bench acceptance",
)
THROUGHPUT = {
    **_TARGET,
    "method": text(),
    "task": text(),
    "acceptance": text(),
    "accepted_length": positive(),
    **_MEANS,
}
THROUGHPUT |= {"mean_draft_size": positive(required=False), **_STEP, "tokens_per_s": positive()}
THROUGHPUT |= {"prompts": count(required=False), "speedup": positive(required=False)}
LOSSLESSNESS = {"scheme": text(), "method": text(), **_WEIGHTS, **_DECODED, "largest_margin": number(required=False)}
HEADS = {"scheme": text(), **_WEIGHTS, **_HEAD, "method": text(), **_DECODED, "accepted_length": positive()}
HEADS |= {"head_accepted_length": positive(), "ratio": positive()}
HEAD_FEATURES = {**_TARGET, "features": text(), **_DECODED}
HEAD_FEATURES |= {name: positive() for name in (*interval("accepted_length"), *interval("ratio"))}
TREES = {**_TARGET, "draft_size": count(), "iterations": count(), "accepted_length": positive(), "parents": text()}
CONFIDENCES = {**_TARGET, "iterations": count(), "task": text(), "id": text(), "step": count(0)}
CONFIDENCES |= dict.fromkeys(("confidence", "parents", "accepted_nodes"), text())
PLANS = {**_TARGET, "task": text(), "acceptance": text(), "accepted_length": positive(), **_MEANS}
PLANS |= {"mean_draft_size": positive(required=False), **_STEP, "tokens_per_s": positive()}
PLANS |= {"prompts": count(required=False), **_PLAN, "predicted_tokens_per_s": positive(required=False)}
QUALITY = {**_TARGET, "domain": text(), "tokens": count(required=False), "perplexity": positive()}
QUALITY |= {"increase_percent": anything(), "agreement_percent": number(required=False)}
QUALITY |= {"increase_percent_low": anything(), "increase_percent_high": anything(), "documents": count(required=False)}
QUALITY |= {f"agreement_percent_{end}": number(required=False) for end in ("low", "high")}
QUALITY |= {name: anything() for name in interval("divergence")}
KERNELS = {"model": text(required=False), "layer": text(), "scheme": text(), "implementation": text(), **_WEIGHTS}
KERNELS |= {**_BLOCK, "draft_size": count(), "in_features": count(), "out_features": count(), **_SPREAD_US, **_CARD}
PEERS = dict(KERNELS)
KERNELS |= {"bytes": positive(required=False), "operations": positive(required=False)}
PEER_DECODING = {**_TARGET, "implementation": text(), "method": text(), **_PROCESS, "prompts": count()}
PEER_DECODING |= {"context_length": count(), "new_tokens": count(), "passes": count(), "accepted_length": positive()}
PEER_DECODING |= {"decode_ms": positive(), "tokens_per_s": positive(), **_CARD}
ATTENTION = {"operation": text(), "implementation": text(), **_WEIGHTS, **_BLOCK, "draft_size": count()}
ATTENTION |= {"context_length": count(0), **_SPREAD_US, **_CARD, "bytes": positive(), "operations": number()}
CEILINGS = {"what": text(), "unit": text(), **_WEIGHTS, **_PROCESS, "value": positive()}
PASS_PROFILES = {**_TARGET, "draft_size": count(), "context_length": count(), "kernel": text(), "launches": count(0)}
PASS_PROFILES |= {"time_us": number(), "alone_us": number(), "span_us": positive()}
CALIBRATION = {**_TARGET, **_HEAD, **_PLAN, "level": text()}
CALIBRATION |= {"drafts": count(0), "accepted": count(0), "rows": count(), **_STEP}
CALIBRATION |= dict.fromkeys(("confidence", "parents", "accepted_nodes"), pa.Column(nullable=True, required=False))
SPEEDUPS = dict.fromkeys(("source", "where", "model", "gpu", "scheme", "method"), text()) | {"value": positive()}
SPECMQUANT = {**_TARGET, "gpu": text()}
THEIR_PASSES = SPECMQUANT | {"draft_size": count(), "context_length": count(), "time_ms": positive()}
THEIR_STEPS = SPECMQUANT | {"method": text(), "what": text()}
THEIR_STEPS |= {"draft_size": count(), "iterations": count(0), "time_ms": positive()}
OUR_TURNS = SPECMQUANT | {"draft_size": count(), "context_length": count()}
OUR_TURNS |= {"block_ms": positive(), "turns_ms": positive()}
CLAIMS = dict.fromkeys(("source", "where", "model", "card", "scheme", "quantity", "relation"), text())
_SHOWN_IN = pa.Check.str_matches(r"^(README|\d\d)( \d\d)*$", error="give README and numbers of notebooks")
CLAIMS |= {"shown_in": pa.Column(None, _SHOWN_IN, nullable=True), "value": positive()}
ASSUMPTIONS = {"name": text(), "source": text(), "value": positive(), "low": positive(), "high": positive()}

TABLES = {
    table.name: table
    for table in (
        VERIFY_COST,
        SETTLING,
        REPLAYED,
        ADAPTIVE,
        PLANTED,
        DRAFTING,
        ROUNDS,
        ACCEPTANCE,
        TRACES,
        Table(
            "throughput",
            pa.DataFrameSchema(THROUGHPUT),
            _OF_TARGET,
            ("method", "task"),
            renamed={"draft_size": "mean_draft_size"},
        ),
        Table(
            "losslessness",
            pa.DataFrameSchema(LOSSLESSNESS),
            ("scheme", "weights"),
            ("method",),
            command="specquant bench throughput",
        ),
        Table("heads", pa.DataFrameSchema(HEADS), ("scheme", "weights"), (*_HEAD, "method")),
        Table("head_features", pa.DataFrameSchema(HEAD_FEATURES), _OF_TARGET, ("features",)),
        Table("trees", pa.DataFrameSchema(TREES), (*_OF_TARGET, "draft_size", "iterations")),
        Table("confidences", pa.DataFrameSchema(CONFIDENCES), (*_OF_TARGET, "iterations"), ("task", "id", "step")),
        Table("plans", pa.DataFrameSchema(PLANS), _OF_TARGET, ("task", *_PLAN)),
        Table("quality", pa.DataFrameSchema(QUALITY), _OF_TARGET, ("domain",)),
        Table(
            "kernels",
            pa.DataFrameSchema(KERNELS),
            unit=("model", "layer", "scheme", "implementation", "weights", "process"),
            row=("in_features", "out_features", "draft_size", "block"),
        ),
        Table(
            "peers",
            pa.DataFrameSchema(PEERS),
            unit=("model", "layer", "scheme", "implementation", "weights", "process"),
            row=("in_features", "out_features", "draft_size", "block"),
        ),
        Table(
            "peer_decoding",
            pa.DataFrameSchema(PEER_DECODING),
            unit=(*_OF_TARGET, "implementation", "method", "process"),
            row=("context_length",),
        ),
        Table(
            "attention",
            pa.DataFrameSchema(ATTENTION),
            unit=("weights", "context_length", "process"),
            row=("operation", "implementation", "draft_size", "block"),
        ),
        Table(
            "ceilings",
            pa.DataFrameSchema(CEILINGS),
            unit=("weights", "process"),
            row=("what",),
            needs=("what", ("read-only stream", "fp16 product (cuBLAS)", "int8 product (cuBLASLt)")),
        ),
        Table(
            "pass_profiles",
            pa.DataFrameSchema(PASS_PROFILES),
            (*_OF_TARGET, "draft_size", "context_length"),
            ("kernel",),
            command="specquant bench profile",
        ),
        Table("calibration", pa.DataFrameSchema(CALIBRATION), command="specquant calibrate", remedy="calibrate again"),
        Table(
            "speedups",
            pa.DataFrameSchema(SPEEDUPS | {"benchmark": text(), "quantity": text()}),
            row=("source", "where", "model", "gpu", "benchmark", "scheme", "method", "quantity"),
            command="",
        ),
        Table("accepted_lengths", pa.DataFrameSchema(SPEEDUPS), row=("source", "where", "model", "method"), command=""),
        Table(
            "specmquant_verify_cost",
            pa.DataFrameSchema(THEIR_PASSES),
            row=("gpu", "model", "scheme", "weights", "draft_size", "context_length"),
            command="",
        ),
        Table(
            "specmquant_steps",
            pa.DataFrameSchema(THEIR_STEPS),
            row=("gpu", "model", "scheme", "weights", "method", "what", "draft_size", "iterations"),
            command="",
        ),
        Table(
            "specquant_blocks_and_turns",
            pa.DataFrameSchema(OUR_TURNS),
            row=("model", "scheme", "draft_size"),
            command="",
        ),
        Table(
            "claims",
            pa.DataFrameSchema(CLAIMS),
            row=("source", "where", "model", "card", "scheme", "quantity"),
            command="",
            remedy="correct it, or take it from the repository",
        ),
        Table(
            "assumptions",
            pa.DataFrameSchema(ASSUMPTIONS),
            row=("name",),
            command="",
            needs=("name", ("eagle2_length_70b", "eagle2_length_8b", "hierarchical_length")),
        ),
    )
}


def medians(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """`Table.one_row_each` of the table of this name, where its rows are of processes; others as they are."""
    return TABLES[name].one_row_each(rows) if name in TABLES and "process" in rows else rows
