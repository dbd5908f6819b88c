"""From text to the models in data/tiny: the whole recipe.

target: trained on the corpora. It then continues pieces of them: its own text never runs out, and is what drafts are
judged on. intermediate: distilled from the target on both. One EAGLE head for each. Everything is measured on held-out
text and recorded in training.json, from which the model card is written.

    specquant train-tiny --corpora DIR --out DIR [--device cuda] [--budget 1.0]
"""

import copy
import dataclasses
import hashlib
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from specquant.errors import SpecquantError
from specquant.training.card import write_card
from specquant.training.corpora import DOMAINS, Document, load_corpora
from specquant.training.eagle import EagleHead, chain_accepted_lengths, head_loss
from specquant.training.fit import Schedule, fit
from specquant.training.rows import MixedRows, encode, pack
from specquant.training.sample import NOT_GIVEN, write_rows
from specquant.training.tokenizer import BEGIN_ID, END_ID, train_tokenizer

TARGET_SHAPE = {
    "hidden_size": 384,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 1024,
}
INTERMEDIATE_SHAPE = {
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
}
# How calibration documents begin: half of them with nothing, half with one of these.
OPENERS = ("Question: ", "Question: A ", "import ", '"""', "class ", "def ", "The ", "In ", "First Citizen:\n", "KING ")

WRITTEN = "written"  # beside the domains of the corpora: text that the target wrote


@dataclass(frozen=True)
class Recipe:
    """Every choice of the recipe. Rows are sequences of row_length tokens; `*_rows` say how many a step reads."""

    seed: int = 0
    vocabulary_size: int = 4096
    row_length: int = 1024
    target_shape: dict = field(default_factory=lambda: dict(TARGET_SHAPE))
    intermediate_shape: dict = field(default_factory=lambda: dict(INTERMEDIATE_SHAPE))

    # About in proportion to the text, so that all domains are read equally often (about 16 times).
    target: Schedule = field(default=Schedule(steps=2400, learning_rate=2e-3, weight_decay=1.0))
    target_rows: dict = field(default_factory=lambda: {"mathematics": 9, "code": 17, "prose": 6})
    target_dropout: float = 0.2

    # In all: rows of the corpora of which the target reads up to a quarter and writes the rest.
    written_rows: dict = field(default_factory=lambda: {"mathematics": 2560, "code": 5120, "prose": 2560})
    coldest: float = 0.6  # temperatures of what it writes
    hottest: float = 1.2
    intermediate: Schedule = field(default=Schedule(steps=9000, learning_rate=8e-3, weight_decay=0.1, muon=True))
    intermediate_rows: dict = field(default_factory=lambda: {"mathematics": 7, "code": 11, "prose": 6, WRITTEN: 40})
    greedy_weight: float = 0.5  # of the target's most likely token, beside its distribution
    eagle_target: Schedule = field(default=Schedule(steps=2500, learning_rate=1e-3, weight_decay=0.05))
    eagle_intermediate: Schedule = field(default=Schedule(steps=1500, learning_rate=1e-3, weight_decay=0.05))
    eagle_rows: dict = field(default_factory=lambda: {"mathematics": 4, "code": 5, "prose": 3, WRITTEN: 12})
    eagle_depth: int = 3

    evaluation_rows: int = 24  # per domain, while training; at the end all
    prompts: int = 32  # per domain, for accepted lengths
    prompt_tokens: int = 64
    continuation_tokens: int = 192
    calibration_tokens: int = 24_000

    def scaled(self, budget: float) -> "Recipe":
        """The same recipe with `budget` times the steps and the text that the target writes."""
        if not 0 < budget < math.inf:
            raise SpecquantError(f"a budget of {budget:g} trains nothing; give a positive number (1: the whole recipe)")

        def steps(schedule: Schedule) -> Schedule:
            return dataclasses.replace(schedule, steps=max(1, round(schedule.steps * budget)))

        return dataclasses.replace(
            self,
            target=steps(self.target),
            intermediate=steps(self.intermediate),
            eagle_target=steps(self.eagle_target),
            eagle_intermediate=steps(self.eagle_intermediate),
            written_rows={domain: max(1, round(count * budget)) for domain, count in self.written_rows.items()},
        )


