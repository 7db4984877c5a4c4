"""Runs as they train, and the table of runs: panels that follow the run folders and never touch the training."""
