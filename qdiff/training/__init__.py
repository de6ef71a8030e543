"""Training of the small models that the repository carries; needs the `train` extra."""
