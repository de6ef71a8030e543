"""The command line: flags in, one call into the package. Nothing here imports torch before the flags are read."""
