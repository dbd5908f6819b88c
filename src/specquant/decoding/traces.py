"""What steps verified and accepted, as text: so that what one model accepted can be replayed on another.

A step is written as `2211/010`. The digits before the slash say how many children each node of its tree has, level by
level, without the zeros at the end. Those behind it say, for each node of the accepted path, which child of its parent
it is. If an intermediate model drafted, its rounds follow behind `=`, with `+` between them. Above 9 a digit is a
letter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase, digits

from specquant.decoding.step import Step
from specquant.errors import SpecquantError

DIGITS = digits + ascii_lowercase


@dataclass(frozen=True)
class Trace:
    """One step.

    Attributes:
        parents: Of the nodes of its tree, level by level; the root's is -1.
        path: The accepted nodes, without the root.
        rounds: If an intermediate model drafted: its own steps, in which it verified drafts.
    """

    parents: tuple[int, ...]
    path: tuple[int, ...]
    rounds: tuple["Trace", ...] = ()

    @property
    def is_sequence(self) -> bool:
        return self.parents == tuple(range(-1, len(self.parents) - 1))

    @property
    def all_rounds(self) -> tuple["Trace", ...]:
        """All rounds of an intermediate model. A trace keeps only those that had a draft; each of the others added one
        token, so their number follows. They come first."""
        without = len(self.parents) - 1 - sum(len(each.path) + 1 for each in self.rounds)
        return (Trace((-1,), ()),) * without + self.rounds

    @classmethod
    def of(cls, step: Step) -> "Trace":
        """What a step did, its nodes numbered level by level."""
        parents = step.tree.parents.tolist()
        children = _children(parents)
        order = [0]
        for row in order:
            order += children[row]
        places = {row: place for place, row in enumerate(order)}
        above = [-1, *(places[parents[row]] for row in order[1:])]
        rounds = tuple(cls.of(each) for each in step.rounds if len(each.tree) > 1)
        return cls(tuple(above), tuple(places[row] for row in step.path), rounds)

    @classmethod
    def read(cls, text: str) -> "Trace":
        """A step from its text. Raises SpecquantError for what is none."""
        try:
            own, _, below = text.partition("=")
            if "=" in below:  # rounds have none of their own
                raise ValueError(below)
            shape, _, ranks = own.partition("/")
            parents = [-1]
            for node, digit in enumerate(shape):
                if node >= len(parents):
                    raise ValueError(shape)
                parents += [node] * DIGITS.index(digit)
            children, path = _children(parents), [0]
            for digit in ranks:
                path.append(children[path[-1]][DIGITS.index(digit)])
        except (ValueError, IndexError):
            raise SpecquantError(f'"{text[:40]}" is no traced step: record the traces again') from None
        return cls(tuple(parents), tuple(path[1:]), tuple(map(cls.read, below.split("+"))) if below else ())

    def __str__(self) -> str:
        children = _children(self.parents)
        shape = "".join(DIGITS[len(each)] for each in children).rstrip("0")
        ranks = "".join(DIGITS[children[self.parents[node]].index(node)] for node in self.path)
        return f"{shape}/{ranks}" + ("=" + "+".join(map(str, self.rounds)) if self.rounds else "")


def written(steps: Sequence[Step]) -> str:
    """Steps as text, with spaces between them."""
    return " ".join(str(Trace.of(step)) for step in steps)


def read_traces(text: str) -> list[Trace]:
    """The steps of a text. Raises SpecquantError for what is none."""
    return [Trace.read(word) for word in text.split()]


def _children(parents: Sequence[int]) -> list[list[int]]:
    """The children of each node, in their order."""
    children: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents):
        if node:
            children[parent].append(node)
    return children
