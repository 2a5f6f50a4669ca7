"""A layout: the rules of one checkpoint family. Every family file registers some."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from . import names
from .shapes import Row, Shape

if TYPE_CHECKING:
    from ..structure import Structure
    from .detect import Match, Probe


class LayoutTensor(NamedTuple):
    """One tensor of a family.

    ``dtype_class`` is ``float`` (whatever float type the file uses), ``int64`` or ``int32``. ``block`` is the merge
    block under which published block-weight lists count the tensor, None where it must not be block-weighted.
    """

    key: str
    shape: Shape
    dtype_class: str
    component: str
    block: str | None


class Part(NamedTuple):
    """One module of a checkpoint: its component, the prefix of its names, and the rows below that prefix.

    ``evidence`` are names below the prefix whose shapes show what the module is, so a reduced file keeps them.
    ``position_ids`` is the name of a text encoder's constant 0…76.
    """

    component: str
    prefix: str
    rows: Callable[[], Iterator[Row]]
    evidence: tuple[str, ...] = ()
    position_ids: str | None = None

    @property
    def openclip(self) -> bool:
        """Whether it is an encoder in open_clip's names, which stand under ``model.`` in a checkpoint."""
        return "model.ln_final.weight" in self.evidence


EPSILON, V_PREDICTION = "epsilon", "v-prediction"


