"""The one exception that is meant for people, and how another is told that says the same every time."""

# What torch says of memory on a CPU and on a GPU, and the loader of its libraries.
MEMORY_PHRASES = ("allocate memory", "out of memory", "failed to map segment")

# Characters of a sentence: what is longer, as a value of a damaged file may be, loses its middle.
LONGEST = 1400


class SpecquantError(Exception):
    """Bad input or an unusable environment. The message is one line: what is wrong, where, and what to do.

    Line breaks in it, as of a file's name or of what a library says, become blanks; other characters that cannot be
    printed are escaped. The command line prints the message and exits with status 2.
    """

    def __init__(self, message: str):
        sentence = "".join(map(_printable, message))
        if len(sentence) > LONGEST:  # its beginning says where, its end what to do
            sentence = f"{sentence[: LONGEST - 405]} ... {sentence[-400:]}"
        super().__init__(sentence)


def lacks_memory(error: BaseException) -> bool:
    """Whether an error of any library says that memory was asked for in vain."""
    return isinstance(error, MemoryError) or any(phrase in str(error) for phrase in MEMORY_PHRASES)


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else ascii(character)[1:-1]
