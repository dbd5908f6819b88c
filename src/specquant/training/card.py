"""The README.md of data/tiny, written from training.json alone: no number in it is typed by hand."""

import io
import json
import math
import textwrap
from pathlib import Path

from matplotlib.figure import Figure

from specquant.files import write_file
from specquant.tables.markdown import markdown_table as table

MODELS = ("target", "intermediate")
WIDTH = 120  # columns of a line
LICENCES = {
    "mathematics": ("GSM8K, training questions", "MIT"),
    "code": ("the standard library of Python {python}", "PSF-2.0"),
    "prose": ("WikiText-2, validation and test articles; Shakespeare", "CC BY-SA; public domain"),
}


def write_card(directory: Path) -> None:
    """Write README.md and training.png beside the training.json in `directory`."""
    directory = Path(directory)
    log = json.loads((directory / "training.json").read_text(encoding="utf-8"))
    picture = io.BytesIO()
    draw_curves(log["training"]).savefig(picture, format="png", dpi=110)
    write_file(directory / "training.png", picture.getvalue())
    write_file(directory / "README.md", card_text(log))


def draw_curves(training: dict) -> Figure:
    """Training and held-out loss against steps, one panel for each network."""
    figure = Figure(figsize=(8, 2.3), layout="constrained")
    for axes, (name, run) in zip(figure.subplots(1, len(training)), training.items(), strict=True):
        steps = [point["step"] for point in run["curve"]]
        axes.plot(steps, [point["train_loss"] for point in run["curve"]], color="#0072B2", label="training")
        axes.plot(steps, [point["held_out_loss"] for point in run["curve"]], color="#D55E00", label="held out")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("loss", fontsize=8)
    figure.axes[0].legend(fontsize=7, frameon=False)
    return figure


def card_text(log: dict) -> str:
    """The README.md as Markdown."""
    recipe, held_out, training = log["recipe"], log["held_out"], log["training"]
    domains = list(log["corpora"])
    columns = [*domains, "mean"]

    def shape(name: str) -> list[str]:
        s = recipe[f"{name}_shape"]
        keys = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
        return [name, *(str(s[key]) for key in keys), f"{parameters(s, recipe['vocabulary_size']) / 1e6:.2f} M"]

    def mix(rows_of: dict) -> str:
        written = rows_of["written"]
        read = sum(rows_of.values()) - written
        return f"{read} rows a training step from the corpora and {written} that the target wrote"

    losses = {name: held_out[name]["loss_fp16"] for name in MODELS}
    better = losses["intermediate"]["mean"] - losses["target"]["mean"]
    tokens = {domain: log["corpora"][domain]["held_out_tokens"] for domain in domains}
    gaps = {domain: losses["intermediate"][domain] - losses["target"][domain] for domain in domains}
    by_tokens = sum(gaps[domain] * tokens[domain] for domain in domains) / sum(tokens.values())
    agreement = held_out["agreement"]
    rounding = max(
        abs(held_out[name]["loss_fp16"][c] - held_out[name]["loss_fp32"][c]) for name in MODELS for c in columns
    )
    corpora = [
        [
            domain,
            LICENCES[domain][0].format(**log["versions"]),
            LICENCES[domain][1],
            *(f"{log['corpora'][domain][key]:,}" for key in ("documents", "training_tokens", "held_out_tokens")),
        ]
        for domain in domains
    ]
    runs = []
    for name, run in training.items():
        best = min(run["curve"], key=lambda point: point["held_out_loss"])
        steps = run["curve"][-1]["step"]
        runs.append([name, str(steps), str(best["step"]), f"{best['held_out_loss']:.3f}", f"{run['seconds']:.0f}"])
    muon = [f"`{name}`" for name in training if recipe[name.replace("-", "_")]["muon"]]
    versions = "Python {python}, PyTorch {torch}, transformers {transformers}".format(**log["versions"])
    return f"""# The tiny models

Llama models that are small enough to ship and good enough to study: a `target`, an `intermediate` that drafts for it,
and an EAGLE head for each (`eagle-target`, `eagle-intermediate`). fp16 safetensors in Hugging Face layout;
`transformers.AutoModelForCausalLM` and `AutoTokenizer` load the two models.

This page is written by `specquant.training.card` from `training.json`, which the recipe recorded.

    {log["command"]}

Trained on {log["date"]} on one {log["device"]} in {sum(run["seconds"] for run in training.values()) / 60:.1f} minutes
({versions}, seed {recipe["seed"]}).

## Text

{table(["domain", "source", "licence", "documents", "training tokens", "held-out tokens"], corpora)}

A document is held out if a hash of its name says so (about one in twenty). Shakespeare is split in contiguous sections,
WikiText-2 in articles. Training never reads held-out text. But the weights that ship are those of the checkpoint with
the lowest held-out loss, so the numbers below flatter the models a little. The intermediate's optimizer and learning
rate were chosen by training loss, in runs of 250 training steps.

`calibration.txt` is text that the target itself wrote at temperature 1, from nothing or a short opener. Documents are
separated by a line with one form feed: `text.split("\\n\\f\\n")`.

## Models

{table(["model", "layers", "hidden", "heads", "KV heads", "MLP", "parameters"], [shape(name) for name in MODELS])}

Head dimension 64, tied embeddings, RoPE base 10000, context {recipe["row_length"]}. The tokenizer is byte-level BPE
with {recipe["vocabulary_size"]:,} entries, trained on the training text; `<|begin|>` (0) begins every text, `<|end|>`
(1) ends a training document. Rows of {recipe["row_length"]} tokens continue over documents.

* `target`: next-token prediction on {sum(recipe["target_rows"].values())} rows a training step, dropout
  {recipe["target_dropout"]:g}, weight decay {recipe["target"]["weight_decay"]:g}.
* `intermediate`: distilled from the target (cross-entropy against its distribution and, with a weight of
  {recipe["greedy_weight"]:g}, against its most likely token), {mix(recipe["intermediate_rows"])}.
* heads: EAGLE's loss (1.0 feature regression, 0.1 token cross-entropy, uniform noise on the features),
  {mix(recipe["eagle_rows"])},
  averaged over {recipe["eagle_depth"]} steps in which the head reads its own predictions, as HASS and EAGLE-3 do; EAGLE
  itself trains on one.

The target wrote {sum(recipe["written_rows"].values()):,} rows, at temperatures from {recipe["coldest"]:g} to
{recipe["hottest"]:g}; each begins with up to {recipe["row_length"] // 4} tokens of the corpora. Warm-up, then cosine to
zero; AdamW, but Muon for the matrices between embedding and LM head of {" and ".join(muon)}.

{table(["network", "training steps", "best one", "held-out loss there", "seconds"], runs)}

![Loss curves](training.png)

The target's loss is in nats per token, the intermediate's is the distillation's, and the heads' is EAGLE's.

## Held-out quality

Perplexity, weights rounded to fp16, computed in fp32 (the rounding changes no loss by more than {rounding:.4f} nats):

{table(["model", *domains], [[n, *(f"{math.exp(losses[n][c]):.2f}" for c in domains)] for n in MODELS])}

Nats per token:

{table(["model", *columns], [[n, *(f"{losses[n][c]:.3f}" for c in columns)] for n in MODELS])}

The target is {better:.2f} nats per token better than the intermediate in the mean over domains, {by_tokens:.2f}
over all held-out tokens alike, most of which are code. The intermediate's most likely token is the target's in
{agreement["mean"]:.1%} of held-out positions ({", ".join(f"{d} {agreement[d]:.1%}" for d in domains)}).

Mean accepted length (the model's own token counted) of sequences of 5 tokens that each model's EAGLE head drafts
greedily. The model continues held-out prompts greedily. These are no trees:

{table(["head of", *columns], [[n, *(f"{held_out['accepted_length'][n][c]:.2f}" for c in columns)] for n in MODELS])}
{eagle3_text(log["eagle3"]) if "eagle3" in log else ""}"""


