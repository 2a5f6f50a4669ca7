"""Files that are not checkpoints: LoRA, LyCORIS, textual inversion, hypernetworks. Recognised and described.

Sources: kohya-ss/sd-scripts ``networks/{lora,oft}.py``, KohakuBlueleaf/LyCORIS f49d30d ``lycoris/modules``, diffusers
``utils/state_dict_utils.py``, AUTOMATIC1111/stable-diffusion-webui ``modules/textual_inversion`` and
``modules/hypernetworks``. Which base model they are for is read from the width of what they attach to.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from .. import structure
from ..adapters.keys import DOWN, MAGNITUDE, MAGNITUDE_OUT, MID, PLAIN, SET_BIAS, UP, Key, split
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


# Which algorithm a part is of, most specific first; LoRA proper is what is left.
_ALGORITHMS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("LoHa", "lycoris", ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")),
    ("LoKr", "lycoris", ("lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2")),
    ("OFT", "lycoris", ("oft_blocks", "oft_diag")),
    ("GLoRA", "lycoris", ("a1", "a2", "b1", "b2", "bm")),
    ("IA3", "lycoris", ("on_input",)),
    ("full difference", "lycoris", ("diff", "diff_b", "set_weight")),
    ("norm", "lycoris", ("w_norm", "b_norm")),
    ("LoRA", "lora", (DOWN, UP, MID)),
)
_KIND_OF = {name: kind for name, kind, _ in _ALGORITHMS}
_PARTS = {part: name for name, _, parts in _ALGORITHMS for part in parts}
_RANKED = (DOWN, "hada_w1_b")


def classify(tensors: Mapping[str, TensorInfo]) -> Adapter | None:
    """The adapter that these tensors make up, None when they make none."""
    return _network(tensors) or _embedding(tensors) or _hypernetwork(tensors)


def _network(tensors: Mapping[str, TensorInfo]) -> Adapter | None:
    named: dict[str, Key] = {}
    modules: dict[str, set[str]] = {}
    examples: dict[str, str] = {}
    others = 0
    for key in tensors:
        parts = split(key)
        if parts:
            named[key] = parts
        if parts and parts.part in _PARTS:
            algorithm = _PARTS[parts.part]
            modules.setdefault(algorithm, set()).add(parts.module)
            examples.setdefault(algorithm, key)
        elif not parts or parts.part != SET_BIAS:  # which peft writes for every layer of a network
            others += 1
            if 3 * others > 2 * len(tensors):  # a checkpoint may hold a few such names by chance
                return None
    if not modules:
        return None
    shapes = {key: tuple(info.shape) for key, info in tensors.items()}
    main = max(modules, key=lambda name: len(modules[name]))
    base, shown_by = _base(shapes, named)
    key = shown_by or examples[main]
    return Adapter(_KIND_OF[main], base, key, shapes[key], tuple(_describe(shapes, named, modules, examples)))


def _describe(
    shapes: Mapping[str, Shape],
    named: Mapping[str, Key],
    modules: Mapping[str, set[str]],
    examples: Mapping[str, str],
) -> Iterator[str]:
    algorithms = ["BOFT" if name == "OFT" and len(shapes[examples[name]]) == 4 else name for name in modules]
    yield "algorithm: " + ", ".join(algorithms)
    ranks = [shapes[key][0] for key, parts in named.items() if parts.part in _RANKED and shapes[key]]
    if ranks:
        low, high = min(ranks), max(ranks)
        yield f"rank: {low}" if low == high else f"rank: {low} to {high}"
    paths = set().union(*modules.values())
    text = sum(1 for path in paths if path.startswith(("lora_te", "text_encoder", "lycoris_text")))
    yield f"modules: {len(paths)} ({len(paths) - text} U-Net, {text} text encoder)"
    if any(parts.part in (MAGNITUDE, MAGNITUDE_OUT) for parts in named.values()):
        yield "weight decomposition (DoRA)"


def _bases() -> list[Base]:
    """What the base families know of adapters that are made for them."""
    return [each.adapters for each in REGISTRY if each.adapters and not each.variant_of]


def _of_width(width: int | None, bases: Iterable[Base]) -> str:
    return next((base.name for base in bases if base.width == width), "")


def _of_first_encoder() -> list[Base]:
    """Those with a text encoder of their own: the refiner's is the second one of SDXL."""
    return [base for base in _bases() if "text_encoder" in base.text_encoders]


