"""The paper's main finding at a small scale: see command.py."""
