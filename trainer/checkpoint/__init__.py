"""Checkpoints: the file, its content, when it is written, how a run goes on from it."""
