"""Files that are not checkpoints: LoRA, LyCORIS, textual inversion, hypernetworks. Recognised and described.

Sources: kohya-ss/sd-scripts ``networks/{lora,oft}.py``, KohakuBlueleaf/LyCORIS f49d30d ``lycoris/modules``, diffusers
``utils/state_dict_utils.py``, AUTOMATIC1111/stable-diffusion-webui ``modules/textual_inversion`` and
``modules/hypernetworks``. Which base model they are for is read from the width of what they attach to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from .base import REGISTRY, Layout, register
from .base import Adapters as Base
from .detect import Match, Probe
from .shapes import Shape

if TYPE_CHECKING:
    from ..checkpoint import TensorInfo


class Adapter(NamedTuple):
    """What a file attaches to a checkpoint: its kind, the base model's short name ("" unknown), the evidence."""

    kind: str
    base: str
    key: str
    shape: Shape
    notes: tuple[str, ...]


# The suffix that makes a tensor one of an algorithm's, most specific first; LoRA proper is what is left.
_ALGORITHMS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("LoHa", "lycoris", (".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b", ".hada_t1", ".hada_t2")),
    ("LoKr", "lycoris", (".lokr_w1", ".lokr_w2", ".lokr_w1_a", ".lokr_w1_b", ".lokr_w2_a", ".lokr_w2_b", ".lokr_t2")),
    ("OFT", "lycoris", (".oft_blocks", ".oft_diag")),
    ("GLoRA", "lycoris", (".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight", ".bm.weight")),
    ("IA3", "lycoris", (".on_input",)),
    ("full difference", "lycoris", (".diff", ".diff_b", ".set_weight")),
    ("norm", "lycoris", (".w_norm", ".b_norm")),
    ("LoRA", "lora", (".lora_down.weight", ".lora_up.weight", ".lora_mid.weight")),
    (
        "LoRA (peft names)",
        "lora",
        (".lora_A.weight", ".lora_B.weight", ".lora_A.default.weight", ".lora_B.default.weight"),
    ),
    (
        "LoRA (diffusers names)",
        "lora",
        (".lora.down.weight", ".lora.up.weight", "_lora.down.weight", "_lora.up.weight"),
    ),
    ("LoRA (diffusers names)", "lora", (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")),
)
_DECORATIONS = (".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight")
_KIND_OF = {name: kind for name, kind, _ in _ALGORITHMS}
_SUFFIXES = {suffix: (name, kind) for name, kind, suffixes in _ALGORITHMS for suffix in suffixes}
_DOWN: tuple[str, ...] = (
    ".lora_down.weight",
    ".lora_A.weight",
    ".lora_A.default.weight",
    ".lora.down.weight",
    "_lora.down.weight",
)
_DOWN += (".lora_linear_layer.down.weight", ".hada_w1_b")
_ENDINGS = tuple(sorted(_SUFFIXES, key=len, reverse=True))


def classify(tensors: Mapping[str, TensorInfo]) -> Adapter | None:
    """The adapter that these tensors make up, None when they make none."""
    shapes = {key: tuple(info.shape) for key, info in tensors.items()}
    return _network(shapes) or _embedding(shapes) or _hypernetwork(shapes)


def _split(key: str) -> tuple[str, str] | None:
    """(module, suffix) of an adapter's tensor."""
    if not key.endswith(_ENDINGS):
        return None
    suffix = next(ending for ending in _ENDINGS if key.endswith(ending))
    return key[: -len(suffix)], suffix


def _network(shapes: Mapping[str, Shape]) -> Adapter | None:
    modules: dict[str, set[str]] = {}
    examples: dict[str, str] = {}
    matched = 0
    for key in shapes:
        parts = _split(key)
        if parts:
            algorithm = _SUFFIXES[parts[1]][0]
            modules.setdefault(algorithm, set()).add(parts[0])
            examples.setdefault(algorithm, key)
            matched += 1
    if 3 * matched < len(shapes) or not modules:  # a checkpoint may hold a few such names by chance
        return None
    main = max(modules, key=lambda name: len(modules[name]))
    base, shown_by = _base(shapes)
    key = shown_by or examples[main]
    return Adapter(_KIND_OF[main], base, key, shapes[key], tuple(_describe(shapes, modules, examples)))


def _describe(
    shapes: Mapping[str, Shape], modules: Mapping[str, set[str]], examples: Mapping[str, str]
) -> Iterator[str]:
    algorithms = ["BOFT" if name == "OFT" and len(shapes[examples[name]]) == 4 else name for name in modules]
    yield "algorithm: " + ", ".join(algorithms)
    ranks = [shape[0] for key, shape in shapes.items() if key.endswith(_DOWN) and shape]
    if ranks:
        low, high = min(ranks), max(ranks)
        yield f"rank: {low}" if low == high else f"rank: {low} to {high}"
    paths = set().union(*modules.values())
    text = sum(1 for path in paths if path.startswith(("lora_te", "text_encoder", "lycoris_text")))
    yield f"modules: {len(paths)} ({len(paths) - text} U-Net, {text} text encoder)"
    if any(key.endswith(_DECORATIONS) for key in shapes):
        yield "weight decomposition (DoRA)"


def _bases() -> list[Base]:
    """What the base families know of adapters that are made for them."""
    return [each.adapters for each in REGISTRY if each.adapters and not each.variant_of]


def _of_width(width: int | None) -> str:
    return next((base.name for base in _bases() if base.width == width), "")


def _base(shapes: Mapping[str, Shape]) -> tuple[str, str | None]:
    """Base model and the tensor that shows it: the text width of a cross-attention, else names that only its have."""
    for key, shape in shapes.items():
        if re.search(_CROSS_ATTENTION, key) and len(shape) > 1:
            base = _of_width(_input_width(shapes, key))
            if base:
                return base, key
    own_names = [(each.name, re.compile(each.own_names)) for each in _bases() if each.own_names]
    for key, shape in shapes.items():
        for name, pattern in own_names:
            if pattern.search(key):
                return name, key
        if key.startswith(("lora_te_", "text_encoder.")) and key.endswith(_DOWN) and "q_proj" in key:
            return _of_width(shape[-1]), key
    return "", None


_CROSS_ATTENTION = r"attn2[._](processor\.)?to_k"


def _input_width(shapes: Mapping[str, Shape], key: str) -> int | None:
    parts = _split(key)
    if parts is None:
        return None
    module, suffix = parts
    if suffix in _DOWN:
        return shapes[key][1]
    if suffix.startswith(".lokr_w"):
        factors = [shapes.get(f"{module}.lokr_w{i}") or shapes.get(f"{module}.lokr_w{i}_b") for i in (1, 2)]
        return factors[0][1] * factors[1][1] if factors[0] and factors[1] else None
    return shapes[key][1] if suffix == ".diff" else None


def _embedding(shapes: Mapping[str, Shape]) -> Adapter | None:
    """Textual inversion: the vectors of a new token, one per row."""
    for base in _bases():
        if base.embedding and set(shapes) == set(base.embedding):
            key = base.embedding[-1]
            return Adapter("textual-inversion", base.name, key, shapes[key], (f"vectors: {shapes[key][0]}",))
    named = [key for key in shapes if key == "emb_params" or key.startswith("string_to_param")]
    if not named and len(shapes) == 1:
        named = [
            key for key in shapes if not key.endswith((".weight", ".bias"))
        ]  # a diffusers concept: its only entry is called after the token
    if len(named) != 1:
        return None
    shape = shapes[named[0]]
    if len(shape) not in (1, 2) or shape[-1] not in (768, 1024, 1280):
        return None
    vectors = shape[0] if len(shape) == 2 else 1
    return Adapter("textual-inversion", _of_width(shape[-1]), named[0], shape, (f"vectors: {vectors}",))


_HYPERNETWORK = r"(320|640|768|1024|1280)\.[01]\.linear"


def _hypernetwork(shapes: Mapping[str, Shape]) -> Adapter | None:
    """A hypernetwork: for each width a pair of small networks, for keys and values."""
    widths = {int(match[1]): key for key in shapes if (match := re.match(_HYPERNETWORK, key))}
    if not widths:
        return None
    key = next(iter(widths.values()))
    base = next((each.name for each in _bases() if each.width in widths), "")
    return Adapter("hypernetwork", base, key, shapes[key], ("widths: " + ", ".join(map(str, sorted(widths))),))


def _sniff(kind: str, base: str, layout: Layout, probe: Probe) -> Match | None:
    adapter = probe.adapter(classify)
    if adapter is None or (adapter.kind, adapter.base) != (kind, base):
        return None
    return Match(adapter.key, adapter.shape, adapter.notes)


_KINDS = {
    "lora": ("LoRA", "/lora"),
    "lycoris": ("LyCORIS", "/lora"),
    "textual-inversion": ("textual inversion", "/textual-inversion"),
    "hypernetwork": ("hypernetwork", None),
}


def register_all() -> None:
    """Add every kind of adapter, for each base model and for an unknown one."""
    bases = [(each.adapters.name, each) for each in REGISTRY if each.adapters and not each.variant_of]
    for kind, (title, suffix) in _KINDS.items():
        for name, base in bases:
            architecture = base.architecture + suffix if base.architecture and suffix else None
            _register(f"{kind}-{name}", f"{title} for {base.title}", architecture, kind, name)
        _register(kind, f"{title} for an unknown base model", None, kind, "")


def _register(name: str, title: str, architecture: str | None, kind: str, base: str) -> None:
    register(Layout(name, title, architecture, sniff=partial(_sniff, kind, base)))
