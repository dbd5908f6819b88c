"""Generating text: prompts in, tokens and text out, with every stop condition exact."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from specquant.decoding.acceptance import AcceptanceRule, Greedy, Sampling
from specquant.decoding.speculator import Speculator
from specquant.decoding.step import Step
from specquant.errors import SpecquantError
from specquant.models.texts import require_text, tokens_of
from specquant.tables.speed import speed, whole_step_ms

# How tokens that stand for one byte are written in vocabularies like Llama 2's.
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


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
        return sum(map(whole_step_ms, self.steps))

    @property
    def tokens_per_s(self) -> float | None:
        """Decoding speed without the prefill, as the paper reports it; None where there was no step."""
        return speed(sum(self.accepted_lengths), self.decode_ms) if self.steps else None


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
    token gives. An end token is part of `token_ids`; the text ends before a stop string, in which special tokens count
    as they are written, though the text leaves them out. `on_text` gets the text as it becomes certain. Raises
    SpecquantError for an empty prompt, one that does not fit the context or the vocabulary or is no valid text, fewer
    than one new token, and a model whose logits are no numbers.
    """
    prompt = checked_prompt(speculator, tokenizer, prompt, max_new_tokens, stop_strings)
    room = speculator.context_length - len(prompt)
    output = _Output(tokenizer, speculator.model.config.eos_token_id, stop_strings, min(max_new_tokens, room), on_text)
    decoded = decode_steps(speculator, prompt, rule or Greedy(), output.limit)
    prefill = next(decoded)
    output.take(prefill.tokens)
    steps, accepted_lengths = [], []
    while not output.stopped_by:
        step = next(decoded)
        if speculator.model.device.type == "cpu":  # a GPU would be waited for: there the last pass says it
            speculator.require_numbers()
        steps.append(step.without_distributions())
        accepted_lengths.append(output.take(step.tokens))
    speculator.require_numbers()
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


def decode_steps(speculator: Speculator, prompt: list[int], rule: AcceptanceRule, most: int) -> Iterator[Step]:
    """The loop of all decoding: the prompt's pass, which brings the first new token, then the target's steps.

    A step is taken when it is asked for, so whoever asks decides when to stop.

    Args:
        speculator: what decodes.
        prompt: its tokens, at least one.
        rule: by which drafts are accepted.
        most: new tokens, at least 1. No step drafts beyond them, and none is taken once they are there.
    """
    step = speculator.prefill(prompt, rule)
    yield step
    while (most := most - len(step.tokens)) > 0:
        step = speculator.step(most)
        yield step


def checked_prompt(
    speculator: Speculator,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[int],
    max_new_tokens: int,
    stop_strings: tuple[str, ...] = (),
) -> list[int]:
    """The prompt's tokens. Raises SpecquantError as `generate` does."""
    prompt = tokens_of(prompt, tokenizer) if isinstance(prompt, str) else list(prompt)
    if max_new_tokens < 1:
        raise SpecquantError(f"the maximum of new tokens is {max_new_tokens}; it must be at least 1")
    if not any(token not in tokenizer.all_special_ids for token in prompt):
        raise SpecquantError("the prompt is empty: give at least one character")
    if "" in stop_strings:
        raise SpecquantError("a stop string is empty: it would stop before the first token")
    for string in stop_strings:
        require_text("a stop string", string)
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
        self.tokenizer, self.limit, self.on_text = tokenizer, limit, on_text
        self.end_tokens = set(end_tokens if isinstance(end_tokens, list) else [end_tokens])
        added = tokenizer.added_tokens_decoder
        self.special = {number: token.content for number, token in added.items() if token.special}
        self.stop_strings = stop_strings
        self.special_stops = [stop for stop in stop_strings if any(token in stop for token in self.special.values())]
        self.marks: list[tuple[int, str]] = []  # special tokens: where the text leaves them out, and what they are
        self.token_ids: list[int] = []
        self.text = ""
        self.shown = 0
        self.stopped_by = ""
        # Text is decoded in windows, so that a token costs the same in a long text as in a short one: `settled` is the
        # text of all tokens before `read`, and decoding from `window` on gives what comes behind it.
        self.settled, self.window, self.read = "", 0, 0
        self.in_bytes = False  # whether the text ends in tokens of single bytes

    def take(self, tokens: list[int]) -> int:
        """Append tokens up to the first that stops; returns how many."""
        for count, token in enumerate(tokens, start=1):
            self.token_ids.append(token)
            if token in self.special:
                self.marks.append((len(self.text), self.special[token]))
            elif name := self.tokenizer.convert_ids_to_tokens(token):  # one that only pads the vocabulary ends no bytes
                self.in_bytes = bool(BYTE_TOKEN.fullmatch(name))
            self.text = self._decoded()
            stops = self._stops()
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
        known = self._decode(self.token_ids[self.window : self.read])
        window = self._decode(self.token_ids[self.window :])
        if not window.startswith(known):  # a decoder of a kind that takes back what stood
            self.settled, self.window, self.read, known = "", 0, 0, ""
            window = self._decode(self.token_ids)
        text = self.settled + window[len(known) :]
        if self._stands(text):
            # Special tokens and spaces alone are no beginning: a decoder may take the first space behind them.
            if text[len(self.settled) :].strip():
                self.window = self.read
            self.settled, self.read = text, len(self.token_ids)
        return text

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def _stands(self, text: str) -> bool:
        """Whether no later token changes the text: it ends neither with half a character nor with bytes, which are read
        together as far as they go."""
        return not self.in_bytes and not text.endswith("\ufffd")

    def _stops(self) -> list[int]:
        """Where in the text stop strings begin."""
        stops = [at for string in self.stop_strings if (at := self.text.find(string)) >= 0]
        if self.special_stops and self.marks:
            marked = self._marked(len(self.text))
            stops += [self._unmarked(at) for string in self.special_stops if (at := marked.find(string)) >= 0]
        return stops

    def _marked(self, end: int) -> str:
        """The text up to `end` with its special tokens."""
        parts, start = [], 0
        for at, content in self.marks:
            parts += [self.text[start : min(at, end)], content]
            start = at
        return "".join((*parts, self.text[start:end]))

    def _unmarked(self, place: int) -> int:
        """Where in the text a place in `_marked` is."""
        for at, content in self.marks:
            if place <= at:
                break
            place = max(at, place - len(content))
        return place

    def finish(self) -> None:
        self._show(len(self.text))

    def _certain(self) -> int:
        """How many characters no later token can take back: those that stand, but not the start of a stop string."""
        end = len(self.settled)
        starts = [end - _overlap(self.text[:end], string) for string in self.stop_strings]
        if self.special_stops and self.marks:
            marked = self._marked(end)
            starts += [self._unmarked(len(marked) - _overlap(marked, string)) for string in self.special_stops]
        return min([end, *starts])

    def _show(self, end: int) -> None:
        if end > self.shown:
            self.on_text(self.text[self.shown : end])
            self.shown = end


def _overlap(text: str, string: str) -> int:
    """How many characters at a text's end are the start of a string that may go on."""
    longest = min(len(string) - 1, len(text))
    return next((length for length in range(longest, 0, -1) if text.endswith(string[:length])), 0)
