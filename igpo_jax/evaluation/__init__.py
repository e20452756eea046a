"""Scoring a checkpoint on question sets under a named protocol, reports, and their comparison."""
