"""The schemes of the study: how the linear layers of a model are quantized."""

from dataclasses import dataclass

from specquant.errors import unknown


@dataclass(frozen=True)
class Scheme:
    """How weights and activations of the linear layers are stored and multiplied.

    group_size: inputs that share a scale, of which the last group may have fewer; 0 for one scale per output channel.
    symmetric: without zero points. rotated: the residual stream is Hadamard-rotated offline before quantization.
    floating: 8-bit numbers are e4m3, not int8, and products need Hopper or later.
    """

    name: str
    weight_bits: int
    activation_bits: int
    group_size: int = 0
    symmetric: bool = True
    rotated: bool = False
    floating: bool = False

    @property
    def output_multiple(self) -> int:
        """What the number of a matrix's outputs must be a multiple of; inputs may be any number."""
        return 16 if self.weight_bits == 4 else 1


PAPER_SCHEMES = (
    Scheme("fp16", 16, 16),
    Scheme("w8a8", 8, 8),
    Scheme("w4a16-g128", 4, 16, group_size=128),
    Scheme("w4a16-g128-rot", 4, 16, group_size=128, rotated=True),
    Scheme("w4a8-qqq", 4, 8, rotated=True),
    Scheme("w4a8-qqq-g128", 4, 8, group_size=128, rotated=True),
    Scheme("w4a8-qoq", 4, 8, symmetric=False, rotated=True),
    Scheme("w4a8-qoq-g128", 4, 8, group_size=128, symmetric=False, rotated=True),
)
# Beyond the paper's eight: what checkpoints of others come in, and what newer GPUs multiply.
OTHER_SCHEMES = (
    Scheme("w4a16-g128-asym", 4, 16, group_size=128, symmetric=False),
    Scheme("fp8", 8, 8, floating=True),
    Scheme("w4a8-fp8-g128", 4, 8, group_size=128, floating=True),
)
SCHEMES = {scheme.name: scheme for scheme in (*PAPER_SCHEMES, *OTHER_SCHEMES)}


def get_scheme(name: str) -> Scheme:
    """The scheme of that name. Raises SpecquantError that lists the known ones."""
    if name not in SCHEMES:
        raise unknown("scheme", name, SCHEMES)
    return SCHEMES[name]


def scheme_names(names: str) -> list[str]:
    """Names with commas between them, or "all" for the paper's eight, as a list that begins with fp16: what the others
    are compared with.

    Raises SpecquantError for an unknown name.
    """
    chosen = PAPER_SCHEMES if names == "all" else [get_scheme(name.strip()) for name in names.split(",")]
    return list(dict.fromkeys(["fp16", *(scheme.name for scheme in chosen)]))
