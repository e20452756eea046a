"""Hugging Face checkpoints to and from the parameter tree."""
