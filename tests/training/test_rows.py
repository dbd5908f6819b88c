import numpy as np
import pytest
import torch

from specquant.errors import SpecquantError
from specquant.training.rows import MixedRows, ShuffledRows, pack
from specquant.training.tokenizer import BEGIN_ID

DOCUMENTS = [np.arange(100 * i + 2, 100 * i + 2 + 10 * (i + 1)) for i in range(6)]  # 210 tokens, none twice
CPU = torch.device("cpu")


def test_packed_rows_begin_with_the_beginning_and_lose_nothing_else():
    rows = pack(DOCUMENTS, 16)
    stream = np.concatenate(DOCUMENTS)
    assert rows.shape == (13, 16)
    assert (rows[:, 0] == BEGIN_ID).all()
    assert (rows[:, 1:] == stream[: 13 * 16].reshape(13, 16)[:, 1:]).all()


def test_an_epoch_reads_every_token_at_most_once_and_another_cuts_elsewhere():
    rows = ShuffledRows(DOCUMENTS, 16, seed=3, device=CPU)
    first, second = rows.take(0, 13)[:, 1:], rows.take(13, 13)[:, 1:]
    assert len(set(first.flatten().tolist())) == first.numel()
    assert set(first.flatten().tolist()) != set(second.flatten().tolist())


def test_rows_depend_on_seed_and_position_alone():
    rows = ShuffledRows(DOCUMENTS, 16, seed=3, device=CPU)
    in_order = torch.cat([rows.take(start, 5) for start in range(0, 50, 5)])
    again = ShuffledRows(DOCUMENTS, 16, seed=3, device=CPU)
    assert torch.equal(again.take(11, 30), in_order[11:41])
    assert not torch.equal(ShuffledRows(DOCUMENTS, 16, seed=4, device=CPU).take(11, 30), in_order[11:41])


def test_a_batch_holds_the_named_number_of_rows_of_each_domain():
    documents = {"low": DOCUMENTS, "high": [document + 1000 for document in DOCUMENTS]}
    batch = MixedRows(documents, {"low": 3, "high": 2}, 16, 0, CPU).batch(7)
    assert batch.shape == (5, 16)
    assert (batch[:3] < 1000).all()
    assert (batch[3:, 1:] > 1000).all()


def test_too_little_text_is_said():
    with pytest.raises(SpecquantError, match="less than one row of 512 tokens"):
        ShuffledRows(DOCUMENTS, 512, 0, CPU)