def _base(shapes: Mapping[str, Shape], named: Mapping[str, Key]) -> tuple[str, str | None]:
    """Base model and the tensor that shows it: the text width of a cross-attention, else names that only its have,
    else the width of the only text encoder."""
    for key, parts in named.items():
        if len(shapes[key]) > 0 and parts.part != UP and re.search(_CROSS_ATTENTION, parts.module):
            base = _of_width(_input_width(shapes, named, parts.module), _bases())
            if base:
                return base, key
    for base, pattern in ((each.name, re.compile(each.own_names)) for each in reversed(_bases()) if each.own_names):
        for key in shapes:  # the refiner's first: its names are SDXL's, too
            if pattern.search(key):
                return base, key
    for key, parts in named.items():
        if parts.part == DOWN and _OF_ENCODER.search(parts.module) and len(shapes[key]) > 1:
            return _of_encoder(parts.module, shapes[key][1]), key
    return "", None


def _of_encoder(module: str, width: int) -> str:
    """The base model of an adapter of the first text encoder alone: SDXL has that of SD 1, so only kohya's prefix for
    models of one encoder tells them apart."""
    shared = width == _SD1_WIDTH and not module.startswith("lora_te_")
    return "" if shared else _of_width(width, _of_first_encoder())


_SD1_WIDTH = 768


def base_of(shapes: Mapping[str, Shape]) -> tuple[str, str]:
    """The base model of an adapter with these tensors (its short name) and what shows it; "" where nothing does."""
    named = {key: parts for key in shapes if (parts := split(key))}
    base, key = _base(shapes, named)
    if not base or key is None:
        return "", ""
    parts = named.get(key)
    width = next((each.width for each in _bases() if each.name == base), 0)
    if parts and re.search(_CROSS_ATTENTION, parts.module):
        return base, f"attn2.{parts.module[-4:]} takes {width} inputs"
    return base, f"it has '{key}'"


_FOREIGN = (
    ("Flux or HunyuanVideo", r"double_blocks|single_blocks|single_transformer_blocks"),
    ("Stable Diffusion 3", r"joint_blocks|lora_transformer_transformer_blocks"),
    ("a diffusion transformer (Flux, Stable Diffusion 3, PixArt, …)", r"^transformer\.transformer_blocks"),
    ("Stable Cascade", r"lora_prior_unet"),
    ("AnimateDiff (a motion LoRA)", r"motion_modules[._]"),
    ("LTX-Video", r"^diffusion_model\.transformer_blocks\."),
    ("Wan", r"blocks[._]\d+[._]cross_attn"),
    ("ControlNet-LLLite", r"^lllite_"),
    ("a ControlNet (Control-LoRA)", r"^lora_controlnet|^control_model"),
    ("IP-Adapter", r"^(ip_adapter|image_proj)\."),
)


def foreign(keys: Collection[str]) -> str | None:
    """The other network that an adapter with such keys is for, None when its names are those of our families."""
    counts = [(sum(map(bool, map(re.compile(pattern).search, keys))), name) for name, pattern in _FOREIGN]
    most, name = max(counts)
    return name if most else None


_CROSS_ATTENTION = r"attn2[._](processor\.)?to_[kv]$"
_OF_ENCODER = re.compile(
    r"^(lora_te1?_|text_encoder\.|text_encoders\.clip_[lh]\.|base_model\.model\.text_model).*q_proj$"
)


def _input_width(shapes: Mapping[str, Shape], named: Mapping[str, Key], module: str) -> int | None:
    """Inputs of a linear module, by those of its parts that show them."""
    parts = {found.part: shapes[key] for key, found in named.items() if found.module == module}
    for part in (DOWN, "hada_w1_b", "diff", "set_weight"):
        if part in parts:
            return parts[part][1] if len(parts[part]) > 1 else None
    if any(part.startswith("lokr") for part in parts):
        factors = [parts.get(f"lokr_w{i}") or parts.get(f"lokr_w{i}_b") for i in (1, 2)]
        return factors[0][1] * factors[1][1] if factors[0] and factors[1] else None
    if "a1" in parts:  # inputs × rank, or rank × inputs as LyCORIS had it
        return max(parts["a1"][:2])
    if "on_input" in parts and PLAIN in parts:
        return parts[PLAIN][0]
    return None


