"""Reinforcement learning: hints, elastic rollouts, advantages, objectives."""
