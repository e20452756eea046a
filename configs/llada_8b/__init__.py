"""LLaDA-8B with the settings of IGPO's Table 2: SFT, IGPO and GRPO, each for TPU slices and for H100s."""
