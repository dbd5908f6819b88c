"""What speculative decoding looks like: a draft tree drawn, and a text coloured by where its tokens came from."""

from collections.abc import Mapping
from html import escape
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML
from ipywidgets import ToggleButtons
from matplotlib.figure import Figure
from transformers import PreTrainedTokenizerBase

from specquant.decoding import DraftTree, Generation
from specquant.decoding.drafters import MARKS
from specquant.measure.throughput import measurements
from specquant.study.display import moved_by
from specquant.tables.style import mark, new_figure, row_for_each

ACCEPTED, REJECTED = "#0173b2", "0.55"
# Light backgrounds from the same palette: drafted and accepted, added by the target.
DRAFTED, ADDED, INK = "#b8dcf0", "#ffd9a8", "#111111"
OWN = "#de8f05"  # what the target added, in figures; what it accepted is ACCEPTED
INCHES_PER_LEAF = 0.12


def origins(generation: Generation) -> list[list[bool]]:
    """For each pass of the target, the prompt's first: of each token that it added, whether it was drafted."""
    passes = [[False]]
    for step, length in zip(generation.steps, generation.accepted_lengths, strict=True):
        passes.append(([True] * (len(step.tokens) - 1) + [False])[:length])
    return passes


def draw_passes(generations: Mapping[str, Generation]) -> Figure:
    """The text as a row of tokens for each method, a block for each pass of the target that wrote some of it."""
    figure, (axis,) = new_figure(height_in=0.6 + 0.25 * len(generations), wide=True)
    for row, generation in enumerate(generations.values()):
        start = 0
        for drafted in origins(generation):
            accepted = sum(drafted)
            if accepted:
                axis.barh(row, accepted - 0.1, left=start + 0.1, height=0.6, color=ACCEPTED, linewidth=0)
            added = len(drafted) - accepted
            if added:
                gap = 0 if accepted else 0.1
                axis.barh(row, added - gap, left=start + accepted + gap, height=0.6, color=OWN, linewidth=0)
            start += len(drafted)
        passes = f"{len(generation.steps)} passes"
        axis.annotate(
            passes, (start, row), xytext=(4, 0), textcoords="offset points", va="center", annotation_clip=False
        )
    for color, label in ((ACCEPTED, "drafted and accepted"), (OWN, "the target's own")):
        axis.barh(0, 0, color=color, label=label)
    axis.set_xlim(0, max(len(generation.token_ids) for generation in generations.values()))
    axis.grid(visible=False, axis="y")
    row_for_each(figure, axis, [mark(method, MARKS).label for method in generations], "tokens written", columns=2)
    return figure


def explore_steps(
    generation: Generation, tokenizer: PreTrainedTokenizerBase, first: int, basis: str, figures_dir: str | Path
) -> None:
    """Show a button for each step of a generation by EAGLE-2, and the tree of the one that was clicked.

    Args:
        generation: Whose steps they are.
        tokenizer: Of its tokens.
        first: The step that is shown first, from 0.
        basis: What the caption says behind what is drawn.
        figures_dir: For `draft_tree.png` and its PDF.
    """

    def tree_of(step: int) -> tuple[Figure, str]:
        drafted = generation.steps[step - 1]
        text = f"What EAGLE-2 drafted in step {step}: {len(drafted.tree)} nodes; the accepted path is blue. {basis}"
        return draft_tree(drafted.tree, drafted.path, tokenizer), text

    count = len(generation.steps)
    options = [(str(step), step) for step in range(1, count + 1)]
    value = min(first + 1, count)
    buttons = ToggleButtons(options=options, value=value, description="step", style={"button_width": "3em"})
    moved_by(tree_of, ("draft_tree", figures_dir), step=buttons)


