"""One readable file per run; its launch commands are in its docstring."""
