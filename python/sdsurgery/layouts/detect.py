"""Which family a file belongs to, from tensor names and shapes, and whether two files may be mixed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from ..errors import printable
from . import names
from .base import REGISTRY, Encoder, Layout, wrapped
from .shapes import Shape
from .unet import CROSS_ATTENTION
from .unknown import UNKNOWN

if TYPE_CHECKING:
    from ..checkpoint import TensorInfo
    from .adapters import Adapter

_UNET_PREFIXES = (names.UNET, "", "diffusion_model.", "state_dict." + names.UNET)
# Present in every U-Net here, with another shape in every family: what a refusal can show of both sides.
_EVIDENCE = "input_blocks.4.1." + CROSS_ATTENTION
_FIRST_BIAS = "input_blocks.0.0.bias"


class Detection(NamedTuple):
    """The family of a file, the tensor that shows it, and notes for the user."""

    layout: Layout
    evidence_key: str | None
    evidence_shape: Shape | None
    notes: tuple[str, ...] = ()


class Match(NamedTuple):
    """What a family's own recogniser found."""

    key: str
    shape: Shape
    notes: tuple[str, ...] = ()


class Probe:
    """A file's tensors as recognition asks for them."""

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self.tensors = tensors
        self._names = "\n".join(("", *tensors, ""))
        self._kinds = b"\n".join((b"", *dict.fromkeys(_without_digits(self._names).split(b"\n")), b""))
        self._first: dict[str, int] = {}  # where a part that was searched for is first found
        self.lacks_anchor = False  # whether the U-Net is without its first convolution
        self.unet_prefix = self._find_unet()
        self._adapter: tuple[Adapter | None] | None = None

    def shape(self, key: str) -> Shape | None:
        """Shape of a tensor by its full name, None when it is absent."""
        info = self.tensors.get(key)
        return None if info is None else tuple(info.shape)

    def unet(self, key: str) -> Shape | None:
        """Shape of a U-Net tensor by its name below the prefix, None when it or the U-Net is absent."""
        return None if self.unet_prefix is None else self.shape(self.unet_prefix + key)

    def unet_block(self, key: str) -> bool:
        """Whether the U-Net has the tensor, or another of the transformer block in which it is the norm: a file that
        lacks one tensor is incomplete, not another family's."""
        block = key[: -len("norm1.weight")]
        return self.unet(key) is not None or (
            self.unet_prefix is not None
            and any(name.startswith(self.unet_prefix + block) for name in self.search(block))
        )

    def instead(self, key: str) -> str:
        """``key``, or the U-Net's value projection where the key projection of the same shape is absent."""
        return key if self.unet(key) is not None else key.replace(".to_k.", ".to_v.")

    def match(self, key: str, notes: tuple[str, ...] = ()) -> Match:
        """A match shown by the text width at the usual place, or by the U-Net tensor ``key`` where that is absent."""
        key = _EVIDENCE if self.unet(_EVIDENCE) else self.instead(key)
        shape = self.unet(key)
        assert shape is not None and self.unet_prefix is not None
        return Match(self.unet_prefix + key, shape, notes)

    def adapter(self, classify: Callable[[Mapping[str, TensorInfo]], Adapter | None]) -> Adapter | None:
        """What ``classify`` makes of the tensors; asked once, and never of a file with a U-Net."""
        if self.unet_prefix is not None:
            return None
        if self._adapter is None:
            self._adapter = (classify(self.tensors),)
        return self._adapter[0]

    def find(self, *keys: str, prefixes: tuple[str, ...] = ("",)) -> Match | None:
        """A match shown by the first of the tensors, all of which stand under one of the prefixes."""
        for prefix in prefixes:
            shape = self.shape(prefix + keys[0])
            if shape is not None and all(prefix + key in self.tensors for key in keys):
                return Match(prefix + keys[0], shape)
        return None

    def search(self, part: str) -> Iterator[str]:
        """The names that hold ``part``, in which a line break stands for a name's beginning or end."""
        if part not in self._first:
            # Names that differ in their numbers only are one kind: most parts are in none of these few.
            self._first[part] = self._names.find(part) if _without_digits(part) in self._kinds else -1
        at = self._first[part]
        while at >= 0:
            inside = at + part.startswith("\n")
            key = self._names[self._names.rindex("\n", 0, inside) + 1 : self._names.index("\n", inside)]
            if key in self.tensors:
                yield key
            at = self._names.find(part, at + 1)

    def prefixes(self, tail: str) -> list[str]:
        """What stands before ``tail``, in whole segments, in the names that end with it."""
        found = (key[: -len(tail)] for key in self.search(f"{tail}\n"))
        return [prefix for prefix in found if not prefix or prefix.endswith(".")]

    @property
    def wrapper(self) -> str:
        """What stands before ``model.diffusion_model.``."""
        prefix = self.unet_prefix or ""
        return prefix[: prefix.index(names.UNET)] if names.UNET in prefix else ""

    def _find_unet(self) -> str | None:
        anchors = tuple(dict.fromkeys(layout.anchor for layout in REGISTRY if layout.anchor))
        found = self._prefix_of(anchors)
        if found is None:  # of an incomplete file
            found = self._prefix_of((_FIRST_BIAS,))
            self.lacks_anchor = found is not None
        return found

    def _prefix_of(self, anchors: tuple[str, ...]) -> str | None:
        for prefix in _UNET_PREFIXES:
            if any(prefix + anchor in self.tensors for anchor in anchors):
                return prefix
        for anchor in anchors:
            for prefix in self.prefixes(anchor):
                if self._is_wrapped(prefix):
                    return prefix
        return None

    def _is_wrapped(self, prefix: str) -> bool:
        """Whether a network's prefix is one of the usual ones in a wrapper: a known one, or what all names have."""
        if _is_usual(prefix):
            return True
        front = prefix.removesuffix(names.UNET)
        if not front.endswith(".") or names.component(front) not in ("other", "unet"):  # control_model., say
            return False
        return all(key.startswith(front) for key in self.tensors)

    @property
    def unknown_wrapper(self) -> str:
        """What stands before all names, where ``names.unwrap`` does not know it; else empty."""
        prefix = self.unet_prefix or ""
        return "" if _is_usual(prefix) else prefix.removesuffix(names.UNET)


