"""What quantization meets and does, in numbers: activation ranges, split shortcuts, errors by layer and step."""
