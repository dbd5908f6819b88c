"""Draft trees, drafters, acceptance rules, and the speculative loop."""

from specquant.decoding.acceptance import Acceptance, AcceptanceRule, Greedy, Sampling, Verdict
from specquant.decoding.drafter import Drafter
from specquant.decoding.drafters.eagle2 import EagleDrafter
from specquant.decoding.generation import Generation, acceptance_rule, checked_prompt, decode_steps, generate, tokens_of
from specquant.decoding.speculator import Speculator
from specquant.decoding.step import Step
from specquant.decoding.tree import DraftTree

__all__ = [
    "Acceptance",
    "AcceptanceRule",
    "DraftTree",
    "Drafter",
    "EagleDrafter",
    "Generation",
    "Greedy",
    "Sampling",
    "Speculator",
    "Step",
    "Verdict",
    "acceptance_rule",
    "checked_prompt",
    "decode_steps",
    "generate",
    "tokens_of",
]
