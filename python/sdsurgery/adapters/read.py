"""An adapter's file: its modules by name, each with its parts, and what metadata say about alpha.

Any format of checkpoints, or a folder as peft writes it. Only headers and single numbers (alpha, on_input) are read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, sqrt
from typing import TYPE_CHECKING

from ..checkpoint import Checkpoint, TensorInfo, open_checkpoint
from ..errors import InputRefused, printable
from ..layouts import UNKNOWN, adapters, detect
from . import keys, names
from .kinds import OF_BIAS, Fitted, Kind, fitted, kind_of
from .peft_settings import BESIDE, PeftSettings, settings_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..settings import Reading

Parts = dict[str, TensorInfo]
_WEIGHTS = (*BESIDE, "pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
_SCALES = ("weight_scale", "scale_weight", "comfy_quant")  # of encoded weights
_RANKED = ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b", "a2")


@dataclass
class Adapter:
    """An opened adapter; ``close`` it. ``base`` is the short name of the family that it is made for, "" where nothing
    shows it; ``evidence`` the line that says how one knows. ``strangers`` are keys that are not an adapter's."""

    checkpoint: Checkpoint
    modules: dict[str, Parts]
    base: str = ""
    evidence: str = ""
    bundled: tuple[str, ...] = ()
    strangers: tuple[str, ...] = ()
    peft: PeftSettings = field(default_factory=PeftSettings)
    keys: dict[tuple[str, str], str] = field(default_factory=dict)  # (module, part) -> the key in the file

    @property
    def path(self) -> str:
        return self.checkpoint.path

    def close(self) -> None:
        self.checkpoint.close()

    def shapes(self, module: str) -> dict[str, tuple[int, ...]]:
        """The shapes of a module's parts."""
        return {part: info.shape for part, info in self.modules[module].items()}

    def kind(self, module: str) -> Kind | None:
        """What the module does to its weight; None where it changes only a bias, or nothing."""
        try:
            return kind_of(module, self.shapes(module))
        except InputRefused as error:
            raise self._own(error) from None

    def fit(self, kind: Kind, module: str, shape: tuple[int, ...]) -> Fitted:
        """The module's factors for a weight of that shape. InputRefused when a part is missing or doesn't fit."""
        try:
            return fitted(kind, module, self.shapes(module), shape)
        except InputRefused as error:
            raise self._own(error) from None

    def _own(self, error: InputRefused) -> InputRefused:
        """With the file's name, of which there may be several."""
        return error.within(printable(self.path), path=self.path)

    def rank(self, module: str) -> int | None:
        """Rows of the module's right factor; None where it has none."""
        parts = self.modules[module]
        return next((parts[part].shape[0] for part in _RANKED if part in parts and parts[part].shape), None)

    def number(self, module: str, part: str) -> float | None:
        """The value of a part that is one number; None without it. InputRefused when it isn't one."""
        info = self.modules[module].get(part)
        if info is None:
            return None
        found = self.checkpoint.numbers(info) if info.elements == 1 else []
        if not found or not isfinite(found[0]):
            what = found[0] if found else f"{info.dtype.name} {list(info.shape)}"
            raise InputRefused(
                f"{printable(self.path)}: tensor '{printable(info.name)}' must be one number, not {what}",
                code="damaged",
                tensor=info.name,
                path=self.path,
            )
        return float(found[0])

    def alpha(self, module: str) -> float | None:
        """Alpha of a module: its own, or what peft's settings say; None where nothing does."""
        own = self.number(module, keys.ALPHA)
        return self.peft.alpha(module) if own is None else own

    def scale(self, module: str, rank: int | None) -> float:
        """What the module's product is multiplied by: alpha/rank, or alpha/√rank for rs-LoRA; 1 without an alpha.
        ``rank`` is None for a product of whole factors, whose own alpha counts nothing; peft divides it by the rank of
        its settings. A1111's ``scale`` stands for all of it."""
        stated = self.number(module, "scale") if "scale" in self.modules[module] else None
        if stated is not None:
            return stated
        alpha, is_own = self.alpha(module), keys.ALPHA in self.modules[module]
        divisor = self.peft.rank(module) if rank is None and not is_own else rank
        if alpha is None or not divisor:
            return 1.0
        return alpha / (sqrt(divisor) if not is_own and self.peft.is_rescaled(module) else divisor)

    def kinds(self) -> dict[str, int]:
        """Modules by kind."""
        counts: dict[str, int] = {}
        for module in self.modules:
            kind = self.kind(module)
            title = kind.name if kind else "bias"
            counts[title] = counts.get(title, 0) + 1
        return counts

    def dialects(self) -> dict[str, int]:
        """Modules by the dialect of their names."""
        counts: dict[str, int] = {}
        for module in self.modules:
            dialect = names.dialect_of(module)
            counts[dialect] = counts.get(dialect, 0) + 1
        return counts


def in_words(base: str) -> str:
    """The short name of a family as people write it: ``SD1``, ``SDXL refiner``."""
    short, _, rest = base.partition("-")
    return f"{short.upper()} {rest}".rstrip()


def counted(counts: Mapping[str, int]) -> str:
    """``LoRA 3, bias 2``; the name alone of the only one."""
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{name} {count}" for name, count in counts.items())


def summary(kinds: Mapping[str, int], dialects: Mapping[str, int], base: str) -> str:
    """``LoRA, names of kohya, for sd1``."""
    return f"{counted(kinds)}, names of {counted(dialects)}, for {base or 'an unknown model'}"


