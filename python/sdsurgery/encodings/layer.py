"""One layer of a file that may be encoded: its weight, what lies beside it, and what marks it."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from ..dtypes import BF16, F8_E4M3, F16, F32, DType
from ..errors import printable
from ..operands.encoding import Companion, Encoding

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint, TensorInfo

WEIGHT = "weight"
METADATA = "_quantization_metadata"
"""The header entry by which ComfyUI marks encoded layers."""

FLOATS = (F32, F16, BF16)

# Last parts of the names of what belongs to a layer's weight, as the programs named in this package's modules write it.
_PARTS = frozenset(
    (
        "scale_weight", "scale_input", "weight_scale", "weight_scale_2", "weight_scale_inv", "input_scale",
        "activation_scale", "pre_quant_scale", "comfy_quant", "weight_s_rel", "weight_s_channel", "weight_codebook",
        "weight_correction", "weight_zeros", "SCB", "weight_format", "weight_global_scale", "weight_packed",
        "weight_shape", "weight_zero_point", "_weight_qdata", "_weight_scale", "_weight_zero_point", "qweight",
        "wscales", "wtscale", "smooth_factor", "smooth_factor_orig", "proj_down", "proj_up", "lora_down", "lora_up",
        "qzeros", "scales", "g_idx", "wzeros", "scale", "zero_point", "svd_up", "svd_down",
    )
)  # fmt: skip
_BELOW_WEIGHT = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", "_data", "_scale", "_shift")
_STATE = "quant_state."

# What says that a layer is encoded; the other parts are names that plain tensors have too.
_TELLING = frozenset(
    (
        "scale_weight", "weight_scale", "weight_scale_inv", "comfy_quant", "SCB", "weight_packed", "_weight_qdata",
        "qweight", "weight._data",
    )
)  # fmt: skip
_CODES = frozenset(("U8", "I8", "F8_E4M3", "F8_E5M2"))


class Undecodable(Exception):
    """A weight in codes that cannot be turned into numbers. ``format`` is the encoding's, the text says why."""

    def __init__(self, format: str, reason: str) -> None:
        super().__init__(reason)
        self.format = format


class Found(NamedTuple):
    """A recognised layer: the encoding's name for people, how it is decoded, the shape of the weights."""

    format: str
    encoding: Encoding
    shape: tuple[int, ...]


class Layer:
    """``parts`` are the tensors below the layer's name, by the rest of theirs (``weight``, ``weight_scale``, …)."""

    def __init__(self, name: str, checkpoint: Checkpoint, parts: dict[str, TensorInfo], stated: Any) -> None:
        self.name, self.parts = name, parts
        self._checkpoint, self._stated = checkpoint, stated
        self.weight_name = f"{name}.{WEIGHT}" if name else WEIGHT

    @property
    def weight(self) -> TensorInfo | None:
        return self.parts.get(WEIGHT)

    def stored(self) -> tuple[TensorInfo, ...]:
        """All of the layer's tensors, the codes first."""
        first = next((key for key in (WEIGHT, "weight_packed", "_weight_qdata", "qweight", "weight._data")
                      if key in self.parts), None)  # fmt: skip
        rest = [info for key, info in self.parts.items() if key != first]
        return (self.parts[first], *rest) if first is not None else tuple(rest)

    def marker(self) -> dict[str, Any] | None:
        """What ComfyUI's marker says, the file's header before the layer's tensor; Undecodable when it is damaged."""
        said = self._stated
        if said is None:
            info = self.parts.get("comfy_quant")
            if info is None:
                return None
            said = self.json("comfy_quant", "ComfyUI's formats")
        if isinstance(said, str):
            said = {"format": said}
        if not isinstance(said, dict) or not isinstance(said.get("format"), str):
            raise Undecodable("ComfyUI's formats", "its marker names no format")
        inner = said.get("params")
        return {**said, **inner} if isinstance(inner, dict) else said

    def json(self, part: str, format: str) -> Any:
        """The JSON text that a tensor of bytes holds."""
        info = self.parts[part]
        if info.nbytes > 1 << 16:
            raise Undecodable(format, f"'{printable(info.name)}' is not JSON text")
        try:
            return json.loads(self._checkpoint.read(info).decode("utf-8"))
        except (ValueError, RecursionError):
            raise Undecodable(format, f"'{printable(info.name)}' is not valid JSON") from None

    def integer(self, part: str) -> int:
        """The number in a small tensor of integers."""
        return int.from_bytes(self._checkpoint.read(self.parts[part]), "little")

    def companion(
        self, part: str, format: str, *, count: int | None = None, dtypes: tuple[DType, ...] = FLOATS,
        read_as: DType | None = None,
    ) -> Companion:  # fmt: skip
        """A tensor of numbers beside the codes. Undecodable where it is missing, or not as it must be."""
        info = self.parts.get(part)
        if info is None:
            raise Undecodable(format, f"'{printable(self.name)}.{part}' is missing")
        if info.dtype not in dtypes or info.strides is not None or (count is not None and info.elements != count):
            expected = f"{count} of " if count is not None else ""
            raise Undecodable(
                format,
                f"'{printable(info.name)}' is {info.dtype.name} {list(info.shape)}, "
                f"{expected}{' or '.join(dtype.name for dtype in dtypes)} expected",
            )
        return Companion(info.file, read_as or info.dtype, info.offset, info.elements)

    def left_behind(self) -> TensorInfo | None:
        """The scales beside a weight that is no longer in codes: programs disagree whether they multiply it."""
        weight = self.weight
        if weight is None or weight.dtype.name in _CODES or weight.dtype.kind != "float":
            return None
        return next((self.parts[key] for key in ("scale_weight", "weight_scale", "weight_scale_inv")
                     if key in self.parts), None)  # fmt: skip