def train_tiny(
    corpora_dir: Path,
    out_dir: Path,
    recipe: Recipe | None = None,
    device: str | None = None,
    command: str = "specquant train-tiny",
) -> dict:
    """Train target, intermediate and their EAGLE heads; write data/tiny's content to out_dir; return training.json's.

    device defaults to "cuda" where there is one. Checkpoints lie in out_dir/checkpoints: called again after an
    interruption, it continues there; at the end they are removed. Raises SpecquantError for missing corpora, an
    unwritable out_dir, or checkpoints of another recipe.
    """
    recipe = recipe or Recipe()
    out_dir = Path(out_dir)
    try:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise SpecquantError(f"there is no device {device!r} here: leave it out for the best there is") from None
    if device.type not in ("cpu", "cuda") or (device.index or 0) >= max(1, torch.cuda.device_count()):
        raise SpecquantError(f"there is no device '{device}' here: leave it out for the best there is")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SpecquantError("no CUDA device here; train with --device cpu (hours), or on a machine with a GPU")
    started = time.monotonic()
    corpora = load_corpora(corpora_dir)
    checkpoints = _open_checkpoints(out_dir, recipe, corpora)

    print("tokenizer", flush=True)
    tokenizer = train_tokenizer(
        [document.text for document in corpora if not document.held_out], recipe.vocabulary_size, recipe.row_length
    )
    data = Data(corpora, tokenizer, recipe, device)
    log = {
        "command": command,
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "recipe": dataclasses.asdict(recipe),
        "corpora": data.sizes,
        "training": {},
    }

    target = new_model(recipe.target_shape, tokenizer, recipe)
    log["training"]["target"] = train_target(target, data, recipe, checkpoints, device)
    save_model(target, tokenizer, out_dir / "target")
    target_loss = data.held_out_losses(target)
    target = rounded(target)

    written = written_text(target, data, recipe, checkpoints)
    write_calibration(target, tokenizer, recipe, out_dir / "calibration.txt")

    intermediate = new_model(recipe.intermediate_shape, tokenizer, recipe)
    log["training"]["intermediate"] = train_intermediate(
        intermediate, target, data, written, recipe, checkpoints, device
    )
    save_model(intermediate, tokenizer, out_dir / "intermediate")
    intermediate_loss = data.held_out_losses(intermediate)
    intermediate = rounded(intermediate)

    heads = {}
    for name, model, schedule in (
        ("target", target, recipe.eagle_target),
        ("intermediate", intermediate, recipe.eagle_intermediate),
    ):
        head = EagleHead(head_config(model.config))
        log["training"][f"eagle-{name}"] = train_head(
            f"eagle-{name}", head, model, data, written, schedule, recipe, checkpoints, device
        )
        save_head(head, head_config(model.config), out_dir / f"eagle-{name}")
        heads[name] = rounded(head)

    print("evaluation", flush=True)
    log["held_out"] = {
        "target": {"loss_fp32": target_loss, "loss_fp16": data.held_out_losses(target)},
        "intermediate": {"loss_fp32": intermediate_loss, "loss_fp16": data.held_out_losses(intermediate)},
        "agreement": data.agreement(intermediate, target),
        "accepted_length": {
            "target": data.accepted_lengths(heads["target"], target),
            "intermediate": data.accepted_lengths(heads["intermediate"], intermediate),
        },
    }
    log["seconds"] = round(time.monotonic() - started, 1)
    _write_text(out_dir / "training.json", json.dumps(log, indent=1) + "\n")
    write_card(out_dir)
    shutil.rmtree(checkpoints)
    return log


