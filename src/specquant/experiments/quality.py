"""How good a quantized model still is: perplexity, and agreement with the fp16 model."""

from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase

from specquant.errors import SpecquantError
from specquant.models.llama import Llama


def read_documents(path: str | Path, tokenizer: PreTrainedTokenizerBase, longest: int) -> list[list[int]]:
    """Token ids of the documents in a text file that form-feed lines separate, each at most `longest` tokens."""
    path = Path(path)
    if not path.is_file():
        raise SpecquantError(f"there is no text file {path}")
    documents = [
        tokenizer(text)["input_ids"] for text in path.read_text(encoding="utf-8").split("\f\n") if text.strip()
    ]
    if not documents:
        raise SpecquantError(f"{path} holds no text")
    return [tokens[start : start + longest] for tokens in documents for start in range(0, len(tokens) - 1, longest)]


@torch.inference_mode()
def document_logits(model: Llama, tokens: list[int]) -> torch.Tensor:
    """Logits [n, vocab_size] after each token of one document."""
    return model.logits(model.prefill(torch.tensor(tokens, device=model.device), model.new_cache(len(tokens))))


def perplexity(model: Llama, documents: list[list[int]]) -> float:
    """exp of the mean negative log-likelihood, in nats, of every token after its document's first."""
    loss, count = 0.0, 0
    for tokens in documents:
        logits = document_logits(model, tokens)[:-1].double()
        loss += float(F.cross_entropy(logits, torch.tensor(tokens[1:], device=logits.device), reduction="sum"))
        count += len(tokens) - 1
    return float(torch.tensor(loss / count).exp())


def agreement(model: Llama, other: Llama, documents: list[list[int]]) -> float:
    """The share of positions in which both models' likeliest next tokens are the same."""
    same, count = 0, 0
    for tokens in documents:
        first, second = (document_logits(each, tokens).argmax(dim=-1) for each in (model, other))
        same += int((first == second).sum())
        count += len(tokens)
    return same / count
