"""specquant: a reproducibility study of "Speculative Decoding Meets Quantization" (arXiv 2505.22179)."""

__version__ = "0.1.0"