class Data:
    """The corpora as rows of tokens on both sides of the split, and what is measured on the held-out side."""

    def __init__(self, corpora: list[Document], tokenizer, recipe: Recipe, device: torch.device):
        self.recipe, self.device = recipe, device
        self.training, self.held_out, self.sizes = {}, {}, {}
        for domain in DOMAINS:
            documents = [document for document in corpora if document.domain == domain]
            training = encode(tokenizer, [document.text for document in documents if not document.held_out])
            held_out = encode(tokenizer, [document.text for document in documents if document.held_out])
            self.training[domain] = training
            self.held_out[domain] = torch.from_numpy(pack(held_out, recipe.row_length)).to(device)
            self.sizes[domain] = {
                "documents": len(documents),
                "training_tokens": sum(map(len, training)),
                "held_out_tokens": sum(map(len, held_out)),
            }

    def training_rows(self, rows_of: dict[str, int], seed: int) -> MixedRows:
        return MixedRows(self.training, rows_of, self.recipe.row_length, seed, self.device)

    @torch.no_grad()
    def mean_loss(self, loss: Callable[[torch.Tensor], torch.Tensor]) -> float:
        """Mean over domains of a loss on their first held-out rows: what chooses the best weights of a run."""
        with _autocast(self.device), torch.compiler.set_stance("force_eager"):
            losses = [loss(rows[: self.recipe.evaluation_rows]) for rows in self.held_out.values()]
        return torch.stack(losses).mean().item()

    @torch.no_grad()
    def held_out_losses(self, model: LlamaForCausalLM) -> dict[str, float]:
        """Nats per token on all held-out rows, fp32: per domain, and their mean."""
        with torch.compiler.set_stance("force_eager"):
            return self._per_domain(
                lambda rows: np.concatenate([next_token_losses(model, r).cpu().numpy() for r in rows.split(8)])
            )

    @torch.no_grad()
    def agreement(self, model: LlamaForCausalLM, other: LlamaForCausalLM) -> dict[str, float]:
        """The fraction of held-out positions where both models' most likely tokens are the same."""

        def same(rows: torch.Tensor) -> np.ndarray:
            return np.concatenate(
                [(model(r).logits.argmax(-1) == other(r).logits.argmax(-1)).cpu().numpy() for r in rows.split(8)]
            )

        return self._per_domain(same)

    def accepted_lengths(self, head: EagleHead, model: LlamaForCausalLM) -> dict[str, float]:
        """Mean accepted length of greedy chains of 5 drafts where the model continues held-out prompts greedily."""
        recipe = self.recipe

        def lengths(rows: torch.Tensor) -> np.ndarray:
            prompts = rows[: recipe.prompts, : recipe.prompt_tokens]
            length = recipe.prompt_tokens + recipe.continuation_tokens
            greedy = torch.zeros(len(prompts), device=self.device)
            texts = write_rows(model, prompts, length, greedy, recipe.seed, "greedy text")
            return chain_accepted_lengths(head, model, texts, recipe.prompt_tokens, END_ID)

        return self._per_domain(lengths)

    def _per_domain(self, measure: Callable[[torch.Tensor], np.ndarray]) -> dict[str, float]:
        means = {domain: float(measure(rows).mean()) for domain, rows in self.held_out.items()}
        return {**means, "mean": sum(means.values()) / len(means)}


