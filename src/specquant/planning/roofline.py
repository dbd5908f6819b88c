"""Where products are bound by memory, and where by arithmetic: a roofline of two parameters for each scheme.

Source: Williams, Waterman, Patterson, "Roofline" (CACM 52(4), 2009).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from specquant.errors import SpecquantError
from specquant.models.transforms import LINEARS


@dataclass(frozen=True)
class Roofline:
    """A bandwidth in TB/s and a rate in TOP/s: whatever takes longer, reading or computing, is the time."""

    bandwidth_tb_s: float
    rate_top_s: float

    def time_us(
        self, bytes_read: pd.Series | np.ndarray | float, operations: pd.Series | np.ndarray | float
    ) -> pd.Series | np.ndarray | float:
        """The predicted time of passes, or of one, in microseconds."""
        return np.maximum(bytes_read / self.bandwidth_tb_s, operations / self.rate_top_s) / 1e6

    def largest_free_draft(self, weight_bytes: float, operations_per_token: float) -> float:
        """The draft size up to which computing takes no longer than reading the weights."""
        return weight_bytes / self.bandwidth_tb_s * self.rate_top_s / operations_per_token


def decoder_layer(kernels: pd.DataFrame, model: str) -> pd.DataFrame:
    """The four products of one decoder layer together: a row per scheme and draft size, from rows of kernels.csv.

    Adds relative_time (over that of one token), bandwidth_tb_s, rate_top_s and intensity (operations per byte). Raises
    SpecquantError where the table has no such model, a scheme without the time of one token, or a draft size that not
    all four were measured with: the others alone would make too short a time.
    """
    of_model = kernels[kernels["model"] == model]
    if of_model.empty:
        raise SpecquantError(f"no kernels of {model!r} were measured: there are {', '.join(kernels['model'].unique())}")
    keys = ["scheme", "implementation", "draft_size", "weights"]
    rows = of_model.groupby(keys, sort=False)[["time_us", "bytes", "operations"]].sum().reset_index()
    layers = of_model.groupby(keys, sort=False)["layer"].nunique()
    if (lacking := layers[layers < len(LINEARS)]).size:
        scheme, _, size, _ = lacking.index[0]
        raise SpecquantError(
            f"of {model} in {scheme}, not all four products were measured at draft size {size}: measure the others"
        )
    one_token = rows[rows["draft_size"] == 1].set_index("scheme")["time_us"]
    if alone := sorted(set(rows["scheme"]) - set(one_token.index)):
        raise SpecquantError(
            f"the products of {model} in {alone[0]} were not measured with 1 token: measure them again"
        )
    rows["relative_time"] = rows["time_us"] / rows["scheme"].map(one_token)
    rows["bandwidth_tb_s"] = rows["bytes"] / rows["time_us"] / 1e6
    rows["rate_top_s"] = rows["operations"] / rows["time_us"] / 1e6
    rows["intensity"] = rows["operations"] / rows["bytes"]
    return rows


def fit_roofline(rows: pd.DataFrame) -> Roofline:
    """The roofline that is nearest to one scheme's rows of `decoder_layer`, by the squares of relative errors.

    The bandwidth is that of the fastest pass. The rate is searched upwards from the highest in the rows; where no draft
    is bound by arithmetic it stays there, and is only known to be no lower.
    """
    bandwidth = rows["bandwidth_tb_s"].max()
    rates = np.geomspace(1, 4, 300) * rows["rate_top_s"].max()
    candidates = [Roofline(bandwidth, rate) for rate in rates]
    read, operations, times_us = (rows[name].to_numpy() for name in ("bytes", "operations", "time_us"))
    errors = [np.square(np.log(each.time_us(read, operations) / times_us)).sum() for each in candidates]
    return candidates[int(np.argmin(errors))]


def rooflines(rows: pd.DataFrame, read_bandwidth_tb_s: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A roofline for each scheme of `decoder_layer`, and its predictions.

    Returns a table by scheme: bandwidth and rate, the bandwidth as a share of what the card reads at best, the largest
    free draft, and the largest relative error of the predictions; and the rows with the columns `reading_us` and
    `computing_us`, of which the longer is the prediction.
    """
    table, predicted = {}, []
    for scheme, line in rows.groupby("scheme", sort=False):
        roofline = fit_roofline(line)
        times = roofline.time_us(line["bytes"], line["operations"])
        reading, computing = roofline.time_us(line["bytes"], 0), roofline.time_us(0, line["operations"])
        predicted.append(line.assign(reading_us=reading, computing_us=computing))
        least = line.loc[line["draft_size"].idxmin()]
        table[scheme] = {
            "bandwidth_tb_s": roofline.bandwidth_tb_s,
            "share_of_read_bandwidth": roofline.bandwidth_tb_s / read_bandwidth_tb_s,
            "rate_top_s": roofline.rate_top_s,
            "largest_free_draft": roofline.largest_free_draft(
                least["bytes"], least["operations"] / least["draft_size"]
            ),
            "largest_error": (times / line["time_us"] - 1).abs().max(),
        }
    return pd.DataFrame(table).T, pd.concat(predicted)
