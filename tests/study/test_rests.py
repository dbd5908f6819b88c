"""Products with rests and without: how long they take, and how far processes are apart."""

import pandas as pd
import pytest

from specquant.measure.peers import CUBLAS, OURS
from specquant.study import rests
from specquant.study.rests import compared
from specquant.tables.results import read_results


@pytest.fixture
def recorded(tmp_path):
    """Writes a table of one product: what is given of each process, beside a recorded row."""
    row = read_results(rests.TABLE).query("implementation == 'specquant'").iloc[:1]

    def write(name, times_us, clocks_mhz):
        rows = pd.concat([row] * len(times_us), ignore_index=True)
        path = tmp_path / f"{name}.csv"
        rows.assign(process=range(len(rows)), time_us=times_us, clock_mhz=clocks_mhz).to_csv(path, index=False)
        return str(path)

    return write


def test_products_are_compared_in_the_processes_that_both_tables_have(recorded):
    rested = recorded("rested", [100.0, 110.0, 900.0], [1980.0] * 3)
    unrested = recorded("unrested", [105.0, 126.0], [1980.0, 1200.0])
    (told,) = compared(rested, unrested).itertuples(index=False)
    assert told.longer_percent == pytest.approx(10)
    assert told.apart_percent == pytest.approx(10)
    assert told.apart_without_percent == pytest.approx(20)
    assert (told.lowest_mhz, told.lowest_without_mhz) == (1980, 1200)


def test_a_clock_that_was_not_read_in_every_process_is_not_known(recorded):
    rested = recorded("rested", [100.0, 110.0], [1980.0, None])
    (told,) = compared(rested, recorded("unrested", [100.0, 110.0], [None, None])).itertuples(index=False)
    assert pd.isna(told.lowest_mhz)
    assert pd.isna(told.lowest_without_mhz)


def test_one_process_alone_is_not_apart_from_others(recorded):
    """Not apart by 0%, which would be told as agreement."""
    told = compared(recorded("rested", [100.0, 110.0], [1980.0] * 2), recorded("unrested", [105.0], [1980.0]))
    assert told.longer_percent.tolist() == pytest.approx([5])
    assert told[["apart_percent", "apart_without_percent"]].isna().all(axis=None)


def test_products_of_torch_s_own_do_not_count():
    told = compared().index.unique("implementation")
    assert set(told) == {OURS, CUBLAS} < set(read_results(rests.TABLE).implementation)
