"""How a method is asked a benchmark's question, turn by turn, whatever is then measured of its answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from specquant.benchmarks.benchmark import Benchmark, Question, prompt_tokens
from specquant.decoding import Generation, Speculator, generate
from specquant.decoding.acceptance import AcceptanceRule
from specquant.errors import SpecquantError

SHORTEST_PROMPT = 16


def longest_prompt(speculators: Sequence[Speculator], max_new_tokens: int) -> int:
    """How many tokens a prompt may have, the same for all methods. Raises SpecquantError where no room is left."""
    context = min(speculator.context_length for speculator in speculators)
    if max_new_tokens < 1 or context - max_new_tokens < SHORTEST_PROMPT:
        raise SpecquantError(
            f"{max_new_tokens} new tokens leave no room for a prompt in the models' context of {context}: choose from "
            f"1 to {context - SHORTEST_PROMPT} new tokens"
        )
    return context - max_new_tokens


@dataclass(frozen=True)
class Answer:
    """What a question's turns gave, one after the other, and how many tokens were cut from its prompts."""

    question: Question
    turns: list[Generation]
    cut_tokens: int

    @cached_property
    def together(self) -> Generation:
        """The tokens, times and steps of all turns, without their texts."""
        return Generation(
            token_ids=[token for turn in self.turns for token in turn.token_ids],
            text="",
            stopped_by="",
            accepted_lengths=[length for turn in self.turns for length in turn.accepted_lengths],
            prefill_ms=sum(turn.prefill_ms for turn in self.turns),
            steps=[step for turn in self.turns for step in turn.steps],
        )


@dataclass(frozen=True)
class Asker:
    """Asks a method questions of one benchmark.

    Attributes:
        speculator: The method.
        tokenizer: Its target's.
        benchmark: Whose questions these are.
        max_new_tokens: The most tokens of one turn.
        longest: The most tokens of a prompt (`longest_prompt`).
    """

    speculator: Speculator
    tokenizer: PreTrainedTokenizerBase
    benchmark: Benchmark
    max_new_tokens: int
    longest: int

    def prompt(self, question: Question, answers: Sequence[str] = ()) -> tuple[list[int], int]:
        """The prompt of the turn behind some answers, and how many tokens were cut from it."""
        return prompt_tokens(self.benchmark, question, answers, self.tokenizer, self.longest)

    def ask(self, question: Question, rule: AcceptanceRule | None = None) -> Answer:
        """Have a question's turns answered, each seeing the answers before it, by a rule (default: greedily)."""
        turns: list[Generation] = []
        cut_tokens = 0
        for _ in question.turns:
            prompt, cut = self.prompt(question, [turn.text for turn in turns])
            cut_tokens += cut
            turns.append(generate(self.speculator, self.tokenizer, prompt, self.max_new_tokens, rule))
        return Answer(question, turns, cut_tokens)
