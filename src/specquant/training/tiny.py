"""From text to the models in data/tiny: the whole recipe.

target: trained on the corpora. It then continues pieces of them: its own text never runs out, and is what drafts are
judged on. intermediate: distilled from the target on both. One EAGLE head for each. Everything is measured on held-out
text and recorded in training.json, from which the README.md is written.

    specquant train-tiny --corpora DIR --out DIR [--device cuda] [--budget 1.0]
"""

import dataclasses
import hashlib
import json
import math
import os
import platform
import shutil
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from specquant.errors import SpecquantError
from specquant.files import require_writable, write_file
from specquant.models.device import choose_device
from specquant.training.card import write_card
from specquant.training.corpora import Document, load_corpora
from specquant.training.data import Data, Reading, draft_rows, next_token_losses
from specquant.training.eagle import EagleHead, head_loss
from specquant.training.fit import Schedule
from specquant.training.heads import head_config
from specquant.training.learning import learn
from specquant.training.recipe import Recipe
from specquant.training.running import add_dropout, autocast, compiled, in_bf16
from specquant.training.sample import NOT_GIVEN, write_rows
from specquant.training.saving import rounded, save_head, save_model
from specquant.training.tokenizer import BEGIN_ID, END_ID, train_tokenizer

# How calibration documents begin: half of them with nothing, half with one of these.
OPENERS = ("Question: ", "Question: A ", "import ", '"""', "class ", "def ", "The ", "In ", "First Citizen:\n", "KING ")


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
    recipe, out_dir, device = recipe or Recipe(), Path(out_dir), torch.device(choose_device(device))
    started = time.monotonic()
    corpora = load_corpora(corpora_dir)
    checkpoints = _open_checkpoints(out_dir, recipe, corpora)

    print("tokenizer", flush=True)
    tokenizer = train_tokenizer(
        [document.text for document in corpora if not document.held_out], recipe.vocabulary_size, recipe.row_length
    )
    data = Data(corpora, tokenizer, recipe, device)
    training, held_out = {}, {}

    target = new_model(recipe.target_shape, tokenizer, recipe)
    training["target"] = train_target(target, data, recipe, checkpoints, device)
    held_out["target"] = _save(target, tokenizer, data, out_dir / "target")
    written = written_text(target, data, recipe, checkpoints)
    write_calibration_text(target, tokenizer, recipe, out_dir / "calibration.txt")

    intermediate = new_model(recipe.intermediate_shape, tokenizer, recipe)
    training["intermediate"] = train_intermediate(intermediate, target, data, written, recipe, checkpoints, device)
    held_out["intermediate"] = _save(intermediate, tokenizer, data, out_dir / "intermediate")

    heads = {}
    for name, model, schedule in (
        ("target", target, recipe.eagle_target),
        ("intermediate", intermediate, recipe.eagle_intermediate),
    ):
        head = EagleHead(head_config(model.config))
        training[f"eagle-{name}"] = train_head(
            f"eagle-{name}", head, model, data, written, schedule, recipe, checkpoints, device
        )
        save_head(head, head_config(model.config), out_dir / f"eagle-{name}")
        heads[name] = rounded(head)

    print("evaluation", flush=True)
    held_out["agreement"] = data.agreement(intermediate, target)
    models = {"target": target, "intermediate": intermediate}
    held_out["accepted_length"] = {name: data.accepted_lengths(heads[name], model) for name, model in models.items()}
    log = _about(command, device, recipe, data) | {"training": training, "held_out": held_out}
    log["seconds"] = round(time.monotonic() - started, 1)
    write_file(out_dir / "training.json", json.dumps(log, indent=1) + "\n")
    write_card(out_dir)
    shutil.rmtree(checkpoints)
    return log


def _about(command: str, device: torch.device, recipe: Recipe, data: Data) -> dict:
    """What training.json says of a run as a whole."""
    return {
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
    }


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, data: Data, path: Path) -> dict:
    """Write a model, which then has the weights that were written; returns its held-out losses before and then."""
    save_model(model, tokenizer, path)
    return {"loss_fp32": data.held_out_losses(model), "loss_fp16": data.held_out_losses(rounded(model))}


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


