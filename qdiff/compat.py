"""Calibrated checkpoints as the original Q-Diffusion code saves them <-> our state; dict to dict.

The original keeps, per layer, the FP weight, the learned-rounding variable `alpha`, `delta` and `zero_point`; the second
slice of a split layer as `weight_quantizer_0` and `act_quantizer_0`. Bit widths and symmetry are not in the file.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from qdiff.errors import UserError
from qdiff.policy import QuantPolicy

_QUANTIZER = re.compile(
    r"^(?P<owner>.+)\.(?P<kind>weight|act)_quantizer(?P<slot>_0|_[a-z]+)?\.(?P<field>delta|zero_point)$"
)
_FIELDS = (".alpha", ".delta", ".zero_point")


def is_original(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the keys of the original's calibrated checkpoint."""
    return any(key.endswith(".weight_quantizer.alpha") for key in state)


def layer_paths(state: Mapping[str, Tensor]) -> list[str]:
    """Paths of the quantized layers, in the file's order."""
    suffix = ".weight_quantizer.alpha"
    return [key.removesuffix(suffix) for key in state if key.endswith(suffix)]


def is_split(state: Mapping[str, Tensor]) -> bool:
    """Whether shortcut layers have a quantizer per slice."""
    return any(".weight_quantizer_0." in key for key in state)


def has_activations(state: Mapping[str, Tensor]) -> bool:
    """Whether activation step sizes are in the file."""
    return any(".act_quantizer" in key and key.endswith(".delta") for key in state)


def weight_codes(state: Mapping[str, Tensor], path: str) -> Tensor:
    """Integer codes floor(w / delta) + (alpha >= 0) + zero_point of a layer, not clamped; float, the weight's shape."""
    weight, done, codes = state[f"{path}.weight"], 0, []
    for slot in ("weight_quantizer", "weight_quantizer_0"):
        name = f"{path}.{slot}"
        if f"{name}.alpha" not in state:
            continue
        alpha = state[f"{name}.alpha"]
        part = weight[:, done : done + alpha.shape[1]] if alpha.shape != weight.shape else weight
        if part.shape != alpha.shape:
            raise UserError(
                f"{name}.alpha has shape {tuple(alpha.shape)}, the weight {tuple(weight.shape)}: the file is damaged"
            )
        done += alpha.shape[1]
        codes.append((part / state[f"{name}.delta"]).floor() + (alpha >= 0) + state[f"{name}.zero_point"])
    if done != weight.shape[1]:
        raise UserError(f"{path}: quantizers cover {done} of {weight.shape[1]} input channels: the file is damaged")
    return torch.cat(codes, dim=1)


def weight_bits(state: Mapping[str, Tensor]) -> int:
    """The bit width that the codes of the whole file imply: the smallest b with every zero point below 2^b.

    A code may overshoot the range by one, because rounding up was learned; zero points do not.
    """
    top = max(int(state[key].max()) for key in state if re.search(r"\.weight_quantizer(_0)?\.zero_point$", key))
    codes = max(int(weight_codes(state, path).max()) for path in layer_paths(state)[:8])
    return max(2, (max(top, codes - 1)).bit_length())


def from_original(
    state: Mapping[str, Tensor], policy: QuantPolicy, legacy_products: Mapping[str, str]
) -> dict[str, Tensor]:
    """Our state of the original's.

    Args:
        state: keys as saved, with the prefix `model.`.
        policy: bits and symmetry, which the file does not tell; without `act`, activation steps are left out.
        legacy_products: path of a product's owner joined with the operand (`down.0.attn.0.q`) -> path of our product.

    Raises:
        UserError: unfinished files, shapes that do not fit.
    """
    unfinished = [p for p in layer_paths(state) if f"{p}.weight_quantizer.delta" not in state]
    if unfinished:
        raise UserError(
            f"{unfinished[0]} has a rounding variable but no step size: this is a temporary file of an unfinished "
            "calibration; use the file that the finished run saved"
        )
    lo, hi = policy.weight.bounds
    out: dict[str, Tensor] = {}
    layers = layer_paths(state)
    for path in layers:
        out[f"{path}.codes"] = (weight_codes(state, path).clamp(lo, hi) - lo).to(torch.uint8)
    weights = {f"{path}.weight" for path in layers}
    for key, value in state.items():
        match = _QUANTIZER.match(key)
        if match and not (match["kind"] == "act" and policy.act is None):
            out[_our_key(match, state, legacy_products)] = value.float()
        elif not match and key not in weights and not key.endswith(_FIELDS):
            out[key] = value
    return out


def _our_key(match: re.Match, state: Mapping[str, Tensor], legacy_products: Mapping[str, str]) -> str:
    owner, kind, slot, field = match["owner"], match["kind"], match["slot"] or "", match["field"]
    if slot not in ("", "_0"):  # an operand of an attention product
        return f"{legacy_products.get(owner + '.' + slot[1:], owner)}.{kind}_quantizer{slot}.{field}"
    if f"{owner}.{kind}_quantizer_0.delta" not in state:
        return f"{owner}.{kind}_quantizer.{field}"
    return f"{owner}.{kind}_quantizer.parts.{1 if slot else 0}.{field}"


def legacy_products(paths: Iterable[tuple[str, tuple[str, str]]]) -> dict[str, str]:
    """The map that `from_original` takes, from (path, operands) of the products that the original keeps on their owner."""
    return {f"{path.rpartition('.')[0]}.{name}": path for path, operands in paths for name in operands}
