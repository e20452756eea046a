"""The model that the benchmarks run on a CPU: LLaDA's vocabulary on a network that one has the time for."""

from igpo_jax.models.config import ModelConfig

SMALL = ModelConfig(d_model=512, n_layers=8, n_heads=8, n_kv_heads=8, mlp_hidden_size=1536, max_sequence_length=1024)
