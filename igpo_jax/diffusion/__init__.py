"""Masked diffusion: schedules, token selection, the compiled denoising loop, likelihoods."""
