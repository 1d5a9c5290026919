"""Worlds of ranks that players measure in turns, and what the machine allows."""