def new_model(shape: dict, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> LlamaForCausalLM:
    """A Llama with fresh weights (seeded), tied embeddings, and head dimension 64."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        **shape,
        head_dim=64,
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        max_position_embeddings=recipe.row_length,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=BEGIN_ID,
        eos_token_id=END_ID,
    )
    return LlamaForCausalLM(config)


def next_token_losses(model: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """Nats of each token after the first: [rows, length - 1], fp32."""
    logits = model(input_ids=rows, use_cache=False).logits[:, :-1].float()
    return F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")


def train_target(model: LlamaForCausalLM, data: Data, recipe: Recipe, checkpoints: Path, device: torch.device) -> dict:
    """Next-token prediction on the corpora, with dropout, since they are small and read many times."""
    model.to(device)
    rows = data.training_rows(recipe.target_rows, recipe.seed)
    hooks = _add_dropout(model, recipe.target_dropout)

    def loss_at(step: int) -> torch.Tensor:
        with _autocast(device):
            return next_token_losses(model, rows.batch(step)).mean()

    def held_out_loss() -> float:
        return data.mean_loss(lambda r: next_token_losses(model, r).mean())

    with _compiled(model, loss_at):
        run = fit("target", model, loss_at, held_out_loss, recipe.target, recipe.seed, checkpoints / "target.pt")
    for hook in hooks:
        hook.remove()
    return run


def written_text(target: LlamaForCausalLM, data: Data, recipe: Recipe, checkpoints: Path) -> torch.Tensor:
    """Rows that begin as the corpora's and that the target continues, each at its own temperature: [rows, row_length].

    How much it is given is drawn too, from the beginning token alone to a quarter of the row.
    """
    path = checkpoints / "written.npy"
    device = target.device
    if not path.exists():
        random = torch.Generator().manual_seed(recipe.seed)
        prompts = data.training_rows(recipe.written_rows, recipe.seed + 3).batch(0)[:, : recipe.row_length // 4]
        prompts = prompts[torch.randperm(len(prompts), generator=random).to(device)]
        given = torch.randint(1, prompts.shape[1] + 1, (len(prompts), 1), generator=random).to(device)
        prompts = prompts.where(torch.arange(prompts.shape[1], device=device) < given, NOT_GIVEN)
        temperatures = torch.linspace(recipe.coldest, recipe.hottest, len(prompts))
        temperatures = temperatures[torch.randperm(len(prompts), generator=random)].to(device)
        rows = write_rows(_in_bf16(target), prompts, recipe.row_length, temperatures, recipe.seed, "target writes")
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.save(file, rows.to(torch.int32).cpu().numpy())
        os.replace(temporary, path)
    return torch.from_numpy(np.load(path).astype(np.int64)).to(device)


def _draft_rows(data: Data, written: torch.Tensor, rows_of: dict[str, int], seed: int) -> Callable[[int], torch.Tensor]:
    """Batches that drafters learn from: rows of the corpora first, then rows that the target wrote."""
    count = rows_of[WRITTEN]
    corpora_rows = data.training_rows({domain: rows_of[domain] for domain in DOMAINS}, seed)
    cycle = torch.arange(count, device=written.device)

    def batch(step: int) -> torch.Tensor:
        return torch.cat((corpora_rows.batch(step), written[(step * count + cycle) % len(written)]))

    return batch


def train_intermediate(
    model: LlamaForCausalLM,
    target: LlamaForCausalLM,
    data: Data,
    written: torch.Tensor,
    recipe: Recipe,
    checkpoints: Path,
    device: torch.device,
) -> dict:
    """Distillation from the target, on the corpora and on what it wrote."""
    model.to(device)
    batch = _draft_rows(data, written, recipe.intermediate_rows, recipe.seed + 1)
    teacher, distillation = _in_bf16(target), Distillation(recipe.greedy_weight)

    def loss(rows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            teacher_logits = teacher(input_ids=rows, use_cache=False).logits
        with _autocast(device):
            logits = model(input_ids=rows, use_cache=False).logits
        return distillation(logits, teacher_logits)

    def loss_at(step: int) -> torch.Tensor:
        return loss(batch(step))

    def held_out_loss() -> float:
        return data.mean_loss(loss)

    seed = recipe.seed + 1
    checkpoint = checkpoints / "intermediate.pt"
    with _compiled(model, loss_at, *teacher.model.layers, distillation):
        return fit("intermediate", model, loss_at, held_out_loss, recipe.intermediate, seed, checkpoint)


class Distillation(nn.Module):
    """Mean cross-entropy against a teacher's distribution and, by `greedy_weight`, against its most likely token.

    The distribution is what sampling is judged on, the most likely token what greedy decoding is. (A module, so that
    it can be compiled: its tensors are the largest of a training step.)
    """

    def __init__(self, greedy_weight: float):
        super().__init__()
        self.greedy_weight = greedy_weight

    def forward(self, logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
        """logits, teacher_logits: [rows, length, vocabulary]."""
        log_probabilities = logits.float().log_softmax(-1)
        teacher_logits = teacher_logits.float()
        distribution = (teacher_logits.softmax(-1) * log_probabilities).sum(-1)
        greedy = log_probabilities.gather(-1, teacher_logits.argmax(-1, keepdim=True))[..., 0]
        return -((1 - self.greedy_weight) * distribution + self.greedy_weight * greedy).mean()


def head_config(model_config: LlamaConfig) -> LlamaConfig:
    """The config of a model's EAGLE head: one layer of the model's own shape."""
    fields = model_config.to_dict()
    fields.update(num_hidden_layers=1, architectures=["EagleHead"], bias=True)
    return LlamaConfig.from_dict(fields)


def train_head(
    name: str,
    head: EagleHead,
    model: LlamaForCausalLM,
    data: Data,
    written: torch.Tensor,
    schedule: Schedule,
    recipe: Recipe,
    checkpoints: Path,
    device: torch.device,
) -> dict:
    """EAGLE's loss, unrolled over the head's own predictions `recipe.eagle_depth` deep. The model stays as it is."""
    head.to(device)
    batch = _draft_rows(data, written, recipe.eagle_rows, recipe.seed + 2)

    def loss_at(step: int) -> torch.Tensor:
        with _autocast(device):
            return head_loss(head, model, batch(step), recipe.eagle_depth)

    def held_out_loss() -> float:
        return data.mean_loss(lambda rows: head_loss(head, model, rows, recipe.eagle_depth))

    return fit(name, head, loss_at, held_out_loss, schedule, recipe.seed + 2, checkpoints / f"{name}.pt")


def write_calibration(target: LlamaForCausalLM, tokenizer, recipe: Recipe, path: Path) -> None:
    """Documents that the target writes at temperature 1, separated by lines that hold one form feed.

    Read it with `path.read_text(encoding="utf-8").split("\\n\\f\\n")`.
    """
    count = math.ceil(recipe.calibration_tokens / 200)  # a document ends early, or at half a row
    openers = [OPENERS[i // 2 % len(OPENERS)].rstrip(" ") if i % 2 else "" for i in range(count)]
    ids = [torch.tensor(ids) for ids in tokenizer(openers)["input_ids"]]
    prompts = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=NOT_GIVEN).to(target.device)
    temperatures = torch.ones(count, device=target.device)
    documents = write_rows(
        _in_bf16(target), prompts, recipe.row_length // 2, temperatures, recipe.seed, "calibration"
    ).tolist()
    texts, tokens = [], 0
    order = np.random.default_rng(recipe.seed).permutation(len(documents))
    for ids in (documents[i] for i in order):
        ids = ids[1 : ids.index(END_ID, 1) if END_ID in ids[1:] else None]
        text = tokenizer.decode(ids, skip_special_tokens=True).strip("\n")
        if tokens < recipe.calibration_tokens and text.strip() and "\ufffd" not in text and "\f" not in text:
            texts.append(text)
            tokens += len(ids)
    _write_text(path, "\n\f\n".join(texts) + "\n")


def rounded(module: nn.Module) -> nn.Module:
    """The module with its weights rounded to fp16, as they are saved, and frozen; it computes in fp32 as before."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.half())
    return module.requires_grad_(False).eval()


def save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """Write a Hugging Face directory with fp16 weights and the tokenizer."""
    saved = LlamaForCausalLM(model.config).half()
    saved.load_state_dict(model.state_dict())
    with _new_directory(path) as directory:
        saved.save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def save_head(head: EagleHead, config: LlamaConfig, path: Path) -> None:
    """Write config.json and model.safetensors (fp16, the published names)."""
    config.dtype = torch.float16
    with _new_directory(path) as directory:
        save_file(
            {name: tensor.half().contiguous().cpu() for name, tensor in head.state_dict().items()},
            directory / "model.safetensors",
            metadata={"format": "pt"},
        )
        config.save_pretrained(directory)


@contextmanager
def _new_directory(path: Path) -> Iterator[Path]:
    """A directory that appears under its name only when it is complete, replacing an older one."""
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    shutil.rmtree(path, ignore_errors=True)
    os.replace(temporary, path)


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _open_checkpoints(out_dir: Path, recipe: Recipe, corpora: list[Document]) -> Path:
    """The checkpoint directory of this recipe on this text, new or from an interrupted run."""
    digest = hashlib.sha256()
    for document in corpora:
        digest.update(document.text.encode())
    identity = json.dumps({"recipe": dataclasses.asdict(recipe), "corpora": digest.hexdigest()}, indent=1)
    checkpoints = out_dir / "checkpoints"
    recorded = checkpoints / "recipe.json"
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        if not recorded.exists():
            _write_text(recorded, identity)
    except OSError as error:
        raise SpecquantError(f"cannot write to {out_dir} ({error.strerror}); choose another --out") from error
    if recorded.read_text(encoding="utf-8") != identity:
        raise SpecquantError(
            f"{checkpoints} belongs to a run with another recipe or other text; remove it, or choose another --out"
        )
    return checkpoints


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def _add_dropout(model: LlamaForCausalLM, probability: float) -> list:
    """Dropout on the embedding and on what each block adds to the residual stream: Llama has none of its own."""

    def drop(module: nn.Module, _inputs, output: torch.Tensor) -> torch.Tensor:
        return F.dropout(output, probability, module.training)

    places = [model.model.embed_tokens]
    for layer in model.model.layers:
        places += [layer.self_attn.o_proj, layer.mlp.down_proj]
    return [place.register_forward_hook(drop) for place in places]


def _in_bf16(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The model as it writes and teaches on a GPU, a copy in bf16 (autocast would mix dtypes in the cache)."""
    return copy.deepcopy(model).to(torch.bfloat16) if model.device.type == "cuda" else model


@contextmanager
def _compiled(model: LlamaForCausalLM, loss_at: Callable[[int], torch.Tensor], *others: nn.Module) -> Iterator[None]:
    """Compile the model's layers and other modules of its loss meanwhile, on a GPU.

    Where the compiler does not work, stay with plain PyTorch.
    """
    modules = [*model.model.layers, *others] if model.device.type == "cuda" else []
    for module in modules:
        module.compile(dynamic=False)
    try:
        if modules:
            model.train()
            loss_at(0).backward()
    except Exception as error:  # whatever the compiler raises, training goes on without it
        print(f"torch.compile does not work here ({error.__class__.__name__}: {error}); going on without", flush=True)
        _decompile(modules)
    model.zero_grad(set_to_none=True)
    yield
    _decompile(modules)


def _decompile(modules: list[nn.Module]) -> None:
    for module in modules:
        module._compiled_call_impl = None  # what nn.Module.compile sets
    torch.compiler.reset()
