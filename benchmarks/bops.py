#!/usr/bin/env python
"""Count bit operations of networks at full size, and write their quantized files, with random weights.

    python benchmarks/bops.py configs/cifar10.yml configs/latent-diffusion/cin256-v2.yaml
    python benchmarks/bops.py configs/stable-diffusion/v1-inference.yaml --sizes

Counts are of one network call for one image, and computed without values. "matmul" are attention products. Sizes are in
MiB (2^20 bytes): 4 bytes for each parameter, and files of weights with 8 and 4 bits.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from networks import network

from qdiff.adapters import adapter_for
from qdiff.checkpoints.load import save_quantized
from qdiff.config.networks import network_shapes
from qdiff.config.schema import read_yaml
from qdiff.evaluation.bops import NetworkBops, empty_model, network_bops
from qdiff.files.tables import markdown, with_prefix
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel

BITS = ((8, None), (4, None), (8, 8), (4, 8))  # of weights and activations


def policy(weight: int, act: int | None) -> QuantPolicy:
    """Return the policy with the same bits everywhere, also for attention weights."""
    return QuantPolicy(QuantSpec(weight, per_channel=True, range_search="minmax"), QuantSpec(act) if act else None)


def cost(config: Path, bits: QuantPolicy) -> NetworkBops:
    """Count one call of the network of a configuration."""
    empty, call = network_shapes(read_yaml(config), config)
    return network_bops(empty_model(empty, bits, adapter_for(empty)), call)


def counts(config: Path) -> list[str]:
    """Return a row of counts: MACs, those of attention products, and BOPs."""
    costs = [cost(config, policy(*bits)) for bits in BITS]
    products = sum(leaf.macs for path, leaf in costs[0].leaves.items() if path.endswith("matmul"))
    bops = [costs[0].fp_bops, *(found.bops() for found in costs)]
    return [config.stem, *map(with_prefix, (costs[0].macs, products, *bops))]


def sizes(config: Path) -> Iterator[str]:
    """Yield the MiB of the parameters in float32, and of files with 8 and 4 bits."""
    fp = network(config)
    yield f"{sum(4 * x.numel() for x in fp.parameters()) / 2**20:.1f}"
    del fp
    for weight in (8, 4):
        with TemporaryDirectory() as folder:
            path, fp = Path(folder) / "q.safetensors", network(config)
            save_quantized(path, QuantModel(fp, policy(weight, None), adapter_for(fp)))
            yield f"{path.stat().st_size / 2**20:.1f}"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    print(markdown(titles, rows), flush=True)


def main() -> None:
    """Print the counts of every configuration or, with --sizes, the sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", type=Path, nargs="+", metavar="YAML", help="configuration of a model")
    parser.add_argument("--sizes", action="store_true", help="write files, and print their sizes instead")
    args = parser.parse_args()
    if args.sizes:
        table(["network", "FP", "W8", "W4"], [[config.stem, *sizes(config)] for config in args.configs])
    else:
        names = [f"W{weight}A{act or 32}" for weight, act in BITS]
        table(["network", "MACs", "matmul", "FP", *names], [counts(config) for config in args.configs])


if __name__ == "__main__":
    main()