class Network(Protocol):
    """The diffusion network of a family. All names are those below the network's prefix in a checkpoint.

    ``anchor`` is a tensor that shows where the network stands; its second dimension counts the input channels.
    ``component`` is the network's component, ``title`` its kind in notes. ``blocks`` are its merge blocks in order,
    ``lists`` the sets of blocks for which plain lists of numbers are exchanged.
    """

    @property
    def anchor(self) -> str: ...
    @property
    def component(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def blocks(self) -> tuple[str, ...]: ...
    @property
    def lists(self) -> tuple[tuple[str, ...], ...]: ...

    def owns(self, key: str) -> bool:
        """Whether a tensor belongs to the network."""

    def block(self, key: str) -> str | None:
        """The merge block of one of its tensors, None for a tensor of no block."""

    def discriminators(self) -> dict[str, Shape]:
        """Tensors and shapes that identify the network; empty when only its names are known."""

    def presets(self) -> Mapping[str, tuple[float, ...]]:
        """Named block weights, one number for each of ``blocks``; empty for a network without presets."""


class Encoder(NamedTuple):
    """A text encoder of a family: the 1-dim tensor that identifies it, and that tensor's width.

    ``spelling`` says how its names differ from the usual ones; it is empty for the usual ones.
    """

    key: str
    width: int
    name: str
    spelling: str = ""

    @property
    def title(self) -> str:
        """Name and spelling in one text, as notes show it."""
        return f"{self.name} in {self.spelling}" if self.spelling else self.name


class Release(NamedTuple):
    """Published models by the beginning of their ModelSpec id, with their usual resolution.

    ``prediction`` is set where an id says what the model predicts although names and shapes do not.
    """

    architecture: str
    resolution: str
    prediction: str | None = None


class Diffusers(NamedTuple):
    """What the names of a family in diffusers depend on, beside the tensors themselves.

    ``class_label``: the vector added to the time embedding is a ``class_embedding``, not an ``add_embedding``.
    ``position_ids``: the folders have them. ``whole``: the names of every module are known.
    """

    class_label: bool = False
    position_ids: bool = False
    whole: bool = True


class Adapters(NamedTuple):
    """What is known of adapters that are made for a family: LoRAs, embeddings, hypernetworks.

    ``name`` is the base model's in the names of their layouts (``lora-sd1``), ``width`` that of the text which its
    cross-attention reads. ``text_encoders``: component to kohya's prefix of the names in it. ``original_paths``:
    kohya's names of the U-Net come from the original names, not from diffusers'. ``own_names`` is a regular expression
    for names that only its adapters have, ``embedding`` the tensors of an embedding for all its text encoders.
    ``versions`` are kohya's words for the base model: of its usual prediction, and of v-prediction where that differs.
    """

    name: str
    width: int
    text_encoders: Mapping[str, str]
    original_paths: bool = False
    own_names: str | None = None
    embedding: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()


class PredictionSign(NamedTuple):
    """A tensor whose values spread more widely (standard deviation above ``spread``) in v-prediction models."""

    key: str
    spread: float


@dataclass(frozen=True, eq=False)
class Layout:
    """One family of checkpoints; also :data:`UNKNOWN`, whose rules work on any names.

    ``architecture`` is the ModelSpec id, None where there is none. ``parts`` are in module order (that of
    ``state_dict()`` of the original code, not that of a file); a family without them is recognised, not generated.
    ``prediction`` is what its models usually predict, None for a family that is not a complete model.
    """

    name: str
    title: str
    architecture: str | None = None
    parts: tuple[Part, ...] = ()
    network: Network | None = None
    variant_of: str | None = None
    embedder_0: str = "text_encoder"  # what conditioner.embedders.0. holds
    vae_block: str | None = "BASE"  # the block under which published lists count the VAE
    optional_prefixes: tuple[str, ...] = ()
    ema_last: bool = False  # sgm registers the EMA twin after everything else, latent-diffusion after the U-Net
    requires: tuple[str, ...] = ()  # U-Net keys without which a file of the right widths is something else
    sniff: Callable[[Layout, Probe], Match | None] | None = None  # instead of comparing the U-Net's configuration
    anchor: str | None = None  # of the network, where the family has no :class:`Network`
    encoders: tuple[Encoder, ...] = ()
    prediction: str | None = None
    prediction_sign: PredictionSign | None = None  # asked before the usual prediction
    releases: tuple[Release, ...] = ()
    implementation: str = "sgm"  # ModelSpec's name of the code whose tensor names these are
    task: str = ""  # "inpainting" or "edit", for a model that is made for that
    recognised: tuple[str, ...] = ()  # full names by which other programs recognise the family
    other_places: tuple[tuple[str, str], ...] = ()  # (prefix in some files, the family's own)
    diffusers: Diffusers | None = None  # None: no form of it in diffusers' names
    adapters: Adapters | None = None  # of a base model
    # names, title and plain values beside the tensors -> how a pickle holds them
    arranged: Callable[[Sequence[str], str, Mapping[str, Any]], Structure] | None = None
    factors: bool = False  # an adapter whose effect is a product of tensors
    alone: str = ""  # the component that such a file holds, and nothing else
    openclip: bool = False  # an OpenCLIP encoder in transformers' names
    original: Layout | None = None  # of a family in diffusers' names: the one that it is made from
    wrapper: str = ""  # what stands before all names of a file, and is no wrapper that ``names`` knows
    blocks: tuple[str, ...] = field(init=False)
    _known_blocks: frozenset[str | None] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        own = self.network.blocks if self.network else ()
        blocks = ("BASE", *own, "VAE") if self.network or self.parts else ()  # merge blocks don't apply to adapters
        object.__setattr__(self, "blocks", blocks)
        if self.network:
            object.__setattr__(self, "anchor", self.network.anchor)
        object.__setattr__(self, "_known_blocks", frozenset(self.blocks))

    def __repr__(self) -> str:
        return f"<Layout {self.name}>"

    @property
    def base(self) -> str:
        """Name of the 4-channel family of which this one is a variant, or its own name."""
        return self.variant_of or self.name

    @property
    def model(self) -> str:
        """:attr:`base` in the original names: a family and its diffusers form are one model."""
        return (self.original or self).base

    @property
    def components(self) -> frozenset[str]:
        """What a complete file of the family consists of; empty where that is not known."""
        return frozenset(part.component for part in self.parts)

    @property
    def input_channels(self) -> int | None:
        """Input channels of the network, None where they are not known."""
        shape = self.network.discriminators().get(self.network.anchor) if self.network else None
        return shape[1] if shape else None

    @property
    def has_ema(self) -> bool:
        """Whether checkpoints of the family can hold an EMA twin of the U-Net."""
        return any(part.prefix == names.UNET for part in self.parts)

    def tensors(self, *, ema: bool = False) -> tuple[LayoutTensor, ...]:
        """Every tensor of a complete checkpoint in module order; with ``ema`` also the U-Net's twin and its counters.

        Raises ValueError when the family's tensors are not known, or with ``ema`` when it has no U-Net to shadow.
        """
        if not self.parts:
            raise ValueError(f"the tensors of the family '{self.name}' are not known")
        if ema and not self.has_ema:
            raise ValueError(f"the family '{self.name}' has no EMA weights")
        return _tensors(self, ema)

    def unwrap(self, key: str) -> str:
        """``key`` without what wraps all names of the file (``names.unwrap``, and :attr:`wrapper`)."""
        return names.unwrap(key.removeprefix(self.wrapper))

    def traits(self, key: str) -> Traits:
        """``component``, ``block``, ``exact_copy`` and ``is_ema`` of a tensor name at once."""
        return _traits(self, key)

    def component(self, key: str) -> str:
        """Component of a tensor name, listed or not.

        One of ``unet vae text_encoder text_encoder_2 text_encoder_3 ema buffers depth image_encoder controlnet marker
        optimizer training other``, or that of the family's network.
        """
        return self.traits(key).component

    def block(self, key: str) -> str | None:
        """Merge block whose weight applies to ``key``, None where a tensor must not be block-weighted.

        The VAE is a block of its own in every family (design); :attr:`LayoutTensor.block` names the block under which
        published lists count it. An EMA key has the block of the tensor that it shadows.
        """
        return self.traits(key).block

    def exact_copy(self, key: str) -> bool:
        """Whether ``key`` is copied byte for byte, never averaged and never cast.

        ``position_ids``, noise-schedule buffers, markers, EMA counters, scales of quantised weights, training state.
        """
        return self.traits(key).exact_copy

    def is_ema(self, key: str) -> bool:
        """Whether ``key`` is an EMA weight or one of the two EMA counters."""
        return self.unwrap(key).startswith(names.EMA)

    def ema_twin(self, key: str) -> str | None:
        """EMA key of a U-Net key, else None: ``model_ema.`` + the name after ``model.`` with the dots removed.

        Source: ``LitEma`` in ``ldm/modules/ema.py``. The rule can't be undone by parsing, only by lookup.
        """
        bare = key.removeprefix(self.wrapper)
        if not bare.startswith(names.UNET) or bare in names.MARKERS:
            return None
        return key[: len(key) - len(bare)] + names.EMA + bare[len("model.") :].replace(".", "")

    def optional(self, key: str) -> bool:
        """Whether a valid file of the family may lack ``key`` (true of any key that the family doesn't list)."""
        component = self.component(key)
        key = self.unwrap(key)
        if component in ("buffers", "ema", "marker", "optimizer", "training", "other"):
            return True
        return names.is_position_ids(key) or key.startswith(self.optional_prefixes)

    def position_ids(self) -> tuple[str, ...]:
        """Keys that hold the constant 0…76 (int64, shape 1x77) in this family."""
        return _position_ids(self)

    def discriminators(self) -> dict[str, Shape]:
        """Full names and shapes of the tensors that recognition looks at; empty where none are known."""
        if self.network is None:
            return {}
        return {names.UNET + key: shape for key, shape in self.network.discriminators().items()}

    def is_evidence(self, key: str) -> bool:
        """Whether the shape of a listed tensor, or of the weight that an EMA key shadows, identifies a module."""
        return key in _evidence(self)

    def identifies(self, key: str) -> bool:
        """Whether this package or another program recognises the family, or how to sample it, by ``key``."""
        key = self.unwrap(key)
        return key in names.MARKERS or key in _identifying(self)


class Traits(NamedTuple):
    """What a tensor's name says about it in a family."""

    component: str
    block: str | None
    exact_copy: bool
    ema: bool


# A name's first segments decide nearly everything: a thousand names have some two hundred different beginnings.
_SEGMENTS = 5


@lru_cache(maxsize=4096)
def _traits(layout: Layout, key: str) -> Traits:
    key = layout.unwrap(key)
    beginning = key.split(".", _SEGMENTS)
    stem = key if len(beginning) <= _SEGMENTS else ".".join(beginning[:_SEGMENTS])
    return _traits_of(layout, stem, names.is_weight(key), names.is_scale(key))


@lru_cache(maxsize=4096)
def _traits_of(layout: Layout, stem: str, weight: bool, scale: bool) -> Traits:
    """Of an unwrapped name that begins with ``stem``, or is it where it has no more segments."""
    component = _component(layout, stem)
    block = _block(layout, stem, component, weight, scale) if layout.blocks else None
    exact = not weight or stem in names.EMA_COUNTERS or component in ("buffers", "marker", "optimizer")
    return Traits(component, block, exact, stem.startswith(names.EMA))


def _component(layout: Layout, key: str) -> str:
    if layout.network is not None and layout.network.owns(key.removeprefix(names.UNET)):
        return layout.network.component
    return names.component(key, layout.embedder_0)


def _block(layout: Layout, key: str, component: str, weight: bool, scale: bool) -> str | None:
    if layout.network is not None and component == layout.network.component:
        block = layout.network.block(key.removeprefix(names.UNET))
        return block if block in layout._known_blocks and (weight or not scale) else None
    if component in ("text_encoder", "text_encoder_2", "text_encoder_3", "training", "other"):
        return "BASE" if weight else None
    if component == "vae":
        return "VAE"
    if component == "ema":
        return _ema_blocks(layout).get(key)
    return None


REGISTRY: list[Layout] = []


def register(layout: Layout, *, first: bool = False) -> Layout:
    """Add a family. Families are asked in the order of registration; the first that recognises a file wins.

    ``first``: before all others, for what has a known network and something beside it that makes it another kind.
    """
    REGISTRY.insert(0 if first else len(REGISTRY), layout)
    return layout


@cache
def wrapped(layout: Layout, wrapper: str) -> Layout:
    """The family for a file before all of whose names ``wrapper`` stands."""
    return replace(layout, wrapper=wrapper) if wrapper else layout


@cache
def _tensors(layout: Layout, ema: bool) -> tuple[LayoutTensor, ...]:
    rows: list[LayoutTensor] = []
    for part in layout.parts:
        own = [_tensor(layout, part, name, shape) for name, shape in part.rows()]
        rows += own
        if ema and part.prefix == names.UNET and not layout.ema_last:
            rows += _ema(layout, own)
    if ema and layout.ema_last:
        rows += _ema(layout, [row for row in rows if row.key.startswith(names.UNET)])
    return tuple(rows)


def _tensor(layout: Layout, part: Part, name: str, shape: Shape) -> LayoutTensor:
    key = part.prefix + name
    dtype_class = "int64" if names.is_position_ids(key) else "float"
    block = layout.vae_block if part.component == "vae" else layout.block(key)
    return LayoutTensor(key, shape, dtype_class, part.component, block)


def _ema(layout: Layout, unet: list[LayoutTensor]) -> Iterator[LayoutTensor]:
    decay, updates = names.EMA_COUNTERS
    yield LayoutTensor(decay, (), "float", "ema", None)
    yield LayoutTensor(updates, (), "int32", "ema", None)
    for row in unet:
        twin = layout.ema_twin(row.key)
        assert twin is not None
        yield LayoutTensor(twin, row.shape, row.dtype_class, "ema", row.block)


@cache
def _ema_blocks(layout: Layout) -> dict[str, str | None]:
    if not layout.has_ema:
        return {}
    return {layout.ema_twin(row.key) or "": row.block for row in layout.tensors() if row.key.startswith(names.UNET)}


@cache
def _identifying(layout: Layout) -> frozenset[str]:
    own = {*layout.discriminators(), *(names.UNET + key for key in layout.requires)}
    if not layout.parts:  # then any
        return frozenset(own.union(*(each.recognised for each in REGISTRY)))
    listed = {row.key for row in layout.tensors()}
    return frozenset(own | listed.intersection(layout.recognised))


@cache
def _evidence(layout: Layout) -> frozenset[str]:
    found = [part.prefix + name for part in layout.parts for name in part.evidence]
    twins = [layout.ema_twin(key) for key in found] if layout.has_ema else []
    return frozenset((*found, *(twin for twin in twins if twin)))


@cache
def _position_ids(layout: Layout) -> tuple[str, ...]:
    return tuple(row.key for row in layout.tensors() if row.dtype_class == "int64") if layout.parts else ()
