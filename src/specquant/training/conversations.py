"""How a model's conversations are put together, in tokens: what its chat template writes around the turns.

The model itself writes the turns, the user's too (Magpie, arXiv 2406.08464): behind what opens a user's turn an
instruction-tuned model writes what users ask, because it was trained on such texts.
"""

from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from specquant.benchmarks.chat import SYSTEM_PROMPT, chat_text
from specquant.errors import SpecquantError
from specquant.models.texts import tokens_of

SYSTEM_PROMPTS = (None, SYSTEM_PROMPT)  # the template's own, if it has one; what `bench tasks` says
ASKED, ANSWERED, ASKED_NEXT = "<-asked->", "<-answered->", "<-asked next->"


class Asked(NamedTuple):
    """What a user says first, in tokens; unfinished: the model writes the rest of it."""

    tokens: list[int]
    unfinished: bool = False


@dataclass(frozen=True)
class Turns:
    """The tokens around turns.

    Attributes:
        begins: One way to begin for each system prompt, up to where the user's first turn is.
        to_answer: What stands between a user's turn and its answer, from the token on that ends the turn; empty without
            a chat template, where there are no users.
        to_user: What stands between an answer and the user's next turn, from the token on that ends the answer.
        ends: Tokens that end an answer.
    """

    begins: tuple[list[int], ...]
    to_answer: list[int]
    to_user: list[int]
    ends: tuple[int, ...]

    def beginning(self, asked: Asked | None, number: int, longest: int) -> tuple[list[int], bool]:
        """What a row begins with, and whether the model writes the rest of a user's turn.

        Args:
            asked: A user's first turn, or how a text without turns begins; None where the model writes it.
            number: Chooses the system prompt.
            longest: Tokens in all; what is too long for them is cut in its middle.

        Returns:
            The tokens up to where the model writes, and whether that is in a user's turn.
        """
        begin = self.begins[number % len(self.begins)]
        if asked is None:
            return begin, bool(self.to_answer)
        unfinished = asked.unfinished and bool(self.to_answer)
        end = [] if unfinished else self.to_answer
        room = max(1, longest - len(begin) - len(end))
        tokens = asked.tokens
        if len(tokens) > room:
            tokens = tokens[: room // 2] + tokens[len(tokens) - (room - room // 2) :]
        return [*begin, *tokens, *end], unfinished


def turns_of(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> Turns:
    """Read them off a tokenizer's chat template.

    Args:
        tokenizer: The model's.
        config: The model's: its begin and end tokens.

    Returns:
        The tokens around turns.

    Raises:
        SpecquantError: The template does not end a turn by a special token, so that a model that writes a user's turn
            could not be seen to end it, or a model without a template has no begin token.
    """
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    ends = [token for token in ends if token is not None]
    if tokenizer.chat_template is None:
        begin = config.bos_token_id if config.bos_token_id is not None else next(iter(ends), None)
        if begin is None:
            raise SpecquantError("the model has neither a chat template nor a begin token: it cannot begin a text")
        return Turns(([begin],), [], [*ends[:1], begin], tuple(ends))
    begins, between = [], None
    for system in SYSTEM_PROMPTS:
        messages = [] if system is None else [{"role": "system", "content": system}]
        for role, content in (("user", ASKED), ("assistant", ANSWERED), ("user", ASKED_NEXT)):
            messages.append({"role": role, "content": content})
        text = chat_text(tokenizer, messages, False)
        if any(text.count(marker) != 1 for marker in (ASKED, ANSWERED, ASKED_NEXT)):
            raise SpecquantError("the tokenizer's chat template does not show every turn as it is: give --prompts")
        begin, rest = text.split(ASKED)
        begins.append(tokens_of(begin, tokenizer))
        to_answer, rest = rest.split(ANSWERED)
        between = tuple(tokens_of(part, tokenizer, special=False) for part in (to_answer, rest.split(ASKED_NEXT)[0]))
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    for tokens in between:
        if not tokens or tokens[0] not in special:
            raise SpecquantError(
                "the tokenizer's chat template does not end turns by a special token, so that the model cannot write "
                "conversations by itself: give a model whose template does"
            )
    return Turns(tuple(begins), *between, tuple(dict.fromkeys([*ends, between[1][0]])))
