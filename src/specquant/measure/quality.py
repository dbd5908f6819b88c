"""How good is a quantized model still? Perplexity, and agreement with the fp16 model.

On held-out text, and on what the fp16 model itself answers to benchmarks' questions.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from transformers import PreTrainedTokenizerBase

from specquant.benchmarks.benchmark import prompt_tokens, read_questions
from specquant.benchmarks.registry import BENCHMARK_FILES, files_of, get_benchmark
from specquant.decoding import Speculator, generate
from specquant.decoding.acceptance import NoNumbers, require_numbers
from specquant.errors import SpecquantError
from specquant.files import resolve
from specquant.measure.asking import longest_prompt
from specquant.measure.checks import require_at_least
from specquant.measure.measure import Measure, Measured, free, left_out
from specquant.measure.parameters import Common
from specquant.models.device import named_dtype
from specquant.models.graphs import graphed
from specquant.models.llama import Llama
from specquant.models.loading import load_model, load_tokenizer
from specquant.models.options import DType
from specquant.models.targets import calibration_text_beside, quantized_target
from specquant.models.texts import tokens_of
from specquant.progress import tqdm
from specquant.tables.intervals import over_questions_with, told_with_interval
from specquant.tables.schemas import TABLES
from specquant.tables.style import SCHEMES, in_order, mark, new_figure, row_for_each

DOMAINS = ("mathematics", "code", "prose")
WIKITEXT2 = "wikitext2_test"  # the domain of a file of this name
TEXTS = (*DOMAINS, WIKITEXT2)  # those that were recorded
ANSWERS = "answers, "  # before a task
Documents = list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Parameters(Common):
    """What to read, and how.

    Attributes:
        model: The target, of fp16 weights: a directory, or smollm2.
        name: What tables call the target.
        schemes: Of the target, with commas (default: those that it can have).
        tokens_per_domain: Tokens of held-out text in each domain, rounded up to whole documents.
        longest: The most tokens of a document that are read at once.
        text: A file with more held-out text; it counts as a domain of its own.
        benchmarks: Whose questions the fp16 model answers, with commas (default: none).
        limit: The most questions of each of their tasks.
        max_new_tokens: The most tokens of an answer.
        data_dir: Where the files of benchmarks are (default: results/benchmarks).
        keep_targets_in: The folder for quantized copies of the target.
        dtype: That models compute in.
        device: cuda or cpu.
    """

    model: str | Path = "data/tiny/target"
    name: str = "tiny"
    schemes: tuple[str, ...] = ()
    tokens_per_domain: int = 3000
    longest: int = 512
    text: Path | None = None
    benchmarks: tuple[str, ...] = ()
    limit: int = 10
    max_new_tokens: int = 64
    data_dir: Path = BENCHMARK_FILES
    keep_targets_in: Path = Path("results/targets")
    dtype: DType = "float64"
    device: str = "cpu"

    shared = ("dtype", "tokens_per_domain", "longest")

    def check(self) -> None:
        """Raises SpecquantError for wrong types, for numbers out of range, and for questions that are not there."""
        super().check()
        require_at_least(self, tokens_per_domain=1, longest=2, limit=1)
        if self.text and self.text.stem in DOMAINS:
            raise SpecquantError(f"{self.text} is called as the domain {self.text.stem} is: give it another name")
        if self.text and not resolve(self.text).is_file():
            raise SpecquantError(f"there is no text file {self.text}")
        for name in self.benchmarks:
            read_questions(get_benchmark(name), self.data_dir, self.limit)

    def same(self) -> dict[str, Any]:
        told = super().same() | {"benchmarks": list(self.benchmarks), "text": self.text.name if self.text else None}
        return told | ({"limit": self.limit, "max_new_tokens": self.max_new_tokens} if self.benchmarks else {})

    def unnamed(self) -> dict[str, Any]:
        return super().unnamed() | {"benchmarks": [], "text": None}

    def contents(self) -> dict[str, Any]:
        files = {"benchmark_files": files_of(self.benchmarks, self.data_dir)} if self.benchmarks else {}
        return super().contents() | files

    def model_paths(self) -> dict[str, str | Path]:
        return {self.name: self.model}

    def units(self) -> list[dict[str, Any]]:
        return [{"model": self.name, "scheme": scheme, "weights": "trained"} for scheme in self.schemes]

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Documents]:
        """The documents of each domain in data/text."""
        files = {domain: Path(f"data/text/{domain}.txt") for domain in DOMAINS}
        files |= {self.text.stem: self.text} if self.text else {}
        return {
            domain: read_documents(file, tokenizer, self.longest, self.tokens_per_domain)
            for domain, file in files.items()
        }

    def loaded(self, scheme: str, context_length: int | None = None) -> Llama:
        """The target in a scheme."""
        text = calibration_text_beside(self.model)
        target = quantized_target(self.model, scheme, self.keep_targets_in, device=self.device, calibration_text=text)
        return load_model(target, None, named_dtype(self.dtype), self.device, context_length)


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


def require_room(model: Llama, texts: Mapping[str, Documents]) -> None:
    """Raises SpecquantError where a document is longer than what the model can read."""
    longest = max((len(tokens) for documents in texts.values() for tokens in documents), default=0)
    if longest > model.context_length:
        raise SpecquantError(
            f"a document of {longest} tokens does not fit the model's context of {model.context_length}: give "
            f"--longest {model.context_length}, or less"
        )


@torch.inference_mode()
def predict(model: Llama, documents: Documents) -> Prediction:
    """Run every document once, each from an empty cache."""
    loss, count, greedy = 0.0, 0, []
    for tokens in documents:
        ids = torch.tensor(tokens, device=model.device)
        logits = model.logits(model.prefill(ids, model.new_cache(len(tokens))))
        require_numbers(logits)
        loss += float(F.cross_entropy(logits[:-1].double(), ids[1:], reduction="sum"))
        count += len(tokens) - 1
        greedy.append(logits.argmax(dim=-1))
    return Prediction(math.exp(loss / count), torch.cat(greedy))


def quality(
    model: Llama,
    name: str,
    weights: str,
    texts: Mapping[str, Documents],
    reference: Mapping[str, Prediction] | None = None,
) -> tuple[pd.DataFrame, dict[str, Prediction]]:
    """One row per domain of `texts`: perplexity and agreement with `reference`, the fp16 model's predictions.

    name, weights: what those columns say. Returns the rows and this model's own predictions; without a reference it is
    its own, and agrees with itself. Raises SpecquantError as `require_room`.
    """
    require_room(model, texts)
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


class Read(NamedTuple):
    """Tokens to predict: all behind the first `given`, which are a document's first one, or a question's prompt."""

    tokens: list[int]
    given: int


def answers(parameters: Parameters, model: Llama, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Read]]:
    """What a model answers greedily to the first turn of benchmarks' questions, by task."""
    read: dict[str, list[Read]] = {}
    speculator = Speculator(graphed(model))
    longest = longest_prompt([speculator], parameters.max_new_tokens)
    for name in parameters.benchmarks:
        benchmark = get_benchmark(name)
        for question in tqdm(
            read_questions(benchmark, parameters.data_dir, parameters.limit)[0], desc=name, leave=False
        ):
            prompt, _ = prompt_tokens(benchmark, question, [], tokenizer, longest)
            answer = generate(speculator, tokenizer, prompt, parameters.max_new_tokens).token_ids
            read.setdefault(ANSWERS + question.task, []).append(Read(prompt + answer, len(prompt)))
    return read


