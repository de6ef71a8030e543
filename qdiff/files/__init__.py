"""Files and formats, independent of networks: safe reading of checkpoints, images, prompts, tokenizers, downloads,
digests, text tables, logs, and atomic writes."""