_WIDTHS = (768, 1024, 1280)
_TOKENS, _VECTORS = 4, 75  # of several tokens in a file, each under its own name
_OF_EMBEDDING = re.compile(r"em[bp]_params$|string_to_param")


# A placeholder token: ``<cat-toy>`` may hold anything; another word neither dots, as a parameter's path does, nor what
# networks call parameters that belong to no layer (CLIP's class_embedding, the mean and std of unCLIP's normalizer).
_TOKEN = re.compile(
    r"(?:\d+\.)?(?:<.+>|(?!(?:.*_)?(?:weight|bias|scale|gamma|beta|mean|std|var|norm|embeddings?|tokens?|quer(?:y|ies)|"
    r"proj|projection|latents?|features?)$)[^.]+)",
    re.DOTALL,
)


def _embedding(tensors: Mapping[str, TensorInfo]) -> Adapter | None:
    """Textual inversion: the vectors of a new token, or of several, one per row. OneTrainer's have twins for behind the
    text encoder (``_out``), a diffusers concept is called after its token, and a list of such has numbers before."""
    own = [key for key in tensors if not (key.endswith("_out") and key[:-4] in tensors)]
    for base in _bases():
        if base.embedding and set(own) == set(base.embedding):
            key = base.embedding[-1]
            shape = tuple(tensors[key].shape)
            return Adapter("textual-inversion", base.name, key, shape, (f"vectors: {shape[0]}",))
    stated = [key for key in own if _OF_EMBEDDING.match(key)]
    if not 1 <= len(stated or own) <= _TOKENS:
        return None
    named = {key: tuple(tensors[key].shape) for key in stated or own}
    counts = [shape[0] if len(shape) == 2 else 1 for shape in named.values()]
    if (
        (max(counts) > _VECTORS and not (stated and len(named) == 1))
        or not (stated or all(map(_TOKEN.fullmatch, named)))
        or any(len(shape) not in (1, 2) or shape[-1] not in _WIDTHS for shape in named.values())
        or len({shape[-1] for shape in named.values()}) > 1
    ):
        return None
    key, shape = next(iter(named.items()))
    notes = (f"vectors: {sum(counts)}", *([f"tokens: {len(named)}"] if len(named) > 1 else []))
    return Adapter("textual-inversion", _of_width(shape[-1], _of_first_encoder()), key, shape, notes)


_HYPERNETWORK = re.compile(r"(320|640|768|1024|1280)\.[01]\.linear")


def _hypernetwork(tensors: Mapping[str, TensorInfo]) -> Adapter | None:
    """A hypernetwork: for each width a pair of small networks, for keys and values."""
    widths = {int(match[1]): key for key in tensors if (match := _HYPERNETWORK.match(key))}
    if not widths:
        return None
    key = next(iter(widths.values()))
    base = next((each.name for each in _of_first_encoder() if each.width in widths), "")
    notes = ("widths: " + ", ".join(map(str, sorted(widths))),)
    return Adapter("hypernetwork", base, key, tuple(tensors[key].shape), notes)


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


_FACTORED = ("lora", "lycoris")
_ARRANGED = {"textual-inversion": structure.embedding, "hypernetwork": structure.hypernetwork}


def register_all() -> None:
    """Add every kind of adapter, for each base model and for an unknown one."""
    bases = [(each.adapters, each) for each in REGISTRY if each.adapters and not each.variant_of]
    for kind, (title, suffix) in _KINDS.items():
        known = _bases() if kind in _FACTORED else _of_first_encoder()
        for name, base in ((made.name, base) for made, base in bases if made in known):
            architecture = base.architecture + suffix if base.architecture and suffix else None
            _register(f"{kind}-{name}", f"{title} for {base.title}", architecture, kind, name)
        _register(kind, f"{title} for an unknown base model", None, kind, "")


def _register(name: str, title: str, architecture: str | None, kind: str, base: str) -> None:
    sniff = partial(_sniff, kind, base)
    register(Layout(name, title, architecture, sniff=sniff, arranged=_ARRANGED.get(kind, structure.flat),
                    factors=kind in _FACTORED))  # fmt: skip
