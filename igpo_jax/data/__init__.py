"""Data sets, prompt templates, tokenizers and the input pipeline. Imports no jax."""
