"""Prompt lookup: what followed the last few tokens where they stood before, in the prompt or in the output.

It needs no model and no features: a draft costs a search on the host. It helps where a text repeats itself, as answers
do that quote their question. After A. Saxena's "Prompt Lookup Decoding" (github.com/apoorvumang/prompt-lookup-decoding,
2023), whose draft length this is.
"""

from collections.abc import Callable

import torch

from specquant.decoding.acceptance import AcceptanceRule
from specquant.decoding.drafter import Drafter
from specquant.decoding.method import Method, Plan, TwoModels
from specquant.decoding.tree import DraftTree, on_device
from specquant.errors import SpecquantError
from specquant.tables.marks import Mark


class PromptLookupDrafter(Drafter):
    """Drafts the tokens that followed the longest earlier match of the last tokens.

    Args:
        vocab_size: of the tokens that it takes and gives: the enclosing model's.
        context_length: positions that it can follow: the enclosing model's.
        device: where drafts are put.
        ngram_length: tokens at the end of the text that are looked up; fewer, down to one, where so many are not found.
        draft_tokens: how many tokens are drafted at most.

    Raises:
        SpecquantError: if an n-gram or a draft would have no token.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        device: torch.device | str = "cpu",
        ngram_length: int = 3,
        draft_tokens: int = 10,
    ):
        if ngram_length < 1:
            raise SpecquantError(f"the n-gram length of prompt lookup is {ngram_length}; it must be at least 1")
        if draft_tokens < 1:
            raise SpecquantError(
                f"the number of tokens that prompt lookup drafts is {draft_tokens}; it must be at least 1"
            )
        self.vocab_size, self.context_length = vocab_size, context_length
        self.device, self.ngram_length, self.draft_tokens = torch.device(device), ngram_length, draft_tokens
        self.tokens: list[int] = []

    def start(self, tokens: list[int], features: torch.Tensor | None, rule: AcceptanceRule) -> None:
        self.tokens = list(tokens)

    def commit(self, length: int, tokens: list[int], features: torch.Tensor | None) -> None:
        self.tokens[length:] = tokens

    def propose(self, limit: int) -> DraftTree:
        draft = self._following(min(self.draft_tokens, limit))
        return DraftTree.sequence(on_device([self.tokens[-1], *draft], self.device))

    def _following(self, count: int) -> list[int]:
        """Up to `count` tokens behind the first match of the longest n-gram that has one; none where none has."""
        for length in range(min(self.ngram_length, len(self.tokens) - 1), 0, -1):
            end = self._first_match(length)
            if end is not None:
                return self.tokens[end : end + max(count, 0)]
        return []

    def _first_match(self, length: int) -> int | None:
        """Where the first earlier occurrence of the last `length` tokens ends; None where there is none."""
        ngram, last = self.tokens[-length:], len(self.tokens) - length
        start = -1
        while True:
            try:
                start = self.tokens.index(ngram[0], start + 1, last)
            except ValueError:
                return None
            if self.tokens[start : start + length] == ngram:
                return start + length


class PromptLookup(Method):
    """The target verifies what the text itself suggests."""

    name = "prompt-lookup"
    mark = Mark("prompt lookup", "#d55e00", "P")

    def drafter(self, plan: Plan, models: TwoModels, trees: Callable[[str], Drafter]) -> PromptLookupDrafter:
        target = models.target
        return PromptLookupDrafter(target.config.vocab_size, target.context_length, target.device)
