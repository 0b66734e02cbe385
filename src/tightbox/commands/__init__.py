"""One file per command: `add_arguments` says what it takes without importing torch, `run` does it."""