def train_target(model: LlamaForCausalLM, data: Data, recipe: Recipe, checkpoints: Path, device: torch.device) -> dict:
    """Next-token prediction on the corpora, with dropout, since they are small and read many times."""
    model.to(device)
    text = Reading(data, data.training_rows(recipe.target_rows, recipe.seed).batch)
    hooks = add_dropout(model, recipe.target_dropout)

    def loss(rows: torch.Tensor) -> torch.Tensor:
        with autocast(device):
            return next_token_losses(model, rows).mean()

    with compiled(model, text, loss):
        run = learn("target", model, text, loss, recipe.target, recipe.seed, checkpoints)
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
        rows = write_rows(in_bf16(target), prompts, recipe.row_length, temperatures, recipe.seed, "target writes")
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.save(file, rows.to(torch.int32).cpu().numpy())
        os.replace(temporary, path)
    return torch.from_numpy(np.load(path).astype(np.int64)).to(device)


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
    text, seed = draft_rows(data, written, recipe.intermediate_rows, recipe.seed + 1), recipe.seed + 1
    teacher, distillation = in_bf16(target), Distillation(recipe.greedy_weight)

    def loss(rows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            teacher_logits = teacher(input_ids=rows, use_cache=False).logits
        with autocast(device):
            logits = model(input_ids=rows, use_cache=False).logits
        return distillation(logits, teacher_logits)

    with compiled(model, text, loss, *teacher.model.layers, distillation):
        return learn("intermediate", model, text, loss, recipe.intermediate, seed, checkpoints)


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
    text, seed = draft_rows(data, written, recipe.eagle_rows, recipe.seed + 2), recipe.seed + 2

    def loss(rows: torch.Tensor) -> torch.Tensor:
        with autocast(device):
            return head_loss(head, model, rows, recipe.eagle_depth)

    return learn(name, head, text, loss, schedule, seed, checkpoints)


def write_calibration_text(target: LlamaForCausalLM, tokenizer, recipe: Recipe, path: Path) -> None:
    """Documents that the target writes at temperature 1, separated by lines that hold one form feed.

    Read it with `path.read_text(encoding="utf-8").split("\\n\\f\\n")`.
    """
    count = math.ceil(recipe.calibration_tokens / 200)  # a document ends early, or at half a row
    openers = [OPENERS[i // 2 % len(OPENERS)].rstrip(" ") if i % 2 else "" for i in range(count)]
    ids = [torch.tensor(ids) for ids in tokenizer(openers)["input_ids"]]
    prompts = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=NOT_GIVEN).to(target.device)
    temperatures = torch.ones(count, device=target.device)
    documents = write_rows(
        in_bf16(target), prompts, recipe.row_length // 2, temperatures, recipe.seed, "calibration"
    ).tolist()
    texts, tokens = [], 0
    order = np.random.default_rng(recipe.seed).permutation(len(documents))
    for ids in (documents[i] for i in order):
        ids = ids[1 : ids.index(END_ID, 1) if END_ID in ids[1:] else None]
        text = tokenizer.decode(ids, skip_special_tokens=True).strip("\n")
        if tokens < recipe.calibration_tokens and text.strip() and "\ufffd" not in text and "\f" not in text:
            texts.append(text)
            tokens += len(ids)
    write_file(path, "\n\f\n".join(texts) + "\n")


def _open_checkpoints(out_dir: Path, recipe: Recipe, corpora: list[Document]) -> Path:
    """The checkpoint directory of this recipe on this text, new or from an interrupted run."""
    digest = hashlib.sha256()
    for document in corpora:
        digest.update(document.text.encode())
    identity = json.dumps({"recipe": dataclasses.asdict(recipe), "corpora": digest.hexdigest()}, indent=1)
    checkpoints = out_dir / "checkpoints"
    recorded = checkpoints / "recipe.json"
    require_writable(out_dir)
    if not recorded.exists():
        write_file(recorded, identity)
    if recorded.read_text(encoding="utf-8") != identity:
        raise SpecquantError(
            f"{checkpoints} belongs to a run with another recipe or other text; remove it, or choose another --out"
        )
    return checkpoints
