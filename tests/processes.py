"""Processes that start quickly, with threads, locks and patches of their own."""

import multiprocessing
from multiprocessing.context import ForkServerContext

IMPORTED = (
    *("pytest", "hypothesis", "torchvision.utils"),
    *("torch._dynamo", "torch._refs", "torch._decomp.decompositions"),  # seconds, otherwise on first use
    *("qdiff.sampling.run_folder", "qdiff.sampling.images", "qdiff.cli.sample_ddim", "qdiff.pipelines.evaluate"),
    *("qdiff.pipelines.run", "qdiff.pipelines.calibrate", "qdiff.pipelines.pixel", "tests.qdiff.pipelines.test_run"),
)


def forkserver() -> ForkServerContext:
    """Return a context whose processes find imported what the tests need; the first test of all starts its server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context
