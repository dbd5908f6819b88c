"""The text that the tiny models learn from: three domains, cleaned, split into a training and a held-out part.

* mathematics: GSM8K's training questions (MIT licence)
* code: the standard library of the Python that runs this
* prose: WikiText-2's validation and test articles (CC BY-SA) and Shakespeare (public domain)

A document is held out if a hash of its name says so: the choice is the same on every machine and Python version, and
adding documents moves no other document across the split.
"""

import hashlib
import json
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from specquant.errors import SpecquantError

DOMAINS = ("mathematics", "code", "prose")
HELD_OUT_ONE_IN = 20
SHAKESPEARE_SECTION_CHARACTERS = 16_000
# Tests, third-party packages, and tables that programs wrote (character maps, pydoc's topics, build settings).
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
SKIPPED_FILES = re.compile(r"_sysconfigdata|sitecustomize|usercustomize")


@dataclass(frozen=True)
class Document:
    """One text. `name` identifies it within its domain and decides on which side of the split it lies."""

    domain: str
    name: str
    text: str

    @property
    def held_out(self) -> bool:
        digest = hashlib.sha256(f"{self.domain}/{self.name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def load_corpora(corpora_dir: Path, standard_library: Path | None = None) -> list[Document]:
    """Read all documents of the three domains, cleaned, in a fixed order.

    corpora_dir holds gsm8k_train.jsonl, wikitext2_valid.txt, wikitext2_test.txt and tinyshakespeare.txt.
    standard_library defaults to that of the running Python. Raises SpecquantError if a file is missing or unreadable.
    """
    corpora_dir = Path(corpora_dir)
    return [
        *mathematics_documents(_read(corpora_dir / "gsm8k_train.jsonl")),
        *code_documents(Path(standard_library or sysconfig.get_path("stdlib"))),
        *wikitext_documents(_read(corpora_dir / "wikitext2_valid.txt")),
        *wikitext_documents(_read(corpora_dir / "wikitext2_test.txt")),
        *shakespeare_documents(_read(corpora_dir / "tinyshakespeare.txt")),
    ]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecquantError(
            f"cannot read the corpus {path} ({error.__class__.__name__}); "
            "give a directory with gsm8k_train.jsonl, wikitext2_valid.txt, wikitext2_test.txt and tinyshakespeare.txt"
        ) from error


def mathematics_documents(jsonl: str) -> list[Document]:
    """GSM8K (arXiv 2110.14168), one JSON object a line, without the <<48/2=24>> notes for a calculator."""
    documents = []
    for number, line in enumerate(jsonl.splitlines(), start=1):
        try:
            record = json.loads(line)
            question, answer = record["question"].strip(), record["answer"].strip()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SpecquantError(
                f"gsm8k_train.jsonl, line {number} is not an object with the texts `question` and `answer`; "
                "get the file again"
            ) from error
        answer = re.sub(r"<<.*?>>", "", answer)
        documents.append(Document("mathematics", question, f"Question: {question}\nAnswer: {answer}\n"))
    return documents


def code_documents(standard_library: Path) -> list[Document]:
    """Every Python file of the standard library, but tests, third-party packages and generated tables."""
    documents = []
    for path in sorted(standard_library.rglob("*.py")):
        relative = path.relative_to(standard_library)
        if SKIPPED_FOLDERS.intersection(relative.parts) or SKIPPED_FILES.search(path.name):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a few files show other encodings
            continue
        # Form feeds, which some old files use between sections, separate documents in calibration.txt.
        text = text.replace("\f", "").expandtabs(8)
        if text.strip():
            documents.append(Document("code", relative.as_posix(), text))
    if not documents:
        raise SpecquantError(f"no Python files under {standard_library}: this Python has no standard library to read")
    return documents


def wikitext_documents(text: str) -> list[Document]:
    """WikiText-2 (arXiv 1609.07843), one document per article, with its tokenization undone."""
    pieces = re.split(r"^ = ([^=\n]+) = $", text, flags=re.MULTILINE)
    return [
        Document("prose", f"wikitext/{title}", f"{_detokenize(title.replace('<unk>', ''))}\n\n{clean_wikitext(body)}\n")
        for title, body in zip(pieces[1::2], pieces[2::2], strict=True)
    ]


def clean_wikitext(text: str) -> str:
    """Turn WikiText's tokens back into prose.

    Words outside its vocabulary are lost (`<unk>`): a sentence that lacks one is kept without it, a sentence that
    lacks more is dropped.
    """
    paragraphs = []
    for line in text.splitlines():
        heading = re.fullmatch(r"\s*(?:= )+(.*?)(?: =)+\s*", line)
        if heading:
            if "<unk>" not in heading[1]:
                paragraphs.append(heading[1])
            continue
        sentences = re.findall(r".*?(?: [.!?](?: \"(?= [A-Z]))?(?= |$)|$)", line)
        line = "".join(sentence for sentence in sentences if sentence.count("<unk>") <= 1)
        line = _detokenize(line.replace("<unk>", ""))
        if line:
            paragraphs.append(line)
    return "\n\n".join(paragraphs)


def _detokenize(line: str) -> str:
    line = re.sub(r"\s*@([-.,])@\s*", r"\1", line)  # 2 @-@ 3, 1 @,@ 000
    line = re.sub(r"\s+", " ", line).strip()
    line = re.sub(r'" ([^"]*?) ?"', r'"\1"', line)  # quotation marks hug what they quote
    line = re.sub(r"\(\s*[,;]?\s*\)|\[\s*\]|\"\"", "", line)  # what only held lost words
    line = re.sub(r"([(\[$£€]) ", r"\1", line)
    line = re.sub(r" ([,.;:!?%)\]]|'(?:s|t|re|ve|ll|d|m)\b|n't\b)", r"\1", line)
    line = re.sub(r"s ' ", "s' ", line)
    line = re.sub(r",(?=[,.;:)])|\s+(?=[,.;:)])", "", line)
    return re.sub(r"\s+", " ", line).strip()


def shakespeare_documents(text: str) -> list[Document]:
    """Shakespeare's plays, cut into contiguous sections of about 16,000 characters, each from speech to speech."""
    sections, section, size = [], [], 0
    for speech in text.strip().split("\n\n"):
        section.append(speech)
        size += len(speech)
        if size >= SHAKESPEARE_SECTION_CHARACTERS:
            sections.append("\n\n".join(section))
            section, size = [], 0
    if section:
        sections.append("\n\n".join(section))
    return [Document("prose", f"shakespeare/{i}", f"{section}\n") for i, section in enumerate(sections)]
