"""How an adapter is written: names in kohya's or diffusers' dialect, and the metadata that its readers look at.

Source: kohya-ss/sd-scripts 48d368f ``networks/lora.py``, ``library/sai_model_spec.py``; what A1111 and ComfyUI read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..dtypes import BY_NAME
from ..formats.kinds.safetensors import layout
from ..layouts import Layout, all_layouts
from ..layouts.base import V_PREDICTION, Adapters
from ..metadata import Kind
from ..outline import Piece, PlacedOutline
from . import keys
from .arrays import Array
from .names import UNET, Place

KOHYA, DIFFUSERS = "kohya", "diffusers"
DIALECTS = (KOHYA, DIFFUSERS)

_SUFFIXES = {
    KOHYA: {
        keys.DOWN: "lora_down.weight",
        keys.UP: "lora_up.weight",
        keys.ALPHA: "alpha",
        keys.MAGNITUDE: "dora_scale",
    },
    DIFFUSERS: {
        keys.DOWN: "lora_A.weight",
        keys.UP: "lora_B.weight",
        keys.ALPHA: "alpha",
        keys.MAGNITUDE: "lora_magnitude_vector",
    },
}
_OTHERS = ("diff", "diff_b", "w_norm", "b_norm")


def layout_of(base: str) -> Layout | None:
    """The family whose adapters are called by that short name."""
    fitting = (item for item in all_layouts() if item.adapters and item.adapters.name == base)
    return next((item for item in fitting if not item.variant_of and item.original is None), None)


def module_name(layout: Layout, place: Place, dialect: str) -> str:
    """The module's name in that dialect, as the dialect's readers look it up."""
    made = (layout.original or layout).adapters
    assert made is not None
    if dialect == DIFFUSERS:
        return f"{place.component}.{place.path}"
    return _kohya(made, place)


def _kohya(made: Adapters, place: Place) -> str:
    if place.component == UNET:
        return "lora_unet_" + (place.original if made.original_paths else place.path).replace(".", "_")
    return made.text_encoders[place.component] + place.path.replace(".", "_")


def key(module: str, part: str, dialect: str) -> str:
    """The name of a module's part."""
    return f"{module}.{part if part in _OTHERS else _SUFFIXES[dialect][part]}"


def magnitude(values: Array, dimensions: int, dialect: str, *, per_input: bool = False) -> tuple[str, Array]:
    """DoRA's lengths for a weight of so many dimensions, as the dialect's readers take them: suffix and values. Lengths
    of inputs have one form in all dialects; peft's of a convolution's outputs are ``[1, out, 1, 1]``."""
    if per_input:
        return "dora_scale", values.reshape(1, -1, *[1] * (dimensions - 2))
    if dialect == DIFFUSERS:
        return _SUFFIXES[dialect][keys.MAGNITUDE], values.reshape((1, -1, 1, 1) if dimensions > 2 else -1)
    return _SUFFIXES[dialect][keys.MAGNITUDE], values.reshape(-1, *[1] * (dimensions - 1))


class Ranks(NamedTuple):
    """Ranks and alphas of an adapter's modules, linear ones and convolutions apart."""

    linear: set[tuple[int, float]]
    conv: set[tuple[int, float]]

    def are_uniform(self) -> bool:
        """Whether all modules have one rank and one alpha. Where they don't, no alpha is written, and the factors give
        the whole effect: diffusers applies the alphas of such files to other modules."""
        return len(self.linear | self.conv) <= 1

    def without_alphas(self) -> Ranks:
        """Those of a file in which no alpha is written: each alpha is the rank."""
        linear, conv = ({(rank, float(rank)) for rank, _ in each} for each in self)
        return Ranks(linear, conv)


def metadata(
    base: Layout | None, ranks: Ranks, *, module: str = "networks.lora", v_prediction: bool = False,
    kept: Mapping[str, str] | None = None, args: Mapping[str, str] | None = None,
) -> dict[str, str]:  # fmt: skip
    """kohya's ``ss_network_*`` and ``ss_base_model_version``, by which UIs decide whether to show the file. ``kept``
    are those of a file that it is made from, ``args`` the module's own, as LyCORIS' algorithm."""
    args = dict(args or {})
    dims = {rank for rank, _ in ranks.linear} or {rank for rank, _ in ranks.conv}
    alphas = {alpha for _, alpha in ranks.linear} or {alpha for _, alpha in ranks.conv}
    found = {
        "ss_network_module": module,
        "ss_network_dim": str(dims.pop()) if len(dims) == 1 else "Dynamic",
        "ss_network_alpha": f"{alphas.pop():g}" if len(alphas) == 1 else "Dynamic",
    }
    if ranks.conv and ranks.linear:
        if len(ranks.conv) == 1:
            ((rank, alpha),) = ranks.conv
            args |= {"conv_dim": str(rank), "conv_alpha": f"{alpha:g}"}
        else:
            args |= {"conv_dim": "Dynamic", "conv_alpha": "Dynamic"}
    if args:
        found["ss_network_args"] = json.dumps(args)
    if base is not None and base.adapters is not None and base.adapters.versions:
        word = base.adapters.versions[-1 if v_prediction else 0]
        found |= {"ss_base_model_version": word, "ss_v2": str(word.startswith("sd_v2"))}
    own = {name: value for name, value in (kept or {}).items() if name.startswith(("ss_", "modelspec."))}
    if "ss_base_model_version" in own:
        found["ss_base_model_version"] = own["ss_base_model_version"]
        found["ss_v2"] = own.get("ss_v2", found.get("ss_v2", "False"))
    return {**own, **found}


def in_order(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """An adapter's tensors as ``safetensors.torch.save`` writes them, by dtype and name: then both of the hashes in the
    metadata are those that sd-scripts would write."""
    order = list(BY_NAME)
    return tuple(sorted(pieces, key=lambda piece: (order.index(piece.dtype.name), piece.name)))


_LEGACY_OFFSET, _LEGACY_BYTES = 0x100000, 0x10000


def legacy_window(placed: PlacedOutline) -> tuple[int, int] | None:
    """Where in an adapter's file the bytes are of which ``sshs_legacy_hash`` has the first 8 digits of the SHA-256:
    offset and length.

    They are bytes 0x100000 to 0x110000 of the file as sd-scripts would write it, with the tensors ``in_order`` and no
    other metadata than ``ss_*``; a small file has none of them. None where these metadata reach beyond the first of
    them: then their order would count, which is random there.

    Source: kohya-ss/sd-scripts 48d368f ``library/train_util.py``, ``precalculate_safetensors_hashes``.
    """
    metadata, plan = placed.outline.metadata, placed.plan
    texts = metadata.texts([None] * len(metadata.parents), None)
    own = {name: text for name, text in texts.items() if name.startswith("ss_")}
    start = layout([(piece.name, piece.dtype, piece.shape) for piece in placed.pieces], own).start
    if start > _LEGACY_OFFSET:
        return None
    first = min(plan.data_start + _LEGACY_OFFSET - start, plan.size)
    return first, min(_LEGACY_BYTES, plan.size - first)


def kind(base: Layout | None, dialect: str, *, v_prediction: bool = False) -> Kind:
    """What ModelSpec says of such a file."""
    if base is None or not base.architecture:
        return Kind()
    implementation = "https://github.com/Stability-AI/generative-models" if dialect == KOHYA else "diffusers"
    wanted = V_PREDICTION if v_prediction else None
    published = next((each for each in base.releases if each.prediction == wanted), None)
    architecture = published.architecture if v_prediction and published else base.architecture
    return Kind(f"{architecture}/lora", implementation, published.resolution if published else "")
