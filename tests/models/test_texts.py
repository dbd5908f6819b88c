"""A text that begins with the tokenizer's begin token has it once, wherever texts become tokens."""

import pytest
import torch

from specquant.decoding import tokens_of
from specquant.measure.quality import read_documents
from specquant.models.loading import frequent_tokens, load_tokenizer
from specquant.models.quantize import calibration_sequences
from specquant.training.rows import encode
from tests.family import TEXT

BEGIN = "<|begin|>"


@pytest.fixture
def read(small_models, tmp_path):
    """Every reader of texts: a text as the tokens of one document."""
    tokenizer, file = load_tokenizer(small_models / "target"), tmp_path / "text.txt"

    def read(text):
        file.write_text(text)
        (document,) = read_documents(file, tokenizer, longest=10_000)
        sequences = calibration_sequences(small_models / "target", file, 10_000, 10_000)
        (encoded,) = encode(tokenizer, [text])
        return {
            "prompt": tokens_of(text, tokenizer),
            "quality": document,
            "calibration": torch.cat(sequences).tolist(),
            "training": encoded.tolist(),
            "frequent": frequent_tokens(file, tokenizer, 3, 270).tolist(),
        }

    return read


@pytest.mark.parametrize("text", ["1 plus 1 makes 2, and 3 plus 4 makes 7, and 5 plus 6 makes 11; é.", TEXT])
def test_it_is_not_doubled(read, text):
    plain, begun, twice = (read(begin + text) for begin in ("", BEGIN, 2 * BEGIN))
    assert begun == plain
    assert plain["prompt"][0] == 0 not in plain["prompt"][1:]
    for reader in ("prompt", "quality", "calibration", "training"):  # whoever writes two gets two
        assert twice[reader] == [0, *plain[reader]]
