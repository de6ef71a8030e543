"""Bits of activations by sampling step: what some widths do to the predictions, and which step gets which width."""
