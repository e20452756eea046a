"""Parts of the commands: how checkpoints are opened, arrays read, and generation shown."""
