"""Corrections of the noise estimate of a quantized network (PTQD, He et al. 2023, arXiv 2305.10657)."""
