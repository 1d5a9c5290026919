"""The options of a run: declaration, checks, command line, TOML files, presets."""
