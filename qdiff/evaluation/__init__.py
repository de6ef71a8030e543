"""Metrics of sampled images, and reports that compare methods."""
