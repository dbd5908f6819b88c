"""Weight files: sharded or not, whole or damaged, and never more of them in memory than one matrix."""

import json
import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from specquant.errors import SpecquantError
from specquant.models import checkpoint as module
from specquant.models.checkpoint import INDEX_FILE, PICKLE_INDEX_FILE, Checkpoint
from specquant.models.loading import load_model
from tests.family import small_llama, write_random

CONFIG = small_llama(vocab_size=40, intermediate_size=128, num_hidden_layers=3)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The same model in one file and in shards."""
    root = tmp_path_factory.mktemp("checkpoints")
    single = write_random(CONFIG, root / "single")
    model = AutoModelForCausalLM.from_pretrained(single, dtype=torch.float16)
    model.save_pretrained(root / "sharded", max_shard_size="150KB")
    return single, root / "sharded"


@pytest.fixture
def sharded(written, tmp_path):
    return shutil.copytree(written[1], tmp_path / "sharded")


@pytest.fixture
def refused(sharded):
    def refused(match):
        with pytest.raises(SpecquantError, match=match) as error:
            load_model(sharded)
        assert str(sharded) in str(error.value)
        assert "\n" not in str(error.value)

    return refused


def index(directory):
    return json.loads((directory / INDEX_FILE).read_text())


def change_index(directory, **tensors):
    content = index(directory)
    content["weight_map"] |= {name.replace("__", "."): file for name, file in tensors.items()}
    content["weight_map"] = {name: file for name, file in content["weight_map"].items() if file is not None}
    (directory / INDEX_FILE).write_text(json.dumps(content))


@pytest.mark.parametrize("scheme", ["fp16", "w8a8", "w4a16-g128"])
def test_shards_load_as_one_file_does(written, scheme):
    single, shards = (load_model(path, scheme).state_dict() for path in written)
    assert len(set(index(written[1])["weight_map"].values())) > 3
    assert single.keys() == shards.keys()
    for name, tensor in single.items():
        assert torch.equal(tensor, shards[name]), name


@pytest.mark.parametrize("scheme", ["fp16", "w4a16-g128"])
def test_one_matrix_and_one_file_are_in_memory_at_a_time(written, monkeypatch, scheme):
    """Of all that was read, only the parts of the matrix that is being made may be alive."""
    alive, most, opened, open_at_once = weakref.WeakSet(), [0], weakref.WeakSet(), [0]
    read, safe_open = Checkpoint.read, module.safe_open

    def reading(self, name, device="cpu"):
        tensor = read(self, name, device)
        alive.add(tensor)
        most.append(sum(t.nbytes for t in alive))
        return tensor

    class Opened:
        def __init__(self, *arguments, **keywords):
            self.archive = safe_open(*arguments, **keywords)
            opened.add(self)
            open_at_once.append(len(opened))

        def __getattr__(self, name):
            return getattr(self.archive, name)

        def __enter__(self):
            return self.archive.__enter__()

        def __exit__(self, *exception):
            return self.archive.__exit__(*exception)

    monkeypatch.setattr(Checkpoint, "read", reading)
    monkeypatch.setattr(module, "safe_open", Opened)
    load_model(written[1], scheme)
    largest = 2 * 2 * CONFIG.hidden_size * CONFIG.intermediate_size  # gate and up, fp16
    assert largest <= max(most) < 1.5 * largest
    assert len(most) > 3 * 9
    assert max(open_at_once) == 1
    assert not opened


def test_a_missing_shard(sharded, refused):
    shards = sorted(sharded.glob("model-*.safetensors"))
    shards[2].unlink()
    refused(rf"1 of its {len(shards)} shards are missing, first {shards[2].name}")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_shard(sharded, refused, keep):
    file = sorted(sharded.glob("model-*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:keep])
    refused(rf"{file.name} is damaged or not a safetensors file .*copy it again")


def test_a_tensor_in_the_wrong_shard(sharded, refused):
    name = "model.layers.1.mlp.up_proj.weight"
    right = index(sharded)["weight_map"][name]
    wrong = next(file for file in index(sharded)["weight_map"].values() if file != right)
    change_index(sharded, **{name: wrong})
    refused(rf"{name} is in {right}, and {INDEX_FILE} says in {wrong}: shards of two versions are mixed")


def test_an_index_that_lists_too_much_or_too_little(sharded, refused):
    change_index(sharded, model__layers__9__weight="model-00001-of-00005.safetensors")
    refused(r"model-00001-of-.* has no tensor model.layers.9.weight, which .* says it has")
    change_index(sharded, model__layers__9__weight=None, model__norm__weight=None)
    refused(rf"has a tensor model.norm.weight, which {INDEX_FILE} does not list")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "is not JSON"),
        ("[]", "is no JSON object"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": {"lm_head.weight": "../model.safetensors"}}', "names '../model.safetensors' for a shard"),
        ('{"weight_map": {"lm_head.weight": "pytorch_model.bin"}}', "names 'pytorch_model.bin' for a shard"),
        ('{"weight_map": {"lm_head.weight": 3}}', "names 3 for a shard"),
    ],
)
def test_an_index_that_is_none(sharded, refused, content, match):
    (sharded / INDEX_FILE).write_text(content)
    refused(match)


def test_shards_without_an_index(sharded, refused):
    """Are read together; each tensor may be in one of them only."""
    (sharded / INDEX_FILE).unlink()
    load_model(sharded)
    first, second, *_ = sorted(sharded.glob("model-*.safetensors"))
    save_file(load_file(second) | dict([next(iter(load_file(first).items()))]), second)
    refused(rf"both {first.name} and {second.name} hold")


def test_the_same_weights_in_another_layout_are_left_alone(written, tmp_path):
    directory = shutil.copytree(written[0], tmp_path / "single")
    save_file({"tok_embeddings.weight": torch.zeros(40, 128)}, directory / "consolidated.safetensors")
    load_model(directory)


def test_flipped_bits_in_a_header(tmp_path):
    """Each is refused with a sentence, or changes nothing (in a blank, or in the metadata)."""
    small = LlamaConfig(**CONFIG.to_dict() | {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 1})
    directory = write_random(small, tmp_path / "small")
    expected = load_model(directory).state_dict()
    file = directory / "model.safetensors"
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    refusals = 0
    for place in [*range(8), *range(8, end, 5)]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        sentence, loaded = "", {}
        try:
            loaded = load_model(directory).state_dict()
        except SpecquantError as error:
            sentence = str(error)
        if loaded:
            assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items()), place
        else:
            assert str(directory) in sentence
            assert "\n" not in sentence
            refusals += 1
    assert refusals > (end - 8) / 5 * 0.8


@pytest.fixture
def pickled(written, tmp_path):
    """The same model as transformers 4 wrote its shards."""
    directory = tmp_path / "pickled"
    directory.mkdir()
    shutil.copyfile(written[0] / "config.json", directory / "config.json")
    tensors = load_file(written[0] / "model.safetensors")
    names = [f"pytorch_model-{number:05}-of-00003.bin" for number in (1, 2, 3)]
    places = {name: names[place % 3] for place, name in enumerate(tensors)}
    for file in names:
        torch.save({name: tensor for name, tensor in tensors.items() if places[name] == file}, directory / file)
    (directory / PICKLE_INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return directory


@pytest.mark.parametrize("scheme", ["fp16", "w4a16-g128"])
def test_pickled_shards_load_as_one_file_does(written, pickled, scheme):
    expected, loaded = load_model(written[0], scheme).state_dict(), load_model(pickled, scheme).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    (pickled / PICKLE_INDEX_FILE).unlink()
    assert torch.equal(load_model(pickled).state_dict()["norm.weight"], expected["norm.weight"])


def test_pickled_shards_that_are_missing_torn_or_not_beside(pickled):
    index, shard = pickled / PICKLE_INDEX_FILE, pickled / "pytorch_model-00002-of-00003.bin"
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    with pytest.raises(SpecquantError, match=r"00002-of-00003\.bin is damaged"):
        load_model(pickled)
    shard.unlink()
    with pytest.raises(SpecquantError, match=r"1 of its 3 shards are missing, first .*00002-of-00003\.bin"):
        load_model(pickled)
    index.write_text(index.read_text().replace("pytorch_model-00001", "../pytorch_model-00001"))
    with pytest.raises(SpecquantError, match=r"for a shard, which is no PyTorch file beside it"):
        load_model(pickled)


@pytest.mark.parametrize("kind", ["sparse", "meta", "quantized"])
def test_tensors_that_are_no_ordinary_ones(pickled, kind):
    make = {
        "sparse": lambda: torch.ones(128, 128).to_sparse(),
        "meta": lambda: torch.empty(128, 128, device="meta"),
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(128, 128), 0.1, 0, torch.qint8),
    }[kind]
    shard = pickled / "pytorch_model-00002-of-00003.bin"
    tensors = torch.load(shard)
    name = next(name for name, tensor in tensors.items() if tensor.shape == (128, 128))
    torch.save(tensors | {name: make()}, shard)
    with pytest.raises(SpecquantError, match=rf"{shard.name}: {name} is .*no ordinary tensor"):
        load_model(pickled)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn])
@pytest.mark.parametrize("part", ["self_attn.k_proj", "mlp.up_proj"])
def test_one_of_joined_matrices_of_another_type(written, tmp_path, part, dtype):
    """Joined with its neighbours it would be widened to theirs."""
    directory = shutil.copytree(written[0], tmp_path / "single")
    tensors = load_file(directory / "model.safetensors")
    name = f"model.layers.1.{part}.weight"
    save_file(tensors | {name: tensors[name].to(dtype)}, directory / "model.safetensors")
    with pytest.raises(SpecquantError, match=rf"layers\.1\..*_proj\.weight holds {dtype} where torch.float16 belongs"):
        load_model(directory)