def draft_tree(tree: DraftTree, path: list[int], tokenizer: PreTrainedTokenizerBase) -> Figure:
    """A draft tree from its root on the left, a column per depth; the accepted rows, `path`, stand out."""
    parents = tree.parents.tolist()
    heights = leaf_heights(parents)
    shown = {0, *path}
    figure, (axis,) = new_figure(height_in=0.4 + INCHES_PER_LEAF * (1 + heights.max()))
    for row, (token, depth) in enumerate(zip(tree.tokens.tolist(), tree.depths.tolist(), strict=True)):
        accepted = row in shown
        color, order = (ACCEPTED, 3) if accepted else (REJECTED, 1)
        if row:
            start = (depth - 1, heights[parents[row]])
            axis.plot((start[0], depth), (start[1], heights[row]), color=color, zorder=order, linewidth=0.5 + accepted)
        axis.text(
            depth,
            heights[row],
            visible(tokenizer.decode([token])),
            color=color if accepted else "0.2",
            fontsize=5.5,
            fontweight="bold" if accepted else "normal",
            ha="center",
            va="center",
            zorder=order + 1,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )
    axis.set(xlim=(-0.4, tree.depths.max().item() + 0.4), ylim=(heights.max() + 1, -1), xlabel="depth")
    axis.set_xticks(range(tree.depths.max().item() + 1))
    axis.set_yticks([])
    axis.grid(visible=False)
    for side in ("left", "right", "top"):
        axis.spines[side].set_visible(False)
    return figure


def leaf_heights(parents: list[int]) -> np.ndarray:
    """A height for each node: leaves one apart in depth-first order, the others in the middle of their children."""
    children: list[list[int]] = [[] for _ in parents]
    for row, parent in enumerate(parents[1:], start=1):
        children[parent].append(row)
    heights, leaves, stack = np.zeros(len(parents)), 0, [(0, False)]
    while stack:
        row, children_done = stack.pop()
        if not children[row]:
            heights[row], leaves = leaves, leaves + 1
        elif children_done:
            heights[row] = (heights[children[row][0]] + heights[children[row][-1]]) / 2
        else:
            stack += [(row, True), *((child, False) for child in reversed(children[row]))]
    return heights


def visible(text: str) -> str:
    """A token's text with its white space to be seen."""
    return text.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥").replace("$", r"\$") or "∅"


def coloured_text(generation: Generation, tokenizer: PreTrainedTokenizerBase) -> HTML:
    """The new text of a generation: accepted drafts on one colour, the target's own tokens on another."""
    spans, shown = [], ""
    for count, drafted in enumerate(chain(*origins(generation)), start=1):
        text = tokenizer.decode(generation.token_ids[:count], skip_special_tokens=True)
        if text.endswith("\ufffd"):
            continue  # half a character: the token that completes it shows it
        spans.append(_on(DRAFTED if drafted else ADDED, text[len(shown) :]))
        shown = text
    legend = " ".join([_on(DRAFTED, "drafted and accepted"), _on(ADDED, "the target's own")])
    return HTML(f'<p>{legend}</p><pre style="white-space:pre-wrap">{"".join(spans)}</pre>')


def _on(background: str, text: str) -> str:
    """Dark text on a light background, whatever the theme."""
    return f'<span style="background:{background};color:{INK}">{escape(text)}</span>'


def passes_in_words(generations: Mapping[str, Generation]) -> str:
    """Whether all methods wrote the same, and how many passes of the target each of them took."""
    texts = [generation.token_ids for generation in generations.values()]
    same = all(tokens == texts[0] for tokens in texts)
    count = f"the same {len(texts[0])}" if same else f"{len(texts[0])} or so, **not all the same,**"
    passes = []
    for method, generation in generations.items():
        length = measurements(generation)["accepted_length"]
        passes.append(f"{len(generation.steps)} ({mark(method, MARKS).label}, {length:.2f} tokens each)")
    listed = " and ".join([", ".join(passes[:-1]), passes[-1]] if len(passes) > 1 else passes)
    return f"All methods write {count} tokens. Passes of the target after that over the prompt: {listed}."


def steps_table(generations: Mapping[str, Generation]) -> pd.DataFrame:
    """A row per method: new tokens, target passes after the prompt's, mean draft size and mean accepted length."""
    rows = {method: measurements(generation) for method, generation in generations.items()}
    columns = {
        "new_tokens": "new tokens",
        "steps": "steps",
        "mean_draft_size": "draft size",
        "accepted_length": "accepted length",
    }
    table = pd.DataFrame(rows).T[list(columns)].rename(columns=columns)
    return table.astype({"new tokens": int, "steps": int}).round(2)


def rounds_table(generation: Generation) -> pd.DataFrame:
    """A row per step of a hierarchy: what each inner round accepted, what the target then verified and accepted."""
    table = pd.DataFrame(
        {
            "accepted in each round": " + ".join(map(str, step.inner_accepted_lengths)),
            "draft size": len(step.tree),
            "accepted length": length,
        }
        for step, length in zip(generation.steps, generation.accepted_lengths, strict=True)
    )
    table.index = pd.RangeIndex(1, len(table) + 1, name="step")
    return table
