"""Prompt lookup: what followed the last few tokens where they stood before, in the prompt or in the output.

It needs no model and no features: a draft costs a search on the host. It helps where a text repeats itself, as answers
do that quote their question. After A. Saxena's "Prompt Lookup Decoding" (github.com/apoorvumang/prompt-lookup-decoding,
2023), whose draft length this is.
"""

from collections.abc import Iterator

import torch

from specquant.decoding.acceptance import AcceptanceRule
from specquant.decoding.lookup import HierarchicalLookup, Lookup, LookupMethod, LookupOrHead
from specquant.decoding.method import DraftSettings, Plan
from specquant.decoding.tree import DraftTree
from specquant.models.graphs import GraphedLlama
from specquant.models.llama import Llama
from specquant.tables.marks import Mark


class PromptLookupDrafter(Lookup):
    """Drafts the tokens that followed the longest earlier match of the last tokens, where it stood first.

    A tree follows the first few places where that match stood, each for an equal share of the tokens.

    Args:
        vocab_size: of the tokens that it takes and gives: the enclosing model's.
        context_length: as for `Lookup`.
        device: as for `Lookup`.
        ngram_length: tokens at the end of the text that are looked up; fewer, down to `shortest_match`, where so many
            are not found.
        draft_tokens: as for `Lookup`; so are branches and shortest_match.

    Raises:
        SpecquantError: if an n-gram, a draft or a match would have no token.
    """

    name = "prompt lookup"

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        device: torch.device | str = "cpu",
        ngram_length: int = 3,
        draft_tokens: int = 10,
        branches: int = 1,
        shortest_match: int = 1,
    ):
        self._require({"the n-gram length of {}": ngram_length})
        super().__init__(vocab_size, context_length, device, draft_tokens, branches, shortest_match)
        self.ngram_length = ngram_length
        self.tokens: list[int] = []

    @classmethod
    def below(cls, model: Llama | GraphedLlama, vocab_size: int, settings: DraftSettings, shortest_match: int = 1):
        return cls(
            vocab_size,
            model.context_length,
            model.device,
            settings.ngram_length,
            settings.lookup_tokens,
            settings.lookup_branches,
            shortest_match,
        )

    def start(self, tokens: list[int], features: torch.Tensor | None, rule: AcceptanceRule) -> None:
        self.tokens = list(tokens)

    def commit(self, length: int, tokens: list[int], features: torch.Tensor | None) -> None:
        self.tokens[length:] = tokens

    def propose(self, limit: int) -> DraftTree:
        drafted, parents = [self.tokens[-1]], [-1]
        places: dict[tuple[int, int], int] = {}  # rows by parent and token: siblings differ
        for branch in self._followings(max(min(self.draft_tokens // self.branches or 1, limit), 0)):
            row = 0
            for token in branch:
                if (row, token) not in places:
                    if len(drafted) > self.draft_tokens:
                        break
                    places[row, token] = len(drafted)
                    drafted.append(token)
                    parents.append(row)
                row = places[row, token]
        return DraftTree.from_lists(drafted, parents, self.device)

    def _followings(self, count: int) -> Iterator[list[int]]:
        """Up to `count` tokens behind each of the first matches of the longest n-gram that has one."""
        for length in range(min(self.ngram_length, len(self.tokens) - 1), self.shortest_match - 1, -1):
            ends = self._matches(length)
            if ends:
                return iter([self.tokens[end : end + count] for end in ends])
        return iter([])

    def _matches(self, length: int) -> list[int]:
        """Where the first earlier occurrences of the last `length` tokens end, as many as there are branches."""
        ngram, last = self.tokens[-length:], len(self.tokens) - length
        start = -1
        ends: list[int] = []
        while len(ends) < self.branches:
            try:
                start = self.tokens.index(ngram[0], start + 1, last)
            except ValueError:
                break
            if self.tokens[start : start + length] == ngram:
                ends.append(start + length)
        return ends


class PromptLookup(LookupMethod):
    """The target verifies what the text itself suggests."""

    name = "prompt-lookup"
    mark = Mark("prompt lookup", "#d55e00", "P")
    probes = (Plan("prompt-lookup"),)
    lookup = PromptLookupDrafter


class HierarchicalPromptLookup(HierarchicalLookup):
    """The intermediate model verifies it."""

    name = "hierarchical-prompt-lookup"
    mark = Mark("hierarchical, prompt lookup", "#d39e5b", "p")
    lookup = PromptLookupDrafter


class PromptLookupEagle2(LookupOrHead):
    """Where a long n-gram stood before; else EAGLE-2."""

    name = "prompt-lookup-eagle2"
    mark = Mark("prompt lookup or EAGLE-2", "#56b4e0", "*")
    lookup = PromptLookupDrafter
