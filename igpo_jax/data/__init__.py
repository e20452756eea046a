"""Data sets, prompt templates, tokenizers and the input pipeline. Imports no jax."""

from igpo_jax.data.examples import Example as Example
from igpo_jax.data.settings import DataSettings as DataSettings
from igpo_jax.data.splits import open_split as open_split
