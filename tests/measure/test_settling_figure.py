"""How passes behind wide ones are drawn."""

import matplotlib.pyplot as plt

from specquant.measure.settling import draw_first_passes, first_passes
from specquant.tables.results import read_results


def test_a_panel_for_each_idle_time_and_a_line_for_what_was_before():
    after = first_passes(read_results("data/recorded/h200/settling.csv")).loc["llama-3-70b", "w4a16-g128"]["median"]
    figure = draw_first_passes(after)
    assert [axis.get_title() for axis in figure.axes] == [f"after {ms} ms of idling" for ms in (0, 5, 50)]
    for axis, idle in zip(figure.axes, (0, 5, 50), strict=True):
        assert [line.get_ydata()[0] for line in axis.lines] == [after[behind, idle, 0] for behind in (1, 16, 64)]
    assert len(figure.legends[0].get_texts()) == 3
    plt.close(figure)