def open_adapter(path: str | os.PathLike[str], **opening: Unpack[Reading]) -> Adapter:
    """Open an adapter: a file, or a folder as peft and diffusers write it. InputRefused for what is none."""
    checkpoint = open_checkpoint(file_of(path), **opening)
    try:
        return read_adapter(checkpoint)
    except BaseException:
        checkpoint.close()
        raise


def read_adapter(checkpoint: Checkpoint) -> Adapter:
    """The adapter that an opened file is. InputRefused for what is none."""
    checkpoint.require_usable()
    adapter = _read(checkpoint)
    if adapter is None:
        raise _refusal(checkpoint)
    scales = next((name for name in adapter.strangers if name.rpartition(".")[2] in _SCALES), None)
    if scales is not None:
        raise InputRefused(
            f"{printable(checkpoint.path)}: '{printable(scales)}' scales codes of fp8 or int8, which are not read in "
            "an adapter",
            code="encoded",
            tensor=scales,
            path=checkpoint.path,
        )
    return adapter


def adapter_of(checkpoint: Checkpoint) -> Adapter | None:
    """The adapter that an opened file is; None for a file that is none, or no usable one."""
    try:
        return None if checkpoint.unusable else _read(checkpoint)
    except InputRefused:
        return None


def file_of(path: str | os.PathLike[str]) -> str:
    """The file of an adapter, which may be given by its folder. InputRefused for a folder without one."""
    text = os.fspath(path)
    if not os.path.isdir(text):
        return text
    inside = weights_in(text)
    if inside is None:
        from ..formats.strangers import folder as told

        neither = f"a folder without a weights file (a folder with an adapter has {_WEIGHTS[0]} or {_WEIGHTS[2]})"
        raise InputRefused(f"{printable(text)}: {told(text) or neither}", code="not_found", path=text)
    return inside


def label(path: str) -> str:
    """What reports call an adapter: its file's name, or the folder's where all such files have the same."""
    folder, name = os.path.split(path)
    return printable(os.path.basename(folder) if folder and name in _WEIGHTS else name)


def weights_in(folder: str | os.PathLike[str]) -> str | None:
    """The adapter's file in a folder as peft and diffusers write it; None where there is none."""
    paths = (os.path.join(folder, name) for name in _WEIGHTS)
    return next((path for path in paths if os.path.isfile(path)), None)


def _read(checkpoint: Checkpoint) -> Adapter | None:
    """The adapter that the file is; None for one that is none, or one of other models."""
    modules: dict[str, Parts] = {}
    spelled: dict[tuple[str, str], str] = {}
    bundled, strangers = [], []
    for name, info in checkpoint.tensors.items():
        key = keys.split(name)
        if keys.is_bundled(name):
            bundled.append(name)
        elif key is None:
            strangers.append(name)
        else:
            parts = modules.setdefault(key.module, {})
            if key.part in parts:
                raise InputRefused(
                    f"{printable(checkpoint.path)}: '{printable(parts[key.part].name)}' and '{printable(name)}' are "
                    "the same part of one module",
                    code="damaged",
                    tensor=name,
                    path=checkpoint.path,
                )
            parts[key.part] = info
            spelled[key.module, key.part] = name
    for module, parts in list(modules.items()):
        left = _without_strangers(parts)
        strangers += [info.name for part, info in parts.items() if part not in left]
        modules[module] = left
        if not left:
            del modules[module]
    adapter = Adapter(checkpoint, modules, bundled=tuple(bundled), strangers=tuple(strangers), keys=spelled)
    changes = any(adapter.kind(module) or any(part in parts for part in OF_BIAS) for module, parts in modules.items())
    if not changes or adapters.foreign(checkpoint.tensors):
        return None
    adapter.base, adapter.evidence = adapters.base_of({name: info.shape for name, info in checkpoint.tensors.items()})
    adapter.peft = settings_of(checkpoint)
    return adapter


def _without_strangers(parts: Parts) -> Parts:
    """A module's parts; ``weight``, ``bias`` and the like are an adapter's only beside those that nothing else has."""
    if "on_input" in parts:
        return parts
    left = {part: info for part, info in parts.items() if part != keys.PLAIN}
    return left if any(keys.Key("", part).is_telling for part in left) else {}


def _refusal(checkpoint: Checkpoint) -> InputRefused:
    found = detect(checkpoint.tensors)
    family = found.layout.name
    path = printable(checkpoint.path)
    foreign = adapters.foreign(checkpoint.tensors)
    unread = next(filter(None, map(keys.unread, checkpoint.tensors)), None)
    if foreign:
        text = f"{path}: made for {foreign}, not for Stable Diffusion"
    elif family.startswith("textual-inversion"):
        text = f"{path}: a textual inversion is an input of the text encoder; it cannot be baked into a checkpoint"
    elif family.startswith("hypernetwork"):
        text = f"{path}: a hypernetwork is not linear in its input; it cannot be baked into a checkpoint"
    elif unread:
        text = f"{path}: {unread} cannot be read; docs/adapters.md lists the kinds that can"
    elif family == UNKNOWN.name:
        text = f"{path}: not an adapter: no tensor is named as in LoRA, LyCORIS or the like"
    else:
        text = f"{path}: an adapter is expected, but this is {found.layout.title}"
    return InputRefused(text, code="family", path=checkpoint.path)
