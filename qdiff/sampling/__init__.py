"""Seeds to images: noise, files and the folder of a run."""
