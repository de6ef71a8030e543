"""Model configurations: YAML files, read and checked."""
