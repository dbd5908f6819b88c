"""Conversations as prompts, in the form of the tokenizer's chat template."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from specquant.benchmarks.benchmark import Prompt, Question
from specquant.errors import SpecquantError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Llama 2's default system prompt (arXiv 2307.09288, appendix A.3.3), which the scripts send to every model.
SYSTEM_PROMPT = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
)


def chat_text(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]], open_answer: bool) -> str:
    """A conversation in the form of the tokenizer's chat template, special tokens included; open_answer: up to where
    the model answers. Raises SpecquantError where the template refuses it."""
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_answer))
    except TemplateError as error:
        if messages[0]["role"] != "system":
            raise SpecquantError(f"the tokenizer's chat template refuses the conversation: {error}") from None
    # Templates without a system role (Mistral's first): the first user says it.
    system, first, *rest = messages
    return chat_text(tokenizer, [first | {"content": f"{system['content']}\n\n{first['content']}"}, *rest], open_answer)


def conversation_prompt(question: Question, answers: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> Prompt:
    """The turn that follows `answers`, behind the system prompt and the turns before it with their answers.

    Without a chat template they are paragraphs, and there is no system prompt.
    """
    asked = question.turns[: len(answers) + 1]
    if tokenizer.chat_template is None:
        said = [text for turn, answer in zip(asked, answers, strict=False) for text in (turn, answer.strip())]
        return Prompt("\n\n".join([*said, asked[-1], ""]), True)
    messages = [{"role": "system", "content": SYSTEM_PROMPT}]
    for turn, answer in zip(asked, answers, strict=False):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer.strip()}]
    return Prompt(chat_text(tokenizer, [*messages, {"role": "user", "content": asked[-1]}], True), False)


def chat_prompt(text: str, tokenizer: "PreTrainedTokenizerBase", system: str | None = None) -> str:
    """A user's message in the form of the chat template, up to where the model answers.

    Args:
        text: What the user says.
        tokenizer: The model's.
        system: The system prompt; None for what the template itself has, if it has one.

    Returns:
        The prompt. Tokens are made of it as of any prompt, with one begin token (`models.texts.tokens_of`).

    Raises:
        SpecquantError: The tokenizer has no chat template, or the template refuses the conversation.
    """
    if tokenizer.chat_template is None:
        raise SpecquantError("the model's tokenizer has no chat template: leave out --chat")
    messages = [] if system is None else [{"role": "system", "content": system}]
    return chat_text(tokenizer, [*messages, {"role": "user", "content": text}], True)


def message_prompt(text: str, tokenizer: "PreTrainedTokenizerBase") -> Prompt:
    """The prompt of one text: a user's message where the tokenizer has a chat template, else the text as it is."""
    if tokenizer.chat_template is None:
        return Prompt(text, True)
    return Prompt(chat_text(tokenizer, [{"role": "user", "content": text}], True), False)