@torch.inference_mode()
def compare(model: Llama, reference: Llama, read: Sequence[Read]) -> Iterator[dict[str, float]]:
    """What two models make of each document: positions, and sums over them.

    tokens: after which something is predicted. agreed: after how many both models' likeliest next tokens are the same.
    divergence: of the model's distributions from the reference's (Kullback-Leibler, nats). predicted: tokens, with the
    negative log-likelihoods of both models, `loss` and `reference_loss`, in nats.
    """
    for tokens, given in read:
        ids = torch.tensor(tokens, device=model.device)
        both = [each.logits(each.prefill(ids, each.new_cache(len(tokens)))[given - 1 :]) for each in (model, reference)]
        for logits in both:
            require_numbers(logits)
        ours, theirs = (logits.double().log_softmax(-1) for logits in both)
        chosen = ids[given:, None]
        yield {
            "tokens": len(ours),
            "agreed": int((ours.argmax(-1) == theirs.argmax(-1)).sum()),
            "divergence": float((theirs.exp() * (theirs - ours)).sum()),
            "predicted": len(chosen),
            "loss": -float(ours[:-1].gather(1, chosen).sum()),
            "reference_loss": -float(theirs[:-1].gather(1, chosen).sum()),
        }


def compared(documents: pd.DataFrame) -> dict[str, Any]:
    """A row of quality.csv from rows of `compare`; intervals are over documents, or over questions."""
    more = over_questions_with("more", documents.loss - documents.reference_loss, documents.predicted)
    agreed = over_questions_with("agreement", documents.agreed, documents.tokens)
    ends = ("", "_low", "_high")
    return {
        "tokens": int(documents.tokens.sum()),
        "documents": len(documents),
        "perplexity": math.exp(documents.loss.sum() / documents.predicted.sum()),
        **{f"increase_percent{end}": 100 * math.expm1(more[f"more{end}"]) for end in ends},
        **{f"agreement_percent{end}": 100 * agreed[f"agreement{end}"] for end in ends},
        **over_questions_with("divergence", documents.divergence, documents.tokens),
    }


