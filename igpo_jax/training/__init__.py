"""Training state, optimisers, the SFT and RL steps, checkpoints, metrics."""
