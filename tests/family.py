"""Small random models as directories, laid out as data/tiny is, for tests that read, damage and combine them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedConfig

from specquant.training.tokenizer import train_tokenizer

VOCABULARY, CONTEXT_LENGTH = 270, 128
TEXT = "\n".join(f"{a} plus {b} makes {a + b}, and {a} times {b} makes {a * b}." for a in range(40) for b in range(5))
# Grouped heads, as long as a GPU's attention takes, and sizes that every scheme can store.
SMALL_SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
}


def write_family(root: Path) -> Path:
    """Write target, intermediate and a head for each; sizes that every scheme can store."""
    tokenizer = train_tokenizer([TEXT], VOCABULARY, CONTEXT_LENGTH)
    for seed, (name, layers, heads) in enumerate((("target", 2, 4), ("intermediate", 1, 2))):
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64 * heads,
            intermediate_size=128,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=1,
            head_dim=64,
            max_position_embeddings=CONTEXT_LENGTH,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
        )
        torch.manual_seed(seed)
        LlamaForCausalLM(config).half().save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        _write_head(config, root / f"eagle-{name}")
        write_eagle3_head(config, root / f"eagle3-{name}", (0, layers // 2, layers))
    return root


def small_llama(**fields) -> LlamaConfig:
    """Of `SMALL_SHAPE`, as far as fields do not say otherwise."""
    shape = SMALL_SHAPE | {
        "vocab_size": 256,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**shape | fields)


def write_random(
    config: PreTrainedConfig, path: Path, dtype: torch.dtype = torch.float16, seed: int = 1, **options
) -> Path:
    """Let transformers write a model whose norms and biases are random, too. options: of `save_pretrained`."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.5 if name.endswith("bias") else 0.1)
    model.to(dtype).save_pretrained(path, **options)
    return path


def _write_head(config: LlamaConfig, path: Path) -> None:
    """Random weights under the names that EAGLE's authors publish."""
    hidden, inner, kv_size = config.hidden_size, config.intermediate_size, config.head_dim * config.num_key_value_heads
    shapes = {
        "fc": (hidden, 2 * hidden),
        "layers.0.self_attn.q_proj": (hidden, hidden),
        "layers.0.self_attn.k_proj": (kv_size, hidden),
        "layers.0.self_attn.v_proj": (kv_size, hidden),
        "layers.0.self_attn.o_proj": (hidden, hidden),
        "layers.0.mlp.gate_proj": (inner, hidden),
        "layers.0.mlp.up_proj": (inner, hidden),
        "layers.0.mlp.down_proj": (hidden, inner),
        "layers.0.post_attention_layernorm": (hidden,),
    }
    tensors = {f"{name}.weight": 0.05 * torch.randn(shape, dtype=torch.float16) for name, shape in shapes.items()}
    config = LlamaConfig(**config.to_dict() | {"num_hidden_layers": 1})
    config.save_pretrained(path)
    save_file(tensors | {"fc.bias": torch.zeros(hidden, dtype=torch.float16)}, path / "model.safetensors")


def eagle3_tensors(config: LlamaConfig, draft_vocab_size: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights and maps of an EAGLE-3 head, under the names that EAGLE's authors publish."""
    hidden, inner, kv_size = config.hidden_size, config.intermediate_size, config.head_dim * config.num_key_value_heads
    shapes = {
        "fc": (hidden, 3 * hidden),
        "lm_head": (draft_vocab_size, hidden),
        "midlayer.self_attn.q_proj": (config.num_attention_heads * config.head_dim, 2 * hidden),
        "midlayer.self_attn.k_proj": (kv_size, 2 * hidden),
        "midlayer.self_attn.v_proj": (kv_size, 2 * hidden),
        "midlayer.self_attn.o_proj": (hidden, config.num_attention_heads * config.head_dim),
        "midlayer.mlp.gate_proj": (inner, hidden),
        "midlayer.mlp.up_proj": (inner, hidden),
        "midlayer.mlp.down_proj": (hidden, inner),
    }
    norms = ("norm", *(f"midlayer.{name}" for name in ("hidden_norm", "input_layernorm", "post_attention_layernorm")))
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: 0.1 * torch.randn(shape, generator=generator, dtype=torch.float32).half()
        for name, shape in shapes.items()
    } | {name: (0.5 + torch.rand(hidden, generator=generator)).half() for name in norms}
    drafted = torch.randperm(config.vocab_size, generator=generator)[:draft_vocab_size].sort().values
    tensors = {f"{name}.weight": tensor for name, tensor in tensors.items()}
    tensors["d2t"] = drafted - torch.arange(draft_vocab_size)
    tensors["t2d"] = torch.zeros(config.vocab_size, dtype=torch.bool).index_fill(0, drafted, True)
    return tensors


def write_eagle3_head(config: LlamaConfig, path: Path, layers: tuple[int, ...]) -> None:
    """A random EAGLE-3 head for a model of that configuration, which drafts 200 of its tokens."""
    LlamaConfig(**config.to_dict() | {"num_hidden_layers": 1}).save_pretrained(path)
    fields = json.loads((path / "config.json").read_text())
    fields |= {"draft_vocab_size": 200, "eagle_aux_hidden_state_layer_ids": list(layers)}
    (path / "config.json").write_text(json.dumps(fields, indent=2))
    save_file(eagle3_tensors(config, 200), path / "model.safetensors")
