"""How good a quantized model still is: perplexity, and agreement with the fp16 model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from transformers import PreTrainedTokenizerBase

from specquant.errors import SpecquantError
from specquant.files import resolve
from specquant.measure.checks import require_at_least
from specquant.measure.parameters import Common
from specquant.models.llama import Llama
from specquant.models.texts import tokens_of
from specquant.progress import tqdm
from specquant.tables.style import SCHEMES, in_order, legend_above, mark, new_figure

DOMAINS = ("mathematics", "code", "prose")
Documents = list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Parameters(Common):
    """What to read, and how.

    Attributes:
        tokens_per_domain: Of held-out text, rounded up to whole documents.
        longest: Tokens of a document that are read at once.
        dtype: That models compute in.
    """

    tokens_per_domain: int = 3000
    longest: int = 512
    dtype: str = "float64"
    device: str = "cpu"

    shared = ("dtype", "tokens_per_domain", "longest")

    def check(self) -> None:
        """Raises SpecquantError for wrong types, and for numbers out of range."""
        super().check()
        require_at_least(self, tokens_per_domain=1, longest=2)

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Documents]:
        """The documents of each domain in data/text."""
        return {
            domain: read_documents(f"data/text/{domain}.txt", tokenizer, self.longest, self.tokens_per_domain)
            for domain in DOMAINS
        }


def read_documents(
    path: str | Path, tokenizer: PreTrainedTokenizerBase, longest: int, most_tokens: int | None = None
) -> Documents:
    """Token ids of the documents in a text file that form-feed lines separate, each cut into at most `longest` tokens.

    Reads whole documents until they hold `most_tokens` tokens. A relative path is below the project root. Raises
    SpecquantError where there is no file or no text in it.
    """
    path = resolve(path)
    if not path.is_file():
        raise SpecquantError(f"there is no text file {path}")
    if longest < 2 or (most_tokens is not None and most_tokens < 1):
        raise SpecquantError("documents need at least 2 tokens, and a domain 1: what follows a token is predicted")
    try:
        texts = [text for text in path.read_text(encoding="utf-8").split("\f\n") if text.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SpecquantError(f"cannot read {path} ({error}): give a UTF-8 text file") from None
    if not texts:
        raise SpecquantError(f"{path} holds no text")
    documents, count = [], 0
    for text in texts:
        if most_tokens is not None and count >= most_tokens:
            break
        tokens = tokens_of(text, tokenizer)
        documents += [tokens[start : start + longest] for start in range(0, len(tokens) - 1, longest)]
        count += len(tokens)
    if not documents:
        raise SpecquantError(f"{path} holds less than 2 tokens: give more text")
    return documents


@dataclass(frozen=True)
class Prediction:
    """What a model makes of some documents.

    perplexity: exp of the mean negative log-likelihood, in nats, of every token after its document's first.
    greedy_tokens: int64 [positions], the likeliest next token after each token of the documents. tokens: their number.
    """

    perplexity: float
    greedy_tokens: torch.Tensor

    @property
    def tokens(self) -> int:
        return len(self.greedy_tokens)

    def agreement(self, other: "Prediction") -> float:
        """The share of positions, 0 to 1, in which both models' likeliest next tokens are the same."""
        return float((self.greedy_tokens == other.greedy_tokens).double().mean())


@torch.inference_mode()
def predict(model: Llama, documents: Documents) -> Prediction:
    """Run every document once, each from an empty cache."""
    loss, count, greedy = 0.0, 0, []
    for tokens in documents:
        ids = torch.tensor(tokens, device=model.device)
        logits = model.logits(model.prefill(ids, model.new_cache(len(tokens))))
        loss += float(F.cross_entropy(logits[:-1].double(), ids[1:], reduction="sum"))
        count += len(tokens) - 1
        greedy.append(logits.argmax(dim=-1))
    return Prediction(float(torch.tensor(loss / count).exp()), torch.cat(greedy))


def quality(
    model: Llama,
    name: str,
    weights: str,
    texts: Mapping[str, Documents],
    reference: Mapping[str, Prediction] | None = None,
) -> tuple[pd.DataFrame, dict[str, Prediction]]:
    """One row per domain of `texts`: perplexity and agreement with `reference`, the fp16 model's predictions.

    name, weights: what those columns say. Returns the rows and this model's own predictions; without a reference it is
    its own, and agrees with itself.
    """
    own = {
        domain: predict(model, documents)
        for domain, documents in tqdm(texts.items(), desc=model.scheme.name, unit="domain", leave=False)
    }
    reference = reference or own
    rows = pd.DataFrame(
        {
            "model": name,
            "scheme": model.scheme.name,
            "domain": domain,
            "weights": weights,
            "tokens": prediction.tokens,
            "perplexity": prediction.perplexity,
            "increase_percent": 100 * (prediction.perplexity / reference[domain].perplexity - 1),
            "agreement_percent": 100 * prediction.agreement(reference[domain]),
        }
        for domain, prediction in own.items()
    )
    return rows, own


def by_scheme(rows: pd.DataFrame, schemes: Sequence[str]) -> pd.DataFrame:
    """For each scheme the mean over domains of the increase in perplexity and of the agreement, in percent."""
    columns = ["increase_percent", "agreement_percent"]
    return rows.groupby("scheme")[columns].mean().reindex(list(schemes))


def draw(frame: pd.DataFrame) -> Figure:
    """Held-out perplexity of each scheme over that of FP16, or of the first one where FP16 was not measured, in
    percent, by domain. `frame`: quality.csv."""
    perplexity = frame.pivot_table(index="scheme", columns="domain", values="perplexity")
    reference = "fp16" if "fp16" in perplexity.index else frame["scheme"].iloc[0]
    increase = (perplexity / perplexity.loc[reference] - 1) * 100
    schemes = [scheme for scheme in in_order(frame["scheme"], SCHEMES) if scheme != reference]
    figure, (axis,) = new_figure(height_in=0.9 + 0.19 * len(schemes))
    looks = (("#0173b2", "o"), ("#de8f05", "s"), ("#029e73", "^"), ("#cc78bc", "D"))
    for (color, marker), domain in zip(looks, increase.columns, strict=False):
        axis.plot(increase.loc[schemes, domain], range(len(schemes)), marker, color=color, label=domain)
    axis.axvline(0, color="0.4", linewidth=0.6)
    axis.set_yticks(range(len(schemes)), [mark(scheme, SCHEMES).label for scheme in schemes])
    axis.invert_yaxis()
    axis.set_xlabel(f"perplexity above {mark(reference, SCHEMES).label} (%)")
    legend_above(figure, axis, columns=3)
    return figure
