"""Products alone, by the clock that a process had."""

import pandas as pd
import pytest

from specquant.measure.peers import CUBLAS, OURS
from specquant.study import low_clocks
from specquant.study.low_clocks import PRODUCT, by_clock, spreads
from specquant.tables.results import read_results


@pytest.fixture
def recorded(tmp_path):
    """Writes peers.csv of one product in three processes: what is given of each, beside a recorded row."""
    row = read_results(low_clocks.TABLE).query("implementation == 'specquant'").iloc[:1]

    def write(times_us, clocks_mhz):
        rows = pd.concat([row] * 3, ignore_index=True)
        path = tmp_path / "peers.csv"
        rows.assign(process=[0, 1, 2], time_us=times_us, clock_mhz=clocks_mhz).to_csv(path, index=False)
        return str(path)

    return write


def test_processes_are_compared_by_the_lowest_clock_of_theirs(recorded):
    (told,) = spreads(recorded([100.0, 125.0, 110.0], [1980.0, 1200.0, 1900.0])).itertuples(index=False)
    assert told.more_percent == pytest.approx(25)
    assert told.lowest_mhz == 1200
    assert told.slowest_is_lowest
    (told,) = spreads(recorded([100.0, 125.0, 110.0], [1980.0, 1900.0, 1200.0])).itertuples(index=False)
    assert not told.slowest_is_lowest


def test_a_product_whose_clock_is_not_known_in_every_process_says_nothing(recorded):
    assert spreads(recorded([100.0, 125.0, 110.0], [1980.0, None, 1900.0])).empty


def test_one_process_alone_is_not_apart_from_others(recorded):
    """Not apart by 0%, which would be told as agreement."""
    path = recorded([100.0, 125.0, 110.0], [1980.0, 1200.0, 1900.0])
    pd.read_csv(path).iloc[:1].to_csv(path, index=False)
    assert spreads(path).empty


def test_products_of_torch_s_own_do_not_count():
    told = spreads().index.unique("implementation")
    assert set(told) == {OURS, CUBLAS} < set(read_results(low_clocks.TABLE).implementation)


def test_full_and_low_clocks_are_told_apart_and_those_between_are_neither():
    index = pd.MultiIndex.from_tuples([("m", "l", "s", "i", size) for size in range(5)], names=PRODUCT)
    rows = pd.DataFrame({"more_percent": [1.0, 3.0, 50.0, 20.0, 10.0]}, index)
    told = by_clock(
        rows.assign(lowest_mhz=[1980, 1900, 1800, 1699, 700], slowest_is_lowest=[False, False, True, True, False])
    )
    assert told.loc["full"].tolist() == [2, 2.0, 3.0, 0]
    assert told.loc["low"].tolist() == [2, 15.0, 20.0, 1]
