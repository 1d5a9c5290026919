"""What a run leaves in its directory, on the screen and with loggers."""
