"""Rooflines are found again in times that were made from one, and predictions are theirs."""

import numpy as np
import pandas as pd
import pytest

from specquant.errors import SpecquantError
from specquant.models.transforms import LINEARS
from specquant.planning.roofline import Roofline, decoder_layer, fit_roofline, rooflines

SIZES = [1, 2, 4, 8, 16, 32, 64]
WEIGHT_BYTES, INPUTS, OUTPUTS = 2e6, 2000, 1000


def kernels(bandwidth_tb_s, rate_top_s, scheme="w8a8", layers=LINEARS):
    """A table of kernels.csv's form whose times lie exactly on a roofline."""
    roofline = Roofline(bandwidth_tb_s, rate_top_s)
    frame = pd.DataFrame([{"draft_size": size, "layer": layer} for layer in layers for size in SIZES])
    frame["bytes"] = WEIGHT_BYTES + 10 * frame.draft_size
    frame["operations"] = 2 * frame.draft_size * INPUTS * OUTPUTS
    frame["time_us"] = roofline.time_us(frame.bytes, frame.operations)
    return frame.assign(model="m", scheme=scheme, implementation="specquant", weights="synthetic")


def test_a_time_is_that_of_reading_or_of_computing():
    roofline = Roofline(bandwidth_tb_s=2, rate_top_s=100)
    times = roofline.time_us(pd.Series([2e6, 2e6]), pd.Series([1e6, 1e9]))
    assert times.tolist() == [1.0, 10.0]
    assert roofline.largest_free_draft(2e6, 4e6) == pytest.approx(25)  # 1 us to read, 0.04 us a token


def test_layers_are_added_up_and_compared_with_one_token():
    rows = decoder_layer(kernels(2, 100), "m")
    assert list(rows.draft_size) == SIZES
    assert rows.bytes[0] == 4 * (WEIGHT_BYTES + 10)
    assert rows.relative_time[0] == 1
    assert rows.relative_time.iloc[-1] == pytest.approx(2.56, rel=1e-4)
    assert rows.intensity[0] == pytest.approx(4e6 / (2e6 + 10))
    assert rows.bandwidth_tb_s[0] == pytest.approx(2)
    assert rows.rate_top_s.iloc[-1] == pytest.approx(100)


@pytest.mark.parametrize(("bandwidth", "rate"), [(2, 100), (4.5, 150), (3, 60)])
def test_a_roofline_is_found_again(bandwidth, rate):
    found = fit_roofline(decoder_layer(kernels(bandwidth, rate), "m"))
    assert found.bandwidth_tb_s == pytest.approx(bandwidth, rel=1e-4)
    assert found.rate_top_s == pytest.approx(rate, rel=0.01)


def test_a_roof_that_no_draft_reaches_is_the_highest_rate_seen():
    rows = decoder_layer(kernels(2, 1e9), "m")
    table, predicted = rooflines(rows, read_bandwidth_tb_s=4)
    assert table.loc["w8a8", "rate_top_s"] == pytest.approx(rows.rate_top_s.max())
    assert table.loc["w8a8", "largest_free_draft"] == pytest.approx(max(SIZES), rel=0.001)  # that much is known
    assert table.loc["w8a8", "share_of_read_bandwidth"] == pytest.approx(0.5)
    assert np.allclose(np.maximum(predicted.reading_us, predicted.computing_us), predicted.time_us)


def test_the_largest_error_is_that_of_the_worst_prediction():
    frame = kernels(2, 100)
    frame.loc[frame.draft_size == 4, "time_us"] *= 1.25
    table, predicted = rooflines(decoder_layer(frame, "m"), 4)
    assert table.loc["w8a8", "largest_error"] == pytest.approx(0.2, abs=0.01)
    assert set(predicted.scheme) == {"w8a8"}


def test_an_unknown_model_is_named():
    with pytest.raises(SpecquantError, match="no kernels of 'other' were measured: there are m"):
        decoder_layer(kernels(2, 100), "other")


def test_without_the_time_of_one_token_there_is_nothing_to_compare_with():
    frame = pd.concat([kernels(2, 100), kernels(2, 100, scheme="fp16").query("draft_size > 1")])
    with pytest.raises(SpecquantError, match="the products of m in fp16 were not measured with 1 token"):
        decoder_layer(frame, "m")


def test_a_table_that_lacks_a_layer_of_a_scheme_is_refused():
    """A recording that was cut short: three products in place of four would look fast."""
    frame = pd.concat([kernels(2, 100), kernels(2, 100, scheme="fp16").query("layer == 'o_proj' or draft_size != 8")])
    with pytest.raises(SpecquantError, match="of m in fp16, not all four products were measured at draft size 8"):
        decoder_layer(frame, "m")


def test_a_table_that_lacks_a_layer_in_all_schemes_is_refused():
    """As one is that was cut short before the last layer: layers are measured in turn, in every scheme."""
    frame = kernels(2, 100, layers=LINEARS[:3])
    with pytest.raises(SpecquantError, match="of m in w8a8, not all four products were measured at draft size 1"):
        decoder_layer(frame, "m")
