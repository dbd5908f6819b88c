"""How much of what processes differ by in a pass is the host's, which takes longer in one to launch it than in another?

A pass is timed from an idle card on, as decoding meets it, so most of what the host takes to launch it is in its time.
`launch_us` of verify_cost.csv says how long that was; older tables lack it. `launching/verify_cost.csv` is a second
recording of 8B, in which all rows have it.
"""

import pandas as pd
from matplotlib.figure import Figure

from specquant.study.claims import RECORDED
from specquant.tables.intervals import PROCESS, apart_percent, ends, in_each_process, over_processes
from specquant.tables.results import read_results
from specquant.tables.style import legend_above, new_figure
from specquant.tables.verify_cost import KEYS, pass_growth

TABLE = f"{RECORDED}/launching/verify_cost.csv"
FIRST = f"{RECORDED}/verify_cost.csv"  # of the same passes, recorded on another day
AIM_PERCENT = 2.0  # within which processes are to agree in a ratio
SHOWN = ((1, "1 token", "#0173b2", "o"), (60, "60 tokens", "#de8f05", "s"))


def without_launching(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that say how long the host took, with that taken off their times. A card begins before the host is done,
    so less than all of it was waited for: what is left only tells processes apart.

    rows: of verify_cost.csv. None is left of a table that lacks the column.
    """
    told = rows.reindex(columns=[*rows.columns.drop("launch_us", errors="ignore"), "launch_us"])
    told = told.dropna(subset="launch_us")
    return told.assign(time_ms=told.time_ms - told.launch_us / 1e3)


def processes_apart(rows: pd.DataFrame) -> pd.DataFrame:
    """How far the slowest process is from the fastest, in milliseconds: the median over schemes, by model and draft
    size. No row where fewer than two processes say how long the host took.

    Returns `apart_ms`, of passes; `launch_apart_ms`, of launching them; `left_ms`, of passes without launching. Where
    `left_ms` is far below `apart_ms`, processes differ by the host.

    rows: of verify_cost.csv, timed in blocks.
    """
    left = without_launching(rows)
    launch_ms = left.launch_us / 1e3
    values = {"apart_ms": left.time_ms + launch_ms, "launch_apart_ms": launch_ms, "left_ms": left.time_ms}
    apart = {name: _apart(left.assign(time_ms=times_ms)) for name, times_ms in values.items()}
    return pd.DataFrame(apart).groupby(["model", "draft_size"]).median()


def _apart(rows: pd.DataFrame) -> pd.Series:
    told = over_processes(in_each_process(rows, KEYS))
    several = told[told["processes"] > 1]
    return several["high"] - several["low"]


def from_the_mean(rows: pd.DataFrame) -> pd.DataFrame:
    """By how much each pass took longer than the mean over processes (`longer_us`), and the host longer to launch it
    (`launched_longer_us`), with `KEYS` and `process`. rows: of verify_cost.csv."""
    told = rows.dropna(subset="launch_us")
    times_us, launches_us = 1e3 * told.time_ms, told.launch_us
    of = told.groupby(KEYS)
    return told[[*KEYS, PROCESS]].assign(
        longer_us=times_us - 1e3 * of.time_ms.transform("mean"),
        launched_longer_us=launches_us - of.launch_us.transform("mean"),
    )


def growths_apart(rows: pd.DataFrame, draft_size: int = 60) -> pd.DataFrame:
    """By how many percent the highest process is above the lowest in the time of so many tokens over one, by scheme:
    of passes as they are, and without launching. rows: of verify_cost.csv, of one model and context."""
    both = {"as it is": rows, "without launching": without_launching(rows)}
    apart = {
        name: apart_percent(pass_growth(of)).xs(draft_size, level="draft_size").groupby("scheme").max()
        for name, of in both.items()
    }
    return pd.DataFrame(apart)


def numbers() -> dict[str, float]:
    """ "processes of 8b apart, 1 tokens, ms", "launching": of launching; "without launching": of what is left.
    "launching of 8b us, least": in a block. "a us of launching, us": by which a pass is longer; "correlation": of both.
    "growths of 8b launched": how many are told; "within 2%", with and without launching. "recordings of 8b": the
    growths that two recordings tell, of as many processes; "apart, most %": of their medians. "launching of 70b, most
    %": of a pass."""
    rows = read_results(TABLE)
    apart, known = processes_apart(rows).loc["llama-3-8b"], dict[str, float]()
    for size in (1, 60):
        of, told = apart.loc[size], f"processes of 8b apart, {size} tokens"
        known |= {f"{told}, ms": of.apart_ms, f"{told}, launching, ms": of.launch_apart_ms}
        known[f"{told}, without launching, ms"] = of.left_ms
    known |= ends("launching of 8b us", rows.launch_us)
    longer = from_the_mean(rows)
    products = longer.longer_us * longer.launched_longer_us
    known["a us of launching, us"] = products.sum() / (longer.launched_longer_us**2).sum()  # by least squares
    known["a us of launching, correlation"] = longer.longer_us.corr(longer.launched_longer_us)
    within = growths_apart(rows)
    known |= {"growths of 8b launched": len(within)}
    for name in within:
        known[f"growths of 8b launched, {name}, within 2%"] = (within[name] <= AIM_PERCENT).sum()
        known[f"growths of 8b launched, {name}, most %"] = within[name].max()
    recordings = recordings_apart(rows)
    known |= {"recordings of 8b": len(recordings), "recordings of 8b apart, most %": recordings.max()}
    known["recordings of 8b within 2%"] = (recordings <= AIM_PERCENT).sum()
    for name, of in {"8b": rows, "70b": read_results(FIRST).query("model == 'llama-3-70b'")}.items():
        known[f"launching of {name}, most %"] = (of.launch_us / of.time_ms).max() / 10  # µs over ms
    return known


def recordings_apart(rows: pd.DataFrame, draft_size: int = 60) -> pd.Series:
    """By how many percent the median over processes of one recording is above that of another, by scheme, in the time
    of so many tokens over one. Only what both tell of as many processes. rows: of `TABLE`."""
    first = read_results(FIRST).query("model == 'llama-3-8b' and context_length == 512 and protocol == 'blocks'")
    told = [pass_growth(of).xs(draft_size, level="draft_size").groupby("scheme").first() for of in (first, rows)]
    same = told[0]["processes"] == told[1]["processes"]
    medians = pd.DataFrame({number: of["median"] for number, of in enumerate(told)})[same]
    return 100 * (medians.max(axis=1) / medians.min(axis=1) - 1)


def draw_launching(longer: pd.DataFrame) -> Figure:
    """By how much a pass took longer, over by how much its launching did. longer: of `from_the_mean`."""
    figure, (axis,) = new_figure(1, 1, height_in=2.6)
    axis.axline((0, 0), slope=1, color="0.5", linewidth=0.8, label="as much as launching")
    for size, label, color, marker in SHOWN:
        of = longer[longer.draft_size == size]
        axis.plot(of.launched_longer_us, of.longer_us, color=color, marker=marker, linestyle="", label=label)
    axis.set(xlabel="launching took longer than the mean (µs)", ylabel="the pass took longer\nthan the mean (µs)")
    legend_above(figure, axis, columns=3)
    return figure
