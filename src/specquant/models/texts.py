"""Texts as tokens, with one begin token, however they are read: prompts, documents and texts that are counted."""

from transformers import PreTrainedTokenizerBase

from specquant.errors import SpecquantError


def tokens_of(prompt: str, tokenizer: PreTrainedTokenizerBase, special: bool = True) -> list[int]:
    """The tokens of a prompt, with those that the tokenizer begins and ends a text with if `special`; what it begins
    with is not added to a prompt that has it already, as one from a chat template does.

    Raises SpecquantError where the prompt has half a surrogate pair, which is what bytes that are not UTF-8 become.
    """
    require_text("the prompt", prompt)
    # Not verbose: a prompt that is too long gets our sentence, not a warning of the tokenizer's.
    plain = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
    if not special:
        return plain
    tokens = tokenizer(prompt, verbose=False)["input_ids"]
    for added in range(len(tokens) - len(plain), 0, -1):
        if tokens[added : added + len(plain)] == plain:
            return tokens[added:] if plain[:added] == tokens[:added] else tokens
    return tokens


def require_text(what: str, text: str) -> None:
    """Raises SpecquantError where a text has half a surrogate pair; `what` it is stands in the sentence."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SpecquantError(
            f"{what} is not valid text: its character {error.start + 1} is {text[error.start]!a}, a byte that is not "
            "UTF-8 or half a character; give it in UTF-8"
        ) from None
