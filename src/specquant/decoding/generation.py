"""Generating text: prompts in, tokens and text out, with every stop condition exact."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerBase

from specquant.decoding.acceptance import AcceptanceRule, Greedy, Sampling
from specquant.decoding.speculator import Speculator, Step
from specquant.errors import SpecquantError


@dataclass
class Generation:
    """What one prompt gave.

    token_ids: all new tokens: the one that the prompt's pass chose, then those of the steps. accepted_lengths: one
    entry for each step of the target, so they sum to len(token_ids) - 1; a last step cut off by a stop condition counts
    what was kept. prefill_ms is the time to the first token and every drafter's start; the other times are the steps'.
    stopped_by: "end token", "stop string", "maximum new tokens" or "context".
    """

    token_ids: list[int]
    text: str
    stopped_by: str
    accepted_lengths: list[int]
    prefill_ms: float
    steps: list[Step] = field(repr=False)

    @property
    def decode_ms(self) -> float:
        return sum(step.draft_ms + step.verify_ms + step.other_ms for step in self.steps)

    @property
    def tokens_per_s(self) -> float | None:
        """Decoding speed without the prefill, as the paper reports it; None where there was no step."""
        return 1e3 * sum(self.accepted_lengths) / self.decode_ms if self.steps else None


def acceptance_rule(temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> AcceptanceRule:
    """Greedy at temperature 0, else lossless sampling. Raises SpecquantError for impossible values, also for greedy."""
    sampling = Sampling(temperature or 1.0, top_p, seed)
    return Greedy() if temperature == 0 else sampling


def generate(
    speculator: Speculator,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[int],
    max_new_tokens: int = 128,
    rule: AcceptanceRule | None = None,
    stop_strings: tuple[str, ...] = (),
    on_text: Callable[[str], None] = lambda text: None,
) -> Generation:
    """Decode one prompt (a text, or its token ids) until a stop condition holds.

    Tokens are judged one by one in their order, however many a step accepted: the result is what decoding token by
    token gives. An end token is part of `token_ids`; the text ends before a stop string. `on_text` gets the text as it
    becomes certain. Raises SpecquantError for an empty prompt, one that does not fit the context or the vocabulary, and
    fewer than one new token.
    """
    prompt = checked_prompt(speculator, tokenizer, prompt, max_new_tokens, stop_strings)
    room = speculator.context_length - len(prompt)
    output = _Output(tokenizer, speculator.model.config.eos_token_id, stop_strings, min(max_new_tokens, room), on_text)
    prefill = speculator.prefill(prompt, rule or Greedy())
    output.take(prefill.tokens)
    steps, accepted_lengths = [], []
    while not output.stopped_by:
        step = speculator.step(output.limit - len(output.token_ids))
        # Distributions serve the level above, and there is none: over a long text they would fill the memory.
        steps.append(replace(step, q=None, tree=replace(step.tree, q=None)))
        accepted_lengths.append(output.take(step.tokens))
    output.finish()
    if output.stopped_by == "maximum new tokens" and room < max_new_tokens:
        output.stopped_by = "context"
    return Generation(
        output.token_ids,
        output.text,
        output.stopped_by,
        accepted_lengths,
        prefill.draft_ms + prefill.verify_ms,
        steps,
    )


def checked_prompt(
    speculator: Speculator,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[int],
    max_new_tokens: int,
    stop_strings: tuple[str, ...] = (),
) -> list[int]:
    """The prompt's tokens. Raises SpecquantError as `generate` does."""
    # Not verbose: a prompt that is too long gets our sentence, not a warning of the tokenizer's.
    prompt = tokenizer(prompt, verbose=False)["input_ids"] if isinstance(prompt, str) else list(prompt)
    if max_new_tokens < 1:
        raise SpecquantError(f"the maximum of new tokens is {max_new_tokens}; it must be at least 1")
    if not any(token not in tokenizer.all_special_ids for token in prompt):
        raise SpecquantError("the prompt is empty: give at least one character")
    if "" in stop_strings:
        raise SpecquantError("a stop string is empty: it would stop before the first token")
    room = speculator.context_length - len(prompt)
    if room < 1:
        raise SpecquantError(
            f"the prompt has {len(prompt)} tokens and the context is {speculator.context_length}: there is no room for "
            "a new token; shorten the prompt"
        )
    if not 0 <= min(prompt) <= max(prompt) < speculator.vocab_size:
        raise SpecquantError(
            f"the prompt has tokens {min(prompt)} to {max(prompt)} and the model's vocabulary {speculator.vocab_size} "
            "entries: use the tokenizer that the model was trained with"
        )
    return prompt


class _Output:
    """The new tokens and their text so far, and whether a stop condition holds."""

    def __init__(self, tokenizer, end_tokens, stop_strings, limit, on_text):
        self.tokenizer, self.stop_strings, self.limit, self.on_text = tokenizer, stop_strings, limit, on_text
        self.end_tokens = set(end_tokens if isinstance(end_tokens, list) else [end_tokens])
        self.token_ids: list[int] = []
        self.text = ""
        self.shown = 0
        self.stopped_by = ""
        # Text is decoded in windows, so that a token costs the same in a long text as in a short one: `settled` is the
        # text of all tokens before `read`, and decoding from `window` on gives what comes behind it.
        self.settled, self.window, self.read = "", 0, 0

    def take(self, tokens: list[int]) -> int:
        """Append tokens up to the first that stops; returns how many."""
        for count, token in enumerate(tokens, start=1):
            self.token_ids.append(token)
            self.text = self._decoded()
            stops = [at for string in self.stop_strings if (at := self.text.find(string)) >= 0]
            if stops:
                self.text, self.stopped_by = self.text[: min(stops)], "stop string"
            elif token in self.end_tokens:
                self.stopped_by = "end token"
            elif len(self.token_ids) == self.limit:
                self.stopped_by = "maximum new tokens"
            if self.stopped_by:
                return count
        self._show(self._certain())
        return len(tokens)

    def _decoded(self) -> str:
        """The text of all tokens. A window begins one window early, for a token may look different as the first one."""
        known = self.tokenizer.decode(self.token_ids[self.window : self.read], skip_special_tokens=True)
        window = self.tokenizer.decode(self.token_ids[self.window :], skip_special_tokens=True)
        text = self.settled + window[len(known) :]
        if not window.endswith("\ufffd"):  # else the next token may complete the character
            self.settled, self.window, self.read = text, self.read, len(self.token_ids)
        return text

    def finish(self) -> None:
        self._show(len(self.text))

    def _certain(self) -> int:
        """How many characters no later token can take back: not half a character, nor the start of a stop string."""
        end = len(self.text.rstrip("\ufffd"))
        for string in self.stop_strings:
            for overlap in range(min(len(string) - 1, end), 0, -1):
                if self.text.endswith(string[:overlap], 0, end):
                    end -= overlap
                    break
        return end

    def _show(self, end: int) -> None:
        if end > self.shown:
            self.on_text(self.text[self.shown : end])
            self.shown = end
