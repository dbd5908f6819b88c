"""The kinds of cases of `tests.fuzz`: what is damaged or unusual, and what is right then.

A kind is a function of a `Place`: it changes a copy of the family there, drawing everything from `place.random`, and
returns a `Case`. `ROTATION` says how often each has its turn.
"""

import gzip
import json
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from specquant.benchmarks.registry import BENCHMARKS
from specquant.decoding.models import Models
from specquant.files import project_root
from specquant.models.export import export_model
from specquant.models.loading import load_tokenizer
from specquant.models.quantize import quantize_model
from specquant.planning.calibration import calibrate, made_with
from specquant.tables.results import write_results
from tests.commands import is_flag, is_option, leaves
from tests.family import TEXT, write_family, write_random
from tests.models.test_damaged_configs import NUMBERS, ROPES, UNWRITTEN, places
from tests.questions import write_questions

PROMPT = "1 plus 1 makes 2, and 3 times"
METHODS = ("autoregressive", "vanilla", "eagle2", "hierarchical")
SCHEMES = ("w4a16-g128", "w8a8")
QUANTIZED = (*SCHEMES, *(f"compressed-{scheme}" for scheme in SCHEMES), "gptq")
TEXTS = [
    "",
    "x",
    "0",
    "-1",
    "true",
    "float16",
    "a\nb",
    "\ud800",
    "\u00e9" * 3,
    "x" * 5000,
    "../x",
    "<|end|>",
    "é\u202e",
]
VALUES = [None, True, False, *NUMBERS, *TEXTS, [], {}, [[]], [None], {"": None}, {"a": {"b": [1]}}, [1] * 40, ["x", 1]]
VALUES += ROPES
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
WITH_HEAD_DIM = ("llama", "mistral", "qwen3")
# What a person or a script may give an option by mistake. No process can be given a zero byte.
WORDS = [
    "",
    " ",
    ",",
    "-1",
    "0",
    "1",
    "2",
    "0.5",
    "nan",
    "inf",
    "1e400",
    "1_0",
    "\u0663",
    "x",
    "x" * 300,
    ".",
    "..",
    "/proc",
]
WORDS += [
    "/dev/null",
    "/dev/full",
    "~",
    "caf\udce9",
    "\u00e9\n",
    "fp16",
    "fp16,fp16",
    "w8a8,",
    "cpu",
    "cpu:0",
    "cuda:9",
]
WORDS += ["meta", "nowhere", "no/where", "a/b@c", "1,1", "1,x", "24,3", "autoregressive,", str(2**63), "9" * 5000]
WORDS += ["--"]


@dataclass
class Case:
    """Command lines, run in turn until one fails, and what is right.

    expect: "any" (a sentence, or a result that an oracle agrees with), "refused", "same" (the undamaged result),
    "same or refused". reference: the model directory that transformers reads, too, where that can be. forbidden: a file
    that must not come to be, because only code in a file that is data could write it.
    """

    commands: list[list[str]]
    expect: str = "any"
    reference: Path | None = None
    forbidden: Path | None = None


@dataclass
class Place:
    """A case's own folder, with the family and what was made of it as hard links; `edit` gives a file of its own."""

    root: Path
    intact: Path
    random: random.Random
    clone: Path = field(init=False)

    def __post_init__(self):
        shutil.copytree(self.intact, self.root, copy_function=os.link, symlinks=True)
        self.clone = self.root / "clone"

    def write(self, file: Path, content: bytes | str) -> None:
        file.unlink(missing_ok=True)
        file.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)

    def pick(self, options):
        return self.random.choice(list(options))

    def generate(self, model: str = "target", *options: str) -> list[str]:
        method = [] if "--method" in options else ["--method", self.pick(METHODS) if model == "target" else METHODS[0]]
        prompt = [] if "--prompt" in options else ["--prompt", PROMPT]
        return [
            "generate",
            "--model",
            str(self.root / model),
            *method,
            *prompt,
            "--max-new-tokens=6",
            *options,
            "--json",
        ]