def _is_usual(prefix: str) -> bool:
    """Whether a network's prefix is one of the usual ones, or that in a known wrapper."""
    return names.unwrap(prefix + "out.") in {front + "out." for front in _UNET_PREFIXES}


def _without_digits(text: str) -> bytes:
    return text.encode(errors="surrogatepass").translate(None, b"0123456789")


def detect(tensors: Mapping[str, TensorInfo]) -> Detection:
    """The family of a file with these tensors; :data:`UNKNOWN` when nothing matches. Looks at the header only."""
    probe = Probe(tensors)
    for strict in (True, False):
        for layout in REGISTRY:
            match = layout.sniff(layout, probe) if layout.sniff else _match_network(layout, probe, strict)
            if match:
                found = wrapped(layout, probe.unknown_wrapper)
                return Detection(found, match.key, match.shape, match.notes + _notes(layout, probe))
    return Detection(UNKNOWN, None, None, _notes(UNKNOWN, probe))


def _match_network(layout: Layout, probe: Probe, strict: bool) -> Match | None:
    """Compare the network's tensors with what identifies it; not ``strict``: with any number of input channels."""
    expected = layout.network.discriminators() if layout.network else {}
    if not expected or probe.unet_prefix is None:
        return None
    if not all(map(probe.unet_block, layout.requires)):
        return None
    notes: tuple[str, ...] = ()
    for key, shape in expected.items():
        found = probe.unet(probe.instead(key))
        if found == shape or (key == layout.anchor and probe.lacks_anchor and not layout.variant_of):
            continue
        if strict or layout.variant_of or key != layout.anchor or found is None or len(found) != len(shape):
            return None
        notes = (f"the first convolution has {found[1]} input channels, which no known variant of {layout.title} has",)
    return probe.match(next(iter(expected)), notes)


def known_encoders() -> tuple[Encoder, ...]:
    """The text encoders of all families, each once, in the order of the families."""
    return tuple(dict.fromkeys(encoder for layout in REGISTRY for encoder in layout.encoders))


