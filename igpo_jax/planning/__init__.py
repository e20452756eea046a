"""Plans: the programs of a run compiled for hardware that is not here, with what they hold, send and cost."""
