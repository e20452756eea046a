"""LLaDA as pure functions: configuration, parameters, forward pass, adapters."""