def eagle3_text(log: dict) -> str:
    """What the card says of the EAGLE-3 heads. log: "date", "device", "commit", "stored", and "heads" by name."""
    heads, depths = log["heads"], len(next(iter(log["heads"].values()))["accuracy"])
    heading = ["head", "size", *(f"depth {depth}" for depth in range(1, depths + 1))]
    rows = [
        [f"`{name}`", f"{head['bytes'] / 1e6:.1f} MB", *(f"{share:.3f}" for share in head["accuracy"])]
        for name, head in heads.items()
    ]
    commands = "\n".join(_wrapped_command(head["command"]) for head in heads.values())
    accepted = "; ".join(
        f"`{method}` accepts {length['stored']:.2f} tokens a pass, with heads in fp16 {length['fp16']:.2f}"
        for method, length in log["accepted_length"].items()
    )
    stored = f"""Matrices are stored as integers with an fp16 scale for every 64 of a row: MLP and LM head in 4 bits,
the others in 8 (`--bits 8` stores all in 8). On {log["prompts"]} of the prompts in `data/prompts`, continued by
{log["new_tokens"]} tokens: {accepted}."""
    return f"""
## EAGLE-3 heads

{commands}

Trained on {log["date"]} on one {log["device"]} at commit {log["commit"]}. This part of `training.json` was put in by
hand. `--minutes` is for all of it: each model first wrote the text that its head learnt from. Heads of so little time
show that EAGLE-3 works here, and not how good it can be. EAGLE-2's heads, above, had other text and another recipe. A
head drafts the tokens that its text has most often, as many as `--draft-vocabulary` says.

{textwrap.fill(stored, WIDTH, break_on_hyphens=False)}

The table has how often a head's drafted token is its model's most likely one, on held-out text that the model wrote,
before rounding to integers. At depth 2 and beyond, the tokens drafted before are the text's own:

{table(heading, rows)}
"""


def _wrapped_command(command: str) -> str:
    """As code in Markdown; a line that is too long goes on in the next with its last option."""
    code = f"    {command}"
    return code if len(code) <= WIDTH else " \\\n      --".join(code.rsplit(" --", 1))


def parameters(shape: dict, vocabulary_size: int, head_dim: int = 64) -> int:
    """How many parameters a Llama of this shape has, with tied embeddings."""
    hidden, heads, kv_heads = shape["hidden_size"], shape["num_attention_heads"], shape["num_key_value_heads"]
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    layer = attention + 3 * hidden * shape["intermediate_size"] + 2 * hidden
    return vocabulary_size * hidden + shape["num_hidden_layers"] * layer + hidden