def matrix(format: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a weight whose first axis is its outputs."""
    if not shape or 0 in shape:
        raise Undecodable(format, f"its weight has the shape {list(shape)}")
    return shape[0], math.prod(shape[1:])


def contiguous(format: str, info: TensorInfo) -> TensorInfo:
    if info.strides is not None:
        raise Undecodable(format, "its codes are not contiguous")
    return info


def codes_as(weight: TensorInfo) -> str:
    """The coding of fp8 weights, by their dtype: what markers say of it is sometimes wrong."""
    return "e4m3" if weight.dtype is F8_E4M3 else "e5m2"


def layers(checkpoint: Checkpoint) -> list[Layer]:
    """Layers that are encoded or may be, in the order of the file."""
    stated = _stated(checkpoint)
    wanted = set()
    for name, info in checkpoint.tensors.items():
        layer, part = _split(name)
        if not part:
            continue
        telling = part in _TELLING or part.startswith("weight." + _STATE)
        if telling or (part == WEIGHT and info.dtype.name in ("U8", "I8") and info.elements) or layer in stated:
            wanted.add(layer)
    groups: dict[str, dict[str, TensorInfo]] = {}
    for name, info in checkpoint.tensors.items() if wanted else ():
        layer, part = _split(name)
        if part and layer in wanted:
            groups.setdefault(layer, {})[part] = info
    return [Layer(name, checkpoint, group, stated.get(name)) for name, group in groups.items()]


def _split(name: str) -> tuple[str, str]:
    """A tensor's name as its layer's and the part's; no part for what belongs to no weight."""
    layer, _, last = name.rpartition(".")
    if last == WEIGHT or last in _PARTS:
        return layer, last
    before, found, rest = name.rpartition(".weight.")
    if not found and name.startswith("weight."):
        before, found, rest = "", "weight.", name[len("weight.") :]
    if found and (rest in _BELOW_WEIGHT or rest.startswith(_STATE) or rest.split(".")[0] == "_data"):
        return before, "weight." + rest
    return "", ""


def _stated(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the header says, by layer. Some writers leave the prefix out: the only layer that fits is meant then."""
    text = checkpoint.metadata().get(METADATA)
    if text is None:
        return {}
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    listed = said.get("layers") if isinstance(said, dict) else None
    if not isinstance(listed, dict):
        return {}
    found = {}
    weights = [name[: -len(WEIGHT) - 1] for name in checkpoint.tensors if name.endswith("." + WEIGHT)]
    known = set(weights)
    by_end: dict[str, list[str]] | None = None
    for layer, what in listed.items():
        if layer in known:
            found[layer] = what
            continue
        if by_end is None:
            by_end = {}
            for name in weights:
                parts = name.split(".")
                for at in range(1, len(parts)):
                    by_end.setdefault(".".join(parts[at:]), []).append(name)
        fits = by_end.get(layer, [])
        if len(fits) == 1:
            found[fits[0]] = what
    return found