def write_intact(root: Path) -> Path:
    """What cases are copies of: the small family, its target in formats of ours and others, a calibration, questions
    and their answers, a text, and a clone with the project's tables."""
    write_family(root)
    (root / "target/generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": [1, 2]}))
    (root / "text.txt").write_text(TEXT)
    write_questions(root / "questions")
    for scheme in SCHEMES:
        quantize_model(root / "target", scheme, root / scheme, method="round-to-nearest", progress=False)
        export_model(root / scheme, "compressed-tensors", root / f"compressed-{scheme}")
    export_model(root / SCHEMES[0], "gptq", root / "gptq")
    project, clone = project_root(), root / "clone"
    for folder in ("notebooks/profiles", "data/recorded/h200", "data/recorded/cpu", "data/published"):
        shutil.copytree(project / folder, clone / folder)
    for notebook in sorted((project / "notebooks").glob("*.ipynb")):
        shutil.copyfile(notebook, clone / "notebooks" / notebook.name)
    for file in ("README.md", "pyproject.toml"):
        shutil.copyfile(project / file, clone / file)
    shutil.copytree(project / "data/text", clone / "data/text")
    shutil.copytree(project / "docs", clone / "docs")
    for name in ("target", "intermediate"):  # `claims` counts their parameters
        (clone / "data/tiny" / name).mkdir(parents=True)
        save_file({"weight": torch.zeros(2, 2)}, clone / "data/tiny" / name / "model.safetensors")
    prompts = map(json.loads, (project / "data/prompts/prompts.jsonl").read_text().splitlines())
    short = [json.dumps(prompt | {"prompt": prompt["prompt"][-30:]}) for prompt in prompts]
    (clone / "data/prompts").mkdir()
    (clone / "data/prompts/prompts.jsonl").write_text("\n".join(short) + "\n")
    _write_calibration(root)
    return root


def _write_calibration(root: Path) -> None:
    """As `specquant calibrate` does, with fewer tokens."""
    companions = {
        name: root / name.replace("_", "-") for name in ("eagle_target", "intermediate", "eagle_intermediate")
    }
    models = Models(root / "target", device="cpu", **companions)
    steps = calibrate(models, load_tokenizer(root / "target"), ["1 plus", "3 times 4 makes", "7"], 16)
    write_results(steps, root / "calibration.csv", made_with(models))


# ---------------------------------------------------------------------------------------------------- JSON and text


def damaged_json(place: Place, fields: dict, unwritten=()) -> dict:
    """With other values, or none, in one or two places."""
    damaged = json.loads(json.dumps(fields))
    known = [*places(fields), *((name,) for name in unwritten)]
    for path in place.random.sample(known, min(len(known), place.pick([1, 1, 2]))):
        section = damaged
        for key in path[:-1]:
            section = section.get(key) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            continue
        if place.random.random() < 0.8:
            section[path[-1]] = json.loads(json.dumps(place.pick(VALUES)))
        else:
            section.pop(path[-1], None)
    return damaged


def damaged_bytes(place: Place, content: bytes) -> bytes:
    """Torn, with changed bytes, with something inside or around it, or something else altogether."""
    random = place.random
    at = random.randrange(len(content) + 1)
    changed = bytearray(content)
    for _ in range(random.choice([1, 3, 20])):
        if changed:
            changed[random.randrange(len(changed))] = random.randrange(256)
    other = [b"", b"null", b"[]", b"{}", b"\xff\xfe\x00", b"[" * 100_000, b"\xef\xbb\xbf" + content, content + content]
    return random.choice(
        [content[:at], bytes(changed), content[:at] + b"\x00" * 8 + content[at:], random.choice(other)]
    )


def json_file(place: Place, file: Path, unwritten=(), section: str | None = None) -> None:
    """Damage a JSON file: mostly its fields, now and then its bytes."""
    content = file.read_bytes()
    if place.random.random() < 0.12:
        place.write(file, damaged_bytes(place, content))
        return
    fields = json.loads(content)
    part = {section: fields[section]} if section else fields
    place.write(
        file,
        json.dumps(fields | damaged_json(place, part, unwritten) if section else damaged_json(place, part, unwritten)),
    )


def config(place: Place) -> Case:
    name = place.pick(["target", "target", "intermediate", "eagle-target", "eagle-intermediate"])
    file = place.root / name / "config.json"
    if place.random.random() < 0.3:
        fields = json.loads(file.read_text())
        place.write(file, json.dumps(fields | {"rope_parameters": place.pick(ROPES)}))
    json_file(place, file, UNWRITTEN["config.json"])
    using = {"target": METHODS, "intermediate": ["vanilla", "hierarchical"], "eagle-target": ["eagle2"]}
    method = place.pick(using.get(name, ["hierarchical"]))
    return Case([place.generate("target", "--method", method)], reference=place.root / "target")


