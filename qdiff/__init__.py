"""Post-training quantization of diffusion models: Q-Diffusion (arXiv 2302.04304) and PTQD (arXiv 2305.10657)."""
