"""Weights quantized in closed form: from the moments of a layer's inputs, without learning."""
