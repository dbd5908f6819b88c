"""A checkpoint of one matrix, read as a model's would be."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from specquant.errors import SpecquantError
from specquant.models.checkpoint import Checkpoint
from specquant.models.formats import FormatWeights, find_format
from specquant.models.weights import LAYER_TENSORS, fill
from specquant.quant import PackedLinear, empty_linear, get_scheme


class OneMatrix:
    """Writes tensors of a matrix [outputs, inputs] into a directory and loads them by the quantization_config."""

    def __init__(self, directory, outputs, inputs, quantization, tensors):
        self.directory, self.outputs, self.inputs = directory, outputs, inputs
        self.quantization, self.tensors = quantization, tensors

    def load(self, tensors=None, parts=None, module="o_proj", fused=False, bias=False, **fields) -> PackedLinear:
        """tensors: of the one matrix of which `module` is made; parts: of all its matrices, in their order. fused: the
        one matrix is named as ours is. bias: the model has one. fields: changes to quantization_config."""
        parts = [self.tensors if tensors is None else tensors] if parts is None else parts
        names = LAYER_TENSORS[module]
        if fused:
            names = [f"{names[0].partition('.')[0]}.{module}"]
        save_file(
            {
                f"model.layers.0.{name}.{suffix}": tensor.clone(memory_format=torch.contiguous_format)
                for name, part in zip(names, parts, strict=True)
                for suffix, tensor in part.items()
            },
            self.directory / "model.safetensors",
        )
        quantization = None if self.quantization is None else self.quantization | fields
        config = SimpleNamespace(
            quantization_config=quantization,
            intermediate_size=self.outputs // 2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=self.outputs // 4,
        )
        checkpoint = Checkpoint(self.directory)
        format = find_format(config, checkpoint)
        layer = nn.Module()
        with torch.device("meta"):
            setattr(layer, module, empty_linear(get_scheme(format.scheme), self.outputs, self.inputs, bias))
        model = nn.Module()
        model.layers = nn.ModuleList([layer])
        fill(model, FormatWeights(checkpoint, config, format), "cpu")
        return getattr(layer, module)

    def refused(self, match, tensors=None, **fields) -> None:
        """Loading it raises a sentence that matches."""
        with pytest.raises(SpecquantError, match=match) as error:
            self.load(tensors, **fields)
        assert str(self.directory) in str(error.value)
        assert "\n" not in str(error.value)
