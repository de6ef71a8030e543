"""From seeds to images: noise, the sampling loop, and the folder of a run."""
