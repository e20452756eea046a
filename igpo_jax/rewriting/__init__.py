"""Concise traces from verbose ones, by any OpenAI-compatible endpoint; the judge decides what is accepted."""
