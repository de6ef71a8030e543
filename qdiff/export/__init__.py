"""Quantized networks as ONNX graphs, and engines that execute them."""
