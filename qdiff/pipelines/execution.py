"""What a backend executes of a pipeline."""

from dataclasses import dataclass

from qdiff.quant_model import QuantModel


@dataclass(frozen=True)
class Execution:
    """What a backend executes.

    Args:
        backend: its name.
        model: the quantized network, without values.
        digest: of the network with its values, see `network_digest`.
        report: lines that say what is computed with integers.
    """

    backend: str
    model: QuantModel
    digest: str
    report: list[str]
