"""Benchmarks, one file each: where its questions are, how a prompt is made of one, how an answer is judged.

What the paper's text leaves open (system prompt, forms of prompts, most new tokens) is taken from its authors'
evaluation scripts (github.com/AI9Stars/SpecMQuant, folders evaluation and scripts/eval). That the published numbers
were measured with exactly these scripts is assumed.
"""