def generation_config(place: Place) -> Case:
    json_file(place, place.root / "target/generation_config.json", UNWRITTEN["generation_config.json"])
    return Case([place.generate()], reference=place.root / "target")


def tokenizer_config(place: Place) -> Case:
    json_file(place, place.root / "target/tokenizer_config.json", UNWRITTEN["tokenizer_config.json"])
    return Case([place.generate()], reference=place.root / "target")


def tokenizer(place: Place) -> Case:
    json_file(place, place.root / "target/tokenizer.json", ["normalizer", "truncation", "padding"])
    return Case([place.generate()], reference=place.root / "target")


def quantization_config(place: Place) -> Case:
    name = place.pick(QUANTIZED)
    json_file(place, place.root / name / "config.json", section="quantization_config")
    return Case([place.generate(name)], "same or refused")


# --------------------------------------------------------------------------------------------------------- tensors


def header(place: Place) -> Case:
    """A safetensors file whose header says something else than its bytes, or is none."""
    name = place.pick(["target", "target", "intermediate", "eagle-target", *QUANTIZED])
    file = place.pick(sorted((place.root / name).glob("*.safetensors")))
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    fields = json.loads(content[8 : 8 + length])
    tensor = fields[place.pick(key for key in fields if key != "__metadata__")]
    kind = place.pick(["dtype", "shape", "offsets", "fields", "length", "bytes", "name", "index"])
    if kind == "dtype":
        tensor["dtype"] = place.pick(["F32", "BF16", "I16", "I8", "U8", "BOOL", "F8_E4M3", "I64", "X", None, 3])
    elif kind == "shape":
        tensor["shape"] = place.pick(
            [[], [0], [-1], tensor["shape"][::-1], [2**62, 4], [1, *tensor["shape"]], None, "x"]
        )
    elif kind == "offsets":
        begin, end = tensor["data_offsets"]
        tensor["data_offsets"] = place.pick([[end, begin], [begin + 2, end + 2], [0, end - begin], [-1, 2], [0, 2**63]])
    elif kind == "fields":
        fields = damaged_json(place, fields)
    elif kind == "name":
        fields["x" * place.pick([0, 1, 70_000])] = tensor
    new = json.dumps(fields).encode()
    new = struct.pack("<Q", len(new)) + new + content[8 + length :]
    if kind == "length":
        new = struct.pack("<Q", place.pick([0, 1, length - 1, length + 1, 2**40, 2**64 - 1])) + content[8:]
    elif kind == "bytes":
        new = damaged_bytes(place, content)
    place.write(file, new)
    if kind == "index" and (index := file.parent / "model.safetensors.index.json").is_file():
        json_file(place, index)
    reference = place.root / "target" if name in ("target", "intermediate", "eagle-target") else None
    using = {"intermediate": "vanilla", "eagle-target": "eagle2"}
    options = ["--method", using[name]] if name in using else []
    return Case([place.generate(name if name in QUANTIZED else "target", *options)], reference=reference)


def tensors(place: Place) -> Case:
    """One tensor of another dtype, shape or content, missing, or stored under another name."""
    name = place.pick(["target", "target", "eagle-target", *QUANTIZED])
    file = place.pick(sorted((place.root / name).glob("*.safetensors")))
    stored = load_file(file)
    key = place.pick(stored)
    tensor, expect = stored[key], "any"
    kind = place.pick(["dtype", "shape", "content", "missing", "renamed", "extra"])
    if kind == "dtype":
        others = [torch.int8, torch.uint8, torch.int64, torch.bool, torch.float64, torch.float8_e4m3fn, torch.complex64]
        stored[key] = tensor.to(place.pick([other for other in others if other != tensor.dtype]))
        expect = "any" if stored[key].dtype == torch.float64 else "refused"
    elif kind == "shape":
        stored[key] = place.pick([tensor[:0], tensor.flatten(), tensor[None], tensor[:-1], tensor.sum()]).contiguous()
    elif kind == "content" and tensor.is_floating_point():
        value = place.pick([float("nan"), float("inf"), -float("inf")])
        stored[key] = tensor.clone()
        stored[key].view(-1)[place.random.randrange(tensor.numel())] = value
        expect = "refused"
    elif kind == "content":
        stored[key] = torch.full_like(tensor, place.pick([0, 1, torch.iinfo(tensor.dtype).min]))
    elif kind == "missing":
        del stored[key]
        expect = "refused"
    elif kind == "renamed":
        stored[key.upper()] = stored.pop(key)
        expect = "refused"
    else:
        stored[place.pick(["extra", "model.layers.9.mlp.up_proj.weight", "lm_head.bias"])] = torch.zeros(3)
    file.unlink()
    save_file(stored, file, {"format": "pt"})
    options = ["--method", "eagle2"] if name == "eagle-target" else []
    reference = place.root / "target" if name in ("target", "eagle-target") else None
    return Case([place.generate(name if name in QUANTIZED else "target", *options)], expect, reference)


