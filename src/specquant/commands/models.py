"""Commands on models: decode, find the fastest plan, quantize, convert, train."""

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from specquant.commands.options import tell
from specquant.errors import SpecquantError
from specquant.models.options import ADAPTIVE, DraftSettings, ExportFormat, ModelOptions, Quantizer
from specquant.training.options import AllTrainingOptions, HeadOptions, TrainingOptions

PAPER_SETTINGS = DraftSettings()
EAGLE = HeadOptions()


def generate(
    *,
    models: ModelOptions,
    prompt: str,
    chat: bool = False,
    system: str | None = None,
    revision: str | None = None,
    method: str = "autoregressive",
    settings: DraftSettings = PAPER_SETTINGS,
    calibration: Path | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: list[str] | None = None,
    json: bool = False,
) -> None:
    """Continue a prompt by any method.

    Args:
        prompt: The text to continue.
        chat: Put the prompt, a user's message, into the chat template.
        system: A system prompt, with --chat (default: the template's own).
        revision: Branch, tag or commit of a target on the hub (default: its main branch).
        method: {methods}, or auto: what is predicted to be fastest here.
        settings: How the method drafts; auto chooses trees and lengths itself.
        calibration: For auto: what `specquant calibrate` wrote (default: decode a little by every method first).
        max_new_tokens: The most tokens to add.
        temperature: 0 is greedy.
        top_p: Sample from this nucleus; 1 is all.
        seed: Of sampling.
        stop: End before this text; may be repeated.
        json: Print one object, with accepted lengths and tokens per second, instead of streaming text.
    """
    from specquant.benchmarks.chat import chat_prompt
    from specquant.decoding import acceptance_rule, checked_prompt, generate
    from specquant.decoding.method import Plan
    from specquant.decoding.models import Models
    from specquant.models.loading import load_tokenizer
    from specquant.planning.confidences import give_confidence_map

    named = replace(models, model=_at_revision(models.model, revision))
    sampling = {"temperature": temperature, "top_p": top_p}
    rule, ends = acceptance_rule(**sampling, seed=seed), tuple(stop or ())
    if system is not None and not chat:
        raise SpecquantError("--system is for --chat")
    _check_method(method, settings, calibration)
    loaded = Models.of(named)
    if chat:
        prompt = chat_prompt(prompt, load_tokenizer(named.model), system)
    plan: Plan | str = method
    chosen: dict[str, Any] = {}
    pays = None
    if method == "auto":
        from specquant.planning.calibration import choose_plan

        loaded.given_methods()  # refuses what does not fit before anything is loaded
        one_by_one, tokenizer = loaded.speculator("autoregressive"), load_tokenizer(named.model)
        tokens = checked_prompt(one_by_one, tokenizer, prompt, max_new_tokens, ends)
        fastest, speeds, pays = choose_plan(loaded, tokenizer, tokens, calibration, **sampling)
        plan, chosen = fastest, {"plan": asdict(fastest), "predicted_tokens_per_s": speeds}
        if not json:
            told = ", ".join(f"{each} {speed:.0f}" for each, speed in speeds.items())
            tell(f"decoding by {plan}; predicted tokens per second: {told}")
    give_confidence_map(loaded, settings.tree, settings.inner_tree, *([plan.tree] if isinstance(plan, Plan) else []))
    speculator, tokenizer = loaded.speculator(plan, settings, pays), load_tokenizer(named.model)
    _offer_tuning(speculator.model, named.model)
    if speculator.drafter and loaded.rounds_by_draft:
        tell(
            "in half precision a draft can change the text where two tokens are nearly equally likely: --row-invariant "
            "writes what decoding one by one writes"
        )
    show = (lambda text: None) if json else (lambda text: print(text, end="", flush=True))
    generation = generate(speculator, tokenizer, prompt, max_new_tokens, rule, ends, on_text=show)
    print(_as_json(generation, chosen) if json else "")


def _check_method(method: str, settings: DraftSettings, calibration: Path | None) -> None:
    """Raises SpecquantError for an unknown method, and for options that it does not use."""
    from specquant.decoding.drafters import METHODS, check_methods

    if method != "auto":
        if method not in METHODS:
            raise SpecquantError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}, or auto")
        check_methods([method], settings)
        if calibration:
            raise SpecquantError("--calibration is for --method auto")
    elif ADAPTIVE in (settings.tree[0], settings.inner_tree[0], settings.least):
        raise SpecquantError("--method auto chooses how to draft itself: leave out what is to be adaptive")


def _offer_tuning(model, name: Path | str) -> None:
    """Offer tuning where a model runs by configurations that were chosen for other shapes."""
    from specquant.measure.tuning import lacks_configurations

    if lacks_configurations(model):
        tell(
            "no table has fast configurations of the kernels for this model on this card: specquant tune "
            f"{shlex.quote(str(name))} --scheme {model.scheme.name} looks for them for a minute"
        )


def _as_json(generation, chosen: dict) -> str:
    names = ("text", "token_ids", "accepted_lengths", "tokens_per_s", "stopped_by", "prefill_ms")
    return json.dumps({name: getattr(generation, name) for name in names} | chosen)


def _at_revision(model: Path | str, revision: str | None) -> Path | str:
    """The model as a hub id with its revision."""
    from specquant.models.hub import is_hub_id

    if revision is None:
        return model
    if not is_hub_id(model):
        raise SpecquantError(f"--revision is for models on the hub, and {model} is not the name of one")
    if "@" in str(model):
        raise SpecquantError(f"{model} names a revision already: leave out --revision")
    return Path(f"{model}@{revision}")


