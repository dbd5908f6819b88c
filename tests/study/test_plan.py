import pytest

from specquant.cli import main
from specquant.errors import SpecquantError
from specquant.study.plan import plan_table

RECORDED = "data/recorded/h200"


def test_the_fastest_plan_comes_first():
    table = plan_table(RECORDED, "llama-3-70b", "llama-3-8b")
    assert table.tokens_per_s.is_monotonic_decreasing
    assert set(table.method) == {"autoregressive", "vanilla", "eagle2", "hierarchical"}


def test_chances_decide():
    useless = plan_table(
        RECORDED, "llama-3-70b", "llama-3-8b", chances={"head": 0.1, "inner_head": 0.1, "agreement": 0.1}
    )
    assert useless.iloc[0].method == "autoregressive"
    good_head = plan_table(RECORDED, "llama-3-70b", "llama-3-8b", chances={"head": 0.95, "agreement": 0.3})
    assert good_head.iloc[0].method == "eagle2"


def test_without_an_intermediate_model(capsys):
    assert main(["plan", "--target", "llama-3-8b", "--scheme", "w8a8", "--rows", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "eagle2" in lines[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"scheme": "w4a16-g128-asym"}, "no pass of llama-3-70b in w4a16-g128-asym"),
        ({"head_scheme": "w8a8"}, "drafts of heads in w8a8 were not measured, only in fp16, w4a16-g128"),
        ({"chances": {"agreement": 1.5}}, "agreement is 1.5: it is a probability"),
        ({"recorded": "data/recorded/cpu"}, "there are no results at"),
    ],
)
def test_what_was_not_measured_is_refused(arguments, sentence):
    with pytest.raises(SpecquantError, match=sentence):
        plan_table(**{"recorded": RECORDED, "target": "llama-3-70b"} | arguments)