def text_encoders(tensors: Mapping[str, TensorInfo]) -> tuple[Encoder, ...]:
    """The text encoders found, recognised independently of the U-Net (component swaps make them disagree)."""
    return tuple(encoder for encoder, _ in _encoders(Probe(tensors)))


def _encoders(probe: Probe) -> list[tuple[Encoder, str]]:
    """Each text encoder that the file holds, and the full name of the tensor that identifies it."""
    return [
        (encoder, wrapper + encoder.key)
        for encoder in known_encoders()
        for wrapper in dict.fromkeys(("", "state_dict.", probe.wrapper))
        if probe.shape(wrapper + encoder.key) == (encoder.width,)
    ]


def _notes(layout: Layout, probe: Probe) -> tuple[str, ...]:
    notes = []
    prefix = probe.unet_prefix
    network = layout.network if layout.discriminators() else None
    if prefix == "" and network:
        notes.append(f"{network.title} only: names without 'model.diffusion_model.'")
    elif prefix is not None and network and prefix != names.UNET:
        notes.append(f"names stand under '{prefix}' instead of '{names.UNET}'")
    for encoder, key in _encoders(probe):
        if encoder.spelling:
            notes.append(f"text encoder: {encoder.title}")
        if layout is UNKNOWN:
            notes.append(f"holds the text encoder {encoder.title}")
        elif network and encoder not in layout.encoders:
            notes.append(f"the text encoder ({encoder.title}, {key}) does not belong to {layout.title}")
    for part, meaning in _BESIDE:
        beside = next(probe.search(part), None)
        if beside is not None and network:
            notes.append(f"{meaning} ({printable(beside)})")
    for marker, meaning in _MARKER_NOTES:
        if marker in probe.tensors:
            notes.append(f"{meaning} (marker tensor {marker})")
    return tuple(notes)


_BESIDE = (
    ("\ncontrol_model.", "holds a ControlNet too"),
    ("time_embedding.cond_proj.weight\n", "an LCM model: its U-Net takes the guidance as an input"),
    ("time_embed.cond_proj.weight\n", "an LCM model: its U-Net takes the guidance as an input"),
)
"""Parts of names that say more of a model of a known family."""
_MARKER_NOTES = (
    ("v_pred", "v-prediction model"),
    ("ztsnr", "zero-terminal-SNR noise schedule"),
    ("edm_mean", "EDM sampling"),
    ("edm_vpred.sigma_max", "EDM v-prediction"),
)


def conflict(a: Detection, b: Detection, who: tuple[str, str] = ("A", "B")) -> str | None:
    """None when the two may be mixed: same base family in whatever names, or an unknown one with anything.

    Otherwise one line that names both families and the tensor, with both shapes, that differs. ``who`` are
    the names of the two inputs in that line; it holds no file names, so a caller can put "A is …, B is …" in front.
    """
    if UNKNOWN in (a.layout, b.layout) or a.layout.model == b.layout.model:
        return None
    families = f"{who[0]} is {a.layout.title} ({a.layout.name}), {who[1]} is {b.layout.title} ({b.layout.name})"
    return f"{families}: {_difference(a, b, who)}"


def _difference(a: Detection, b: Detection, who: tuple[str, str]) -> str:
    (key_a, in_a), (key_b, in_b) = ((printable(d.evidence_key), size_text(d.evidence_shape or ())) for d in (a, b))
    if _relative(a) == _relative(b) and in_a != in_b:
        return f"{key_a} is {in_a} in {who[0]} and {in_b} in {who[1]}"
    for one, other, having, lacking in ((a, b, who[0], who[1]), (b, a, who[1], who[0])):
        own = [key for key in one.layout.requires if key not in other.layout.requires]
        if own:  # recognised by what the other cannot have
            return f"{having} has {names.UNET}{own[0]}, {lacking} lacks it"
    return f"{who[0]} has {key_a} {in_a}, {who[1]} has {key_b} {in_b}"


def _relative(detection: Detection) -> str:
    key = names.unwrap(detection.evidence_key or "")
    for prefix in (names.UNET, "diffusion_model.", names.VAE):
        key = key.removeprefix(prefix)
    return key


def size_text(shape: Shape) -> str:
    """``320x4x3x3``, or ``scalar`` for a 0-dim tensor: the form used in tables and messages."""
    return "x".join(map(str, shape)) or "scalar"
