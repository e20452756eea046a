"""Answers as trees: cleaned, read by a grammar, compared in value."""
