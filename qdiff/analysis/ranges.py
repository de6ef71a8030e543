"""Ranges of activations over the timesteps of sampling (Q-Diffusion, Li et al. 2023, section 3.2)."""

import math
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.checks import whole
from qdiff.analysis.watching import check_full_precision, sites, summary_of, watching
from qdiff.pipelines.pipeline import Pipeline
from qdiff.ranges import RowSummary, joined

LEVELS = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
PREDICTION = "eps"


@dataclass(frozen=True)
class ActivationRanges:
    """Quantiles of activations at every network call of sampling.

    Attributes:
        timesteps: of the S calls, in the order of sampling.
        quantiles: site -> its quantiles at `LEVELS`, (S, 7), float32 on the CPU. A site is the path of a layer, for its
            input, or `<path>.<operand>` of an attention product; "eps" is the prediction, guidance included.
    """

    timesteps: tuple[float, ...]
    quantiles: dict[str, Tensor]

    def change(self, site: str) -> float:
        """Return the largest width of a site's range, from minimum to maximum, divided by the smallest; >= 1."""
        widths = self.quantiles[site][:, -1] - self.quantiles[site][:, 0]
        largest, smallest = widths.max().item(), widths.min().item()
        return largest / smallest if smallest else 1.0 if not largest else math.inf

    def most_changing(self, count: int) -> list[str]:
        """Return the sites whose width changes most over the timesteps, at most `count`, by falling change.

        Of sites with the same quantiles, as where several layers take the same tensor, the first one stands for all.
        """
        found: list[str] = []
        for site in sorted((site for site in self.quantiles if site != PREDICTION), key=self.change, reverse=True):
            if not any(torch.equal(self.quantiles[site], self.quantiles[other]) for other in found):
                found.append(site)
        return found[:count]


@torch.no_grad()
def activation_ranges(pipeline: Pipeline, images: int = 4) -> ActivationRanges:
    """Measure the range of every activation that can be quantized, over the timesteps of sampling in full precision.

    Minimum and maximum are exact. The quantiles between them are those of up to 65,536 evenly spaced values of a call.

    Args:
        pipeline: in full precision, loaded.
        images: the first ones of its seed, >= 1, sampled in one batch.

    Raises:
        TypeError, ValueError: `images` is not a number >= 1, or the pipeline is quantized or has no weights.
    """
    check_full_precision(pipeline)
    watched = sites(pipeline.network)
    seen: dict[str, list[RowSummary]] = defaultdict(list)  # of one call of the network; slices of attention add up

    def see(path: str, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for site, x in zip(watched[path][1], inputs):
            seen[site].append(summary_of(x))

    timesteps, rows = [], defaultdict(list)
    with watching({path: module for path, (module, _) in watched.items()}, see):
        for step in pipeline.steps(range(whole("images", images, 1))):
            timesteps.append(float(step.t))
            seen[PREDICTION].append(summary_of(step.eps))
            for site, parts in seen.items():
                rows[site].append(_quantiles(joined(parts)))
            seen.clear()
    measured = {site: torch.stack(rows[site]) for site in site_names(pipeline) if site in rows}
    return ActivationRanges(tuple(timesteps), measured)


def site_names(pipeline: Pipeline) -> list[str]:
    """Return the keys of `ActivationRanges.quantiles` for a pipeline in full precision, in the order of the network."""
    return [*(site for _, names in sites(pipeline.network).values() for site in names), PREDICTION]


def _quantiles(summary: RowSummary) -> Tensor:
    """Return the quantiles of one row, (7,)."""
    inner = summary.values[0].quantile(summary.values.new_tensor(LEVELS[1:-1]))
    return torch.cat([summary.low, inner, summary.high]).float()
