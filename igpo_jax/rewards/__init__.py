"""Judging text: answer extraction and equality in worker processes. Imports no jax."""