class Hostile:
    """Runs code when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def pickles(place: Place) -> Case:
    """The target as pytorch_model.bin: sound, torn, with odd tensors, or with code."""
    target, marker = place.root / "target", place.root / "ran"
    stored = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    file = target / "pytorch_model.bin"
    key = place.pick(stored)
    expect, protocol = "same", {}
    kind = place.pick(
        ["sound", "old", "torn", "sparse", "meta", "code", "nested", "none", "number", "parameter", "views"]
    )
    if kind == "old":
        protocol = {"_use_new_zipfile_serialization": False}
    elif kind == "parameter":
        stored = {name: torch.nn.Parameter(tensor) for name, tensor in stored.items()}
    elif kind == "views":
        stored = {name: torch.cat([tensor, tensor])[: len(tensor)] for name, tensor in stored.items()}
    elif kind != "sound":
        expect = "refused"
    if kind in ("sparse", "meta", "none", "number"):
        tensor = stored[key]
        odd = {"sparse": tensor.float().to_sparse(), "meta": tensor.to("meta"), "none": None, "number": 3}
        stored[key] = odd[kind]
        expect = "same or refused"
    if kind == "nested":
        stored = {"state_dict": stored}
    if kind == "code":
        place.write(file, pickle.dumps({key: Hostile(marker)}))
        if place.random.random() < 0.5:
            torch.save(stored | {key: Hostile(marker)}, file)
    else:
        torch.save(stored, file, **protocol)
    if kind == "torn":
        place.write(file, damaged_bytes(place, file.read_bytes()[: 10**5]))
    return Case([place.generate()], expect, target, marker)


def sound(place: Place) -> Case:
    """A random model as transformers writes it: of any family, widths, rotary embedding, biases, ties and dtype."""
    random, heads = place.random, place.pick([1, 2, 3, 4, 6])
    family, head_dim = place.pick(FAMILIES), place.pick([8, 16, 64])
    fields = {
        "vocab_size": 270,
        "hidden_size": heads * (place.pick([16, 32, 50]) if family in WITH_HEAD_DIM else head_dim),
        "intermediate_size": place.pick([16, 100, 256]),
        "num_hidden_layers": place.pick([1, 2, 3]),
        "num_attention_heads": heads,
        "num_key_value_heads": place.pick(count for count in (1, 2, 3, heads) if heads % count == 0),
        "max_position_embeddings": place.pick([48, 128, 1000]),
        "tie_word_embeddings": place.pick([True, False]),
        "rms_norm_eps": place.pick([1e-5, 1e-6, 1e-3]),
        "bos_token_id": 0,
        "eos_token_id": place.pick([1, [1, 2], None]),
    }
    fields |= {"head_dim": head_dim} if family in WITH_HEAD_DIM else {}
    if family == "llama":
        fields |= {"attention_bias": random.random() < 0.3, "mlp_bias": random.random() < 0.2}
    rope = json.loads(json.dumps(place.pick([{"rope_type": "default", "rope_theta": 1e4}, *ROPES])))
    for name in ("short_factor", "long_factor"):
        if name in rope:
            rope[name] = [random.uniform(1, 3) for _ in range(head_dim // 2)]
    if "original_max_position_embeddings" in rope or rope["rope_type"] == "llama3":
        rope["original_max_position_embeddings"] = 24
    fields["rope_parameters"] = rope | {"rope_theta": place.pick([1e4, 5e5, 100.0])}
    model, out = AutoConfig.for_model(family, **fields), place.root / "sound"
    write_random(model, out, place.pick([torch.float16, torch.bfloat16, torch.float32]), seed=random.randrange(10**6))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        os.link(place.root / "target" / file, out / file)
    prompt = place.pick([PROMPT, TEXT[: random.randrange(1, 40)]])
    return Case([place.generate("sound", "--prompt", prompt)], "done", out)


def harmless(place: Place) -> Case:
    """What must not matter: fields and files that say nothing, the same tensors otherwise laid out."""
    target = place.root / "target"
    file = target / "config.json"
    fields = json.loads(file.read_text())
    kind = place.pick(["fields", "order", "files", "shards", "link", "space", "dtype", "bom", "metadata", "wider"])
    stored = load_file(target / "model.safetensors")
    if kind == "fields":
        place.write(
            file, json.dumps(fields | {place.pick(["x", "_name_or_path", "torch_dtype"]): place.pick(["x", "y z"])})
        )
    elif kind == "order":
        place.write(file, json.dumps(dict(reversed(fields.items()))))
    elif kind == "space":
        place.write(file, " \r\n" + json.dumps(fields, indent=7).replace("\n", "\r\n") + "\n\n")
    elif kind == "dtype":
        place.write(file, json.dumps(fields | {"dtype": place.pick(["bfloat16", "float32", None])}))
    elif kind == "files":
        (target / place.pick(["README.md", ".gitattributes", "training_args.bin", "adapter.txt"])).write_bytes(
            b"\xff\x00"
        )
    elif kind == "link":
        (place.root / "models").mkdir()
        (place.root / "target").rename(place.root / "models/elsewhere")
        (place.root / "target").symlink_to("models/elsewhere")
    elif kind in ("metadata", "wider"):
        (target / "model.safetensors").unlink()
        wide = {name: tensor.float() if kind == "wider" else tensor for name, tensor in stored.items()}
        save_file(wide, target / "model.safetensors", {"format": "pt"} if kind == "wider" else None)
    elif kind == "shards":
        (target / "model.safetensors").unlink()
        names, index = sorted(stored), {}
        for number in range(3):
            shard = f"model-0000{number + 1}-of-00003.safetensors"
            save_file({name: stored[name] for name in names[number::3]}, target / shard, {"format": "pt"})
            index |= dict.fromkeys(names[number::3], shard)
        text = json.dumps({"metadata": {}, "weight_map": index})
        (target / "model.safetensors.index.json").write_text(text)
    return Case([place.generate()], "same", target)


# --------------------------------------------------------------------------------------------------- what is asked


def prompts(place: Place) -> Case:
    """Prompts, stop strings and sampling."""
    parts = [
        "1 plus 1",
        " makes",
        "<|begin|>",
        "<|end|>",
        "\n\n",
        "\t",
        "é",
        "日本",
        "\U0001f600",
        "\x00",
        "\u200b",
        "e\u0301",
    ]
    parts += ["\r", " " * 40, "<|begin", "\ud83d", "caf\udce9", "\ufeff", "a" * 200, "1" * 90]
    prompt = "".join(place.pick(parts) for _ in range(place.pick([0, 1, 1, 2, 3, 5])))
    if place.random.random() < 0.3:
        prompt = "<|begin|>" + prompt
    options = ["--prompt", prompt]
    judged = True
    for _ in range(place.pick([0, 1, 2])):
        option = place.pick(["--stop", "--temperature", "--top-p", "--seed", "--context-length", "--dtype", "--scheme"])
        values = {
            "--stop": [" ", "\n", "<|end|>", "", "makes", "\ud800", "e", "\ufffd"],
            "--temperature": ["0", "1", "1e-300", "1e300", "nan", "0.7", "-0"],
            "--top-p": ["1", "1e-9", "0", "0.5", "nan"],
            "--seed": ["-1", "0", str(2**63)],
            "--context-length": ["1", "2", "16", "64", "128", "129", "100000000"],
            "--dtype": ["float32", "float64"],
            "--scheme": ["fp16", "w8a8", "w4a16-g128", "fp8"],
        }[option]
        value = place.pick(values)
        options += [f"{option}={value}"]
        judged &= option in ("--dtype", "--seed", "--top-p") or value in ("0", "-0", "fp16")
    return Case([place.generate("target", *options)], reference=place.root / "target" if judged else None)


def paths(place: Place) -> Case:
    """Directories that are none, are closed, or lead to themselves."""
    loop, long, file = place.root / "loop", place.root / ("n" * 300), place.root / "text.txt"
    loop.symlink_to(loop)
    empty = place.root / "empty"
    empty.mkdir()
    (place.root / "target/dangling").symlink_to("nowhere")
    path = str(
        place.pick(
            [loop, long, file, empty, loop / "x", place.root / "nowhere", "nowhere", "no/where", "~", "/dev/null"]
        )
    )
    command = place.pick(
        [
            ["generate", "--model", path, "--prompt", "x"],
            place.generate("target", "--eagle-target", path),
            place.generate("target", "--method=vanilla", "--intermediate", path),
            place.generate("target", "--method", "auto", "--calibration", path),
            place.generate("target", "--head-vocabulary", "9", "--head-text", path),
            ["quantize", path, "--scheme", "w8a8", "--out", str(place.root / "out")],
            ["export", path, "--format", "gptq", "--out", str(place.root / "out")],
            ["convert-head", path, "--model", str(place.root / "w8a8"), "--out", str(place.root / "out")],
            ["plan", "--recorded", path],
            ["bench", "trees", "--models-dir", path, "--out", str(place.root / "out")],
            ["study", "--profile", path, "--results", str(place.root / "out")],
        ]
    )
    return Case([command], "any" if str(file) in path or "/dev/null" in path else "refused")


# --------------------------------------------------------------------------------------------------------- tables


def damaged_table(place: Place, file: Path) -> str:
    """Damage a CSV; returns what is right then."""
    text = file.read_text()
    lines = text.splitlines()
    row = place.random.randrange(1, len(lines))
    cells, names = lines[row].split(","), lines[0].split(",")
    column = place.random.randrange(min(len(names), len(cells)))
    kind = place.pick(
        ["cell", "cell", "cell", "order", "extra", "no column", "torn", "twice", "bytes", "empty", "columns"]
    )
    expect = "any"
    if kind == "cell":
        cells[column] = place.pick(
            ["", "nan", "inf", "-1", "0", "x", "1e400", "1e-320", "True", '"', "99999999", "1,2", "é"]
        )
        lines[row] = ",".join(cells)
    elif kind == "order":
        rest = lines[1:]
        place.random.shuffle(rest)
        lines, expect = [lines[0], *rest], "same or refused"
    elif kind == "extra":
        lines, expect = [lines[0] + ",x", *(line + ",1" for line in lines[1:])], "same or refused"
    elif kind == "no column" and '"' not in text:
        lines = [",".join(part for i, part in enumerate(line.split(",")) if i != column) for line in lines]
    elif kind == "twice":
        lines.insert(row, lines[row])
    elif kind == "empty":
        lines, expect = lines[:1], "refused"
    elif kind == "columns":
        lines = ["\t".join(line.split(",")) for line in lines]
        expect = "refused"
    content = ("\n".join(lines) + "\n").encode()
    if kind == "torn":
        content, expect = content[: place.random.randrange(len(content) - 1)], "any"
    elif kind == "bytes":
        content = damaged_bytes(place, content)
    place.write(file, content)
    return expect


def recorded_tables(place: Place) -> Case:
    folder = place.clone / "data/recorded/h200"
    file = place.pick(
        [folder / "verify_cost.csv", folder / "drafting.csv", place.clone / "data/recorded/cpu/trees.csv"]
    )
    expect = damaged_table(place, file)
    options = place.pick([[], ["--intermediate", "llama-3-8b"], ["--head", "0.7", "--agreement", "0.9"]])
    trees = ["--trees", str(place.clone / "data/recorded/cpu/trees.csv")]
    return Case([["plan", "--recorded", str(folder), *trees, "--intermediate", "llama-3-8b", *options]], expect)


def published_tables(place: Place) -> Case:
    """Tables of `claims`, or of `figures` that has no others to draw."""
    command = place.pick(["claims", "figures"])
    if command == "figures":
        shutil.rmtree(place.clone / "data/recorded")
        file = place.pick(sorted((place.clone / "data/published").glob("*.csv")))
    else:
        names = ["specmquant_verify_cost.csv", "specmquant_steps.csv", "claims.csv", "assumptions.csv"]
        names += ["specquant_blocks_and_turns.csv", "accepted_lengths.csv"]
        recorded = ["h200/verify_cost.csv", "h200/drafting.csv", "h200/replayed.csv", "cpu/trees.csv"]
        files = [place.clone / "data/published" / name for name in names]
        file = place.pick([*files, *(place.clone / "data/recorded" / name for name in recorded)])
    damaged_table(place, file)
    if place.random.random() < 0.1 and (beside := file.with_suffix(".json")).is_file():
        json_file(place, beside)
    return Case([[command]])


def calibrations(place: Place) -> Case:
    """A greedy result does not depend on the plan that was chosen."""
    file = place.root / "calibration.csv"
    if place.random.random() < 0.25:
        json_file(place, file.with_suffix(".json"))
    else:
        damaged_table(place, file)
    command = place.generate("target", "--method", "auto", "--calibration", str(file))
    return Case([command], reference=place.root / "target")


def task_lines(place: Place) -> Case:
    """Questions, or the answers that are there already."""
    name = place.pick(["gsm8k", "gsm8k", "mt-bench"])
    file = place.pick([place.root / "questions" / BENCHMARKS[name].file, place.root / f"answers/{name}.jsonl"])
    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    lines = content.decode().splitlines()
    row = place.random.randrange(len(lines))
    kind = place.pick(["field", "field", "field", "twice", "torn", "bytes", "blank", "order", "foreign"])
    expect = "any"
    if kind == "field":
        lines[row] = json.dumps(damaged_json(place, json.loads(lines[row])))
    elif kind == "twice":
        lines.append(lines[row])
        expect = "same" if "answers" in file.parts else "refused"
    elif kind == "blank":
        lines.insert(row, "")
    elif kind == "order" and "answers" in file.parts:
        lines.reverse()
        expect = "same"
    elif kind == "foreign":
        lines.insert(row, place.pick(["3", "{}", "[]", "null", '"x"', "{", '{"id": "x"}', "[" * 100_000]))
        expect = "refused"
    new = ("\n".join(lines) + "\n").encode()
    if kind == "torn":
        new = new[: place.random.randrange(len(new))]
    elif kind == "bytes":
        new = damaged_bytes(place, new)
    place.write(file, gzip.compress(new) if file.suffix == ".gz" else new)
    return Case([tasks_command(place.root, name)], expect)


def tasks_command(root: Path, name: str) -> list[str]:
    command = ["bench", "tasks", "--model", str(root / "target"), "--benchmark", name, "--max-new-tokens", "3"]
    folders = ["--data-dir", str(root / "questions"), "--out", str(root / "answers")]
    return [*command, *folders, "--draft-size", "4", "--iterations", "2", "--methods", "autoregressive,eagle2"]


def profiles(place: Place) -> Case:
    """Profiles of `study`, whose checks come before any notebook; the notebooks themselves are not run here."""
    file = place.clone / "notebooks/profiles/tiny.yaml"
    names = ["results_dir", "target", "intermediate", "draft_size", "schemes", "max_new_tokens", "device", "dtype", "x"]
    names += ["prompts_per_task", "eagle_target", "models", "contexts", "figures_dir"]
    values = [
        *VALUES,
        "1e3",
        "0x10",
        "1_000",
        "yes",
        "~",
        "2026-11-29",
        "12:30:45",
        ".inf",
        "!!python/object:os.system x",
    ]
    values += ["*a", "&a [*a]", "{a: 1", "'", "!!binary x", "!!timestamp x", "2026-99-99", "!!int x", "<<: 3"]
    lines = []
    for _ in range(place.pick([0, 1, 1, 2])):
        value = place.pick(values)
        name = place.pick(names)
        lines.append(f"{name}: {value}" if isinstance(value, str) else yaml.safe_dump({name: value}).strip())
    content = ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")
    if place.random.random() < 0.2:
        content = damaged_bytes(place, content)
    place.write(file, content)
    if place.random.random() < 0.15:
        notebook = place.pick(sorted((place.clone / "notebooks").glob("*.ipynb")))
        place.write(notebook, damaged_bytes(place, notebook.read_bytes()))
    only = place.pick([[], ["--only", "tour"], ["--only", "06_planner"], ["--only", place.pick(WORDS)]])
    return Case([["study", "--results", str(place.root / "out"), *only]])


# ------------------------------------------------------------------------------------------- commands and options


def conversions(place: Place) -> Case:
    """quantize, export and convert-head of damaged models and texts; what they write is then used."""
    out = place.root / "out"
    kind = place.pick(["quantize", "quantize", "export", "convert-head", "calibration"])
    if kind == "quantize":
        json_file(place, place.root / "intermediate" / place.pick(["config.json", "tokenizer_config.json"]))
        options = ["--scheme", place.pick([*SCHEMES, "fp8"]), "--quantizer", "round-to-nearest", "--out", str(out)]
        first = ["quantize", str(place.root / "intermediate"), *options]
        return Case([first, ["generate", "--model", str(out), "--prompt", PROMPT, "--max-new-tokens=6", "--json"]])
    if kind == "calibration":
        text = damaged_bytes(place, (place.root / "text.txt").read_bytes()[:3000])
        text = place.pick([text, text, b"\n\f\n" * 50, b" " * 900, b"1", b"\xff", ("\U0001f600" * 99).encode()])
        place.write(place.root / "text.txt", text)
        options = ["--scheme", "w4a16-g128", "--calibration-text", str(place.root / "text.txt"), "--out", str(out)]
        return Case([["quantize", str(place.root / "intermediate"), *options]])
    if kind == "export":
        name = place.pick(SCHEMES)
        json_file(place, place.root / name / place.pick(["config.json", "model.safetensors.index.json"]))
        which = place.pick(["compressed-tensors", "gptq", "gptq", "x"])
        return Case([["export", str(place.root / name), "--format", which, "--out", str(out)]])
    json_file(place, place.root / place.pick(["eagle-target", "w8a8"]) / "config.json")
    command = ["convert-head", str(place.root / "eagle-target"), "--model", str(place.root / "w8a8"), "--out", str(out)]
    return Case([command])


def _field(argument) -> str:
    return argument.name.removeprefix("--").replace("-", "_").lower()


def options(place: Place) -> Case:
    """Any command with values that nobody meant; what would be long is kept short."""
    words, known = place.pick(leaves())
    root = place.root
    right = {
        "model": str(root / "target"), "head": str(root / "eagle-target"), "scheme": "fp16", "prompt": PROMPT,
        "benchmark": "gsm8k", "format": "gptq", "corpora": str(root / "nowhere"), "models_dir": str(root),
        "schemes": "fp16", "prompts_per_task": "1", "max_new_tokens": "2", "limit": "1", "processes": "1",
        "repeats": "1", "blocks": "1", "draft_sizes": "1,2", "contexts": "8", "context": "8", "device": "cpu",
        "data_dir": str(root / "questions"), "recorded": str(place.clone / "data/recorded/h200"), "tree": "4,2",
        "out": str(root / "out"), "results": str(root / "out"), "only": "00_tour", "names": "gsm8k", "tune": "0",
        "draft_size": "4", "iterations": "2", "models": "nowhere", "quantizer": "round-to-nearest",
        "calibration_text": str(root / "text.txt"),
    }  # fmt: skip
    given = {_field(argument) for argument in known if argument.required}
    given |= {name for name in right if name not in ("calibration_text", "scheme") or words == ["quantize"]}
    changed = place.random.sample(list(known), min(len(known), place.pick([1, 1, 2])))
    command = list(words)
    for argument in known:
        if argument not in changed and _field(argument) not in given:
            continue
        value = right.get(_field(argument), "1")
        if argument in changed:
            value = place.pick([*WORDS, *(argument.get_choices() or ())])
        if is_flag(argument):
            command += [argument.name] if argument in changed else []
        elif is_option(argument):
            command.append(f"{argument.name}={value}")
        else:
            command.append(value)
    return Case([command])


ROTATION: list[Callable[[Place], Case]] = [
    config, options, sound, tensors, prompts, recorded_tables, config, quantization_config, header, options, tokenizer,
    task_lines, sound, config, profiles, pickles, options, generation_config, calibrations, quantization_config,
    harmless, options, tokenizer_config, tensors, conversions, paths, sound, header, prompts, recorded_tables,
    published_tables, sound,
]  # fmt: skip
