"""Files that know no network: checkpoints of others read safely, images, prompts and tokenizers, downloads, digests,
text tables, logs, and files of ours that appear whole or not at all."""
