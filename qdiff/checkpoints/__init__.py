"""Where files and networks meet: quantized files, ours and the original's, and full-precision weights."""
