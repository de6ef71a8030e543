"""Model configurations: YAML files that are read and checked."""