def calibrate(
    *, models: ModelOptions, prompts_per_task: int = 1, rows: int = 10, out: Path = Path("results/calibration.csv")
) -> None:
    """Decode a little by every method, and tell which plan would be fastest on these models here.

    Args:
        prompts_per_task: How many prompts of each of seven tasks.
        rows: Plans to show, the fastest; the fastest of each other method is shown, too.
        out: The file for `generate --method auto --calibration FILE`.
    """
    from specquant.decoding.models import Models
    from specquant.models.loading import load_tokenizer
    from specquant.planning.calibration import plans_of, write_calibration
    from specquant.planning.planner import fastest
    from specquant.tables.results import read_results

    loaded = Models.of(models)
    loaded.given_methods()  # refuses what does not fit before anything is loaded
    tokenizer = load_tokenizer(models.model)
    _offer_tuning(loaded.target, models.model)
    path = write_calibration(loaded, tokenizer, out, prompts_per_task)
    plans = plans_of(loaded, read_results(path, table="calibration"))
    print(fastest(plans, rows).round(2).to_string(index=False))
    print(path)


def tune(model: Path | str, /, *, scheme: str, seconds: float = 50.0, anew: bool = False) -> None:
    """Find fast kernel configurations for a model's shapes on this GPU, and keep them for later commands.

    Args:
        model: A directory, a GGUF file, a hub id, smollm2, or a name such as llama-3-8b; its weights are not read.
        scheme: How its linear layers are stored, such as w4a16-g128.
        seconds: After how long to stop. Large matrices come first, and the same command goes on with the others.
        anew: Also look again for those that were found before.
    """
    from specquant.measure.tuning import told, tune_here

    print("\n".join(told(tune_here(model, scheme, seconds, anew))))


def quantize(
    model: Path | str,
    /,
    *,
    scheme: str,
    out: Path,
    calibration_text: Path | str | None = None,
    quantizer: Quantizer = "calibrated",
    device: str | None = None,
) -> None:
    """Quantize a model directory into another.

    Args:
        model: Fp16 weights: a directory, a GGUF file, a hub id, or smollm2.
        scheme: Such as w4a16-g128 or w8a8; an unknown one is answered by all names.
        out: The directory to make.
        calibration_text: What the model reads while it is quantized, a file (default: the tiny target's own text).
        quantizer: calibrated (GPTQ, smoothing) or round-to-nearest.
        device: cuda or cpu (default: cuda where there is one).
    """
    from specquant.files import read_text
    from specquant.models.device import choose_device
    from specquant.models.quantize import quantize_model

    if calibration_text is not None:
        read_text(calibration_text, "calibration text")  # round-to-nearest does not
    quantize_model(model, scheme, out, calibration_text, quantizer, choose_device(device))


def export(model: Path | str, /, *, format: ExportFormat, out: Path) -> None:
    """Write a quantized directory in a format that other programs load.

    Args:
        model: A directory that `specquant quantize` wrote.
        format: compressed-tensors, which transformers loads (w4a16-g128, w8a8, fp8), or gptq, which it loads with
            gptqmodel and optimum.
        out: The directory to make.
    """
    from specquant.models.export import export_model

    export_model(model, format, out)


def convert_head(head: Path | str, /, *, model: Path | str, out: Path) -> None:
    """Write an EAGLE head for a rotated target, as other programs need it.

    Args:
        head: As published: a directory, or a hub id.
        model: The target that we rotated.
        out: The directory to make.
    """
    from specquant.models.export import convert_head

    convert_head(head, model, out)


def train_tiny(*, corpora: Path | str, out: Path, device: str | None = None, budget: float = 1.0) -> None:
    """Train the models of data/tiny from text: minutes on one GPU.

    Args:
        corpora: The folder of the four text files.
        out: The folder for models and their README.md.
        device: cuda or cpu (default: cuda where there is one).
        budget: Times the recipe's training steps and written text.
    """
    from specquant.training.tiny import Recipe, train_tiny

    place = out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else out
    command = ["specquant", "train-tiny", "--corpora", str(corpora), "--out", str(place)]
    if budget != 1:
        command += ["--budget", f"{budget:g}"]
    train_tiny(Path(corpora), out, Recipe().scaled(budget), device, shlex.join(command))


def train_head(model: Path | str, /, *, training: TrainingOptions, head: HeadOptions = EAGLE) -> None:
    """Train an EAGLE head for any model, on text that the model itself writes.

    Args:
        model: The target: a directory, a GGUF file, a hub id, or smollm2.
        training: How it is made.
        head: Its kind.
    """
    from specquant.training.prepare import Workshop, make_head

    log = make_head(Workshop.of(model, training), training.out, training.minutes, head)
    print(f"held-out tokens right, by depth: {' '.join(f'{share:.3f}' for share in log['accuracy'])}")


def distill(model: Path | str, /, *, training: TrainingOptions, layers: int = 6) -> None:
    """Make an intermediate model for any target: some of the target's layers, with its embedding and LM head.

    Args:
        model: The target: a directory, a GGUF file, a hub id, or smollm2.
        training: How it is made.
        layers: How many the intermediate model has.
    """
    from specquant.training.prepare import Workshop, make_small

    log = make_small(Workshop.of(model, training), layers, training.out, training.minutes)
    print(f"held-out tokens that are the target's: {log['agreement']:.3f}")


def prepare(model: Path | str, /, *, training: AllTrainingOptions, head: HeadOptions = EAGLE, layers: int = 6) -> None:
    """Make all that the study needs of a model: calibration text, EAGLE head, intermediate model, its head, a profile.

    Args:
        model: The target: a directory, a GGUF file, a hub id, or smollm2.
        training: How it is made.
        head: The kind of both heads; called again with another one, it makes those, too.
        layers: How many the intermediate model has.
    """
    from specquant.training.prepare import Workshop, prepare

    print(prepare(Workshop.of(model, training), layers, training.out, training.minutes, tell, head))
