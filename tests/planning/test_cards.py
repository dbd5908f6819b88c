import pytest

from specquant.errors import SpecquantError
from specquant.files import project_root
from specquant.models.synthetic import synthetic_config
from specquant.planning.cards import CARDS, Card, PassWork, multiplies, read_cards
from specquant.quant import get_scheme

CARD = Card("a card", 2.0, {"fp16": 400.0, "int8": 800.0})


@pytest.fixture(scope="module")
def works():
    config = synthetic_config("llama-3-8b")
    return {scheme: PassWork(config, scheme) for scheme in ("fp16", "w8a8", "w4a16-g128", "w4a8-qqq")}


def test_the_recorded_cards():
    cards = read_cards()
    assert {"A100", "RTX 3090", "RTX 4090", "H100", "H200", "B200"} <= set(cards)
    assert cards["H200"].bandwidth_tb_s > cards["H100"].bandwidth_tb_s
    assert not cards["A100"].can(get_scheme("fp8"))
    assert cards["H100"].can(get_scheme("fp8"))


def test_work_is_that_of_the_model(works):
    """6.98e9 weights in the layers' matrices and 525e6 in the LM head (arXiv 2407.21783, table 3)."""
    assert works["fp16"].matrix_operations == pytest.approx(2 * 6.98e9, rel=1e-3)
    assert works["fp16"].matrix_bytes == pytest.approx(2 * 6.98e9, rel=1e-3)
    assert works["fp16"].head_bytes == 2 * 4096 * 128256
    assert works["w4a16-g128"].matrix_bytes == pytest.approx(6.98e9 * (0.5 + 2 / 128), rel=1e-3)
    assert works["w8a8"].cache_bytes == 512 * 2 * 32 * 8 * 128 * 2


def test_a_pass_reads_or_computes(works):
    work = works["w4a16-g128"]
    free = work.largest_free_draft(CARD)
    assert free == pytest.approx((0.5 + 2 / 128) / 2 * 400 / 2, rel=1e-3)
    assert work.time_ms(CARD, 1) == pytest.approx(work.time_ms(CARD, int(free)))
    assert work.time_ms(CARD, int(free) + 8) > work.time_ms(CARD, int(free))
    assert works["fp16"].largest_free_draft(CARD) == pytest.approx(200)


def test_int8_products_stay_free_for_longer(works):
    assert works["w4a8-qqq"].largest_free_draft(CARD) > 1.9 * works["w4a16-g128"].largest_free_draft(CARD)
    assert multiplies(get_scheme("w4a8-fp8-g128")) == "fp8"


def test_what_a_card_cannot_multiply_is_refused():
    work = PassWork(synthetic_config("llama-3-8b"), "fp8")
    with pytest.raises(SpecquantError, match="a card multiplies no fp8, which fp8 needs"):
        work.time_ms(CARD, 1)


def test_a_share_of_the_data_sheet():
    card = CARD.reached(0.9, {"fp16": 0.5, "int8": 0.25})
    assert (card.bandwidth_tb_s, card.rates) == (1.8, {"fp16": 200, "int8": 200})


def test_costs_for_the_planner(works):
    costs = works["w4a16-g128"].costs(CARD, [1, 30, 60])
    assert costs.verify(60) > costs.verify(1)
    assert costs.draft(6) == pytest.approx(2 * costs.draft(3))
    assert costs.draft(1) == pytest.approx((2 * 251.66e6 + 2 * 525.3e6) / 2e9, rel=1e-2)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("2.039", "0", "no number above 0"),
        ("2.039", "", "no number above 0"),
        ("2.039", "-1", "no number above 0"),
        ("2.039", "inf", "no number above 0"),
        ("2.039", "fast", "is no table of cards"),
        ("624", "", "no number above 0"),
        ("A100,", ",", "a card without a name"),
        ("RTX 3090,", "A100,", "a card without a name, a card twice"),
        ("bandwidth_tb_s", "bandwidth", "is no table of cards"),
    ],
)
def test_a_damaged_table_of_cards_is_refused(tmp_path, old, new, says):
    path = tmp_path / "cards.csv"
    path.write_text((project_root() / CARDS).read_text().replace(old, new))
    with pytest.raises(SpecquantError, match=rf"cards\.csv.* {says}"):
        read_cards(path)


def test_a_missing_table_of_cards_is_refused(tmp_path):
    for content in (None, b"", b"\xff"):
        if content is not None:
            (tmp_path / "cards.csv").write_bytes(content)
        with pytest.raises(SpecquantError, match="is no table of cards"):
            read_cards(tmp_path / "cards.csv")