def run(parameters: Parameters, units: Sequence[dict]) -> Measured:
    """Read all text by each scheme's target, beside the fp16 target, which also writes the answers."""
    tokenizer = load_tokenizer(parameters.model)
    reference, texts = parameters.loaded("fp16"), parameters.texts(tokenizer)
    require_room(reference, texts)
    read = {domain: [Read(tokens, 1) for tokens in documents] for domain, documents in texts.items()}
    read |= answers(parameters, reference, tokenizer)
    for unit in units:
        model = reference if unit["scheme"] == "fp16" else parameters.loaded(unit["scheme"])
        try:
            rows = [
                {"domain": domain} | compared(pd.DataFrame(compare(model, reference, documents)))
                for domain, documents in tqdm(read.items(), desc=unit["scheme"], unit="domain", leave=False)
            ]
            yield unit, pd.DataFrame(rows)
        except NoNumbers as error:
            yield unit, left_out(unit, error)
        del model
        free(parameters.device)


def by_scheme(rows: pd.DataFrame, schemes: Sequence[str]) -> pd.DataFrame:
    """For each scheme the mean over domains of the increase in perplexity and of the agreement, in percent."""
    columns = ["increase_percent", "agreement_percent"]
    return rows.groupby("scheme")[columns].mean().reindex(list(schemes))


def domain_label(domain: str) -> str:
    return "WikiText-2" if domain == WIKITEXT2 else domain


def beside_fp16(rows: pd.DataFrame, text: str) -> pd.DataFrame:
    """For each scheme but FP16, the best first: what it loses on a text, with intervals, and what on answers, over the
    tasks. rows: quality.csv of one model, with intervals."""
    of_text = rows[(rows.domain == text) & (rows.scheme != "fp16")].sort_values("increase_percent")
    of_answers = rows[rows.domain.str.startswith(ANSWERS)].groupby("scheme")
    cells = {}
    for _, row in of_text.iterrows():
        ends = of_answers.get_group(row.scheme)[["agreement_percent", "divergence"]].agg(["min", "max"])
        cells[row.scheme] = {
            "perplexity": row.perplexity,
            "above FP16 (%)": told_with_interval(row, "increase_percent", 1),
            "agreement (%)": told_with_interval(row, "agreement_percent", 1),
            "divergence (nats)": told_with_interval(row, "divergence", 3),
            "agreement on answers (%)": "{:.1f} to {:.1f}".format(*ends.agreement_percent),
            "divergence on answers": "{:.3f} to {:.3f}".format(*ends.divergence),
        }
    return pd.DataFrame.from_dict(cells, orient="index").rename_axis("scheme")


def draw(frame: pd.DataFrame) -> Figure:
    """Held-out perplexity of each scheme over that of FP16, or of the first one where FP16 was not measured, in
    percent, by domain, with its interval where it has one. `frame`: quality.csv, whose answers are left out."""
    frame = frame[~frame.domain.str.startswith(ANSWERS)]
    reference = "fp16" if "fp16" in set(frame["scheme"]) else frame["scheme"].iloc[0]
    schemes = [scheme for scheme in in_order(frame["scheme"], SCHEMES) if scheme != reference]
    figure, (axis,) = new_figure(height_in=0.9 + 0.19 * len(schemes))
    looks = (("#0173b2", "o"), ("#de8f05", "s"), ("#029e73", "^"), ("#cc78bc", "D"))
    for (color, marker), (domain, rows) in zip(looks, frame.groupby("domain"), strict=False):
        of = rows.set_index("scheme")
        more = 100 * (of.perplexity / of.perplexity[reference] - 1)
        axis.plot(more[schemes], range(len(schemes)), marker, color=color, label=domain_label(str(domain)))
        if "increase_percent_low" in of and of.increase_percent_low.notna().all():
            ends = of.loc[schemes, ["increase_percent_low", "increase_percent_high"]].to_numpy().T
            axis.hlines(range(len(schemes)), *ends, color=color, linewidth=0.7)
    axis.axvline(0, color="0.4", linewidth=0.6)
    row_for_each(
        figure,
        axis,
        [mark(scheme, SCHEMES).label for scheme in schemes],
        f"perplexity above {mark(reference, SCHEMES).label} (%)",
        columns=4,
    )
    return figure


MEASURE = Measure((TABLES["quality"],), Parameters, run, "none")
