"""Adapters: baked in, extracted, merged, resized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..report.html import reported
from ..settings import (
    Keywords,
    settings_of,
)
from .common import Input, Path, spelled_out

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..adapters.lora import Lora
    from ..adapters.svd import Rank
    from ..surgery.report import Report


@spelled_out(Keywords)
def bake(
    path: Input,
    loras: Lora | Path | Mapping[str, float] | Sequence[Lora | Path],
    *,
    out: Path | None = None,
    strict: bool = False,
    check: bool = False,
    **settings: Unpack[Keywords],
) -> Report:
    """Write a checkpoint with adapters (LoRA, LyCORIS, …) applied, one after the other, rounded once.

    ``loras``: files, ``{file: strength}``, or values of ``sdsurgery.lora``, which say the strengths of U-Net and text
    encoders and block weights. Every kind and dialect of docs/adapters.md. ``strict`` refuses an adapter with modules
    that match no tensor. InputRefused for an adapter of another family, an incomplete one, one whose modules don't fit
    the checkpoint or change nothing in it. What became of every key is in ``Report.adapters``. ``check`` computes every
    changed tensor of the output again and says how far it is from what a UI computes (``Report.checked``).
    """
    from ..adapters.lora import as_loras
    from ..surgery.bake import bake as work

    wanted, given = settings_of("bake", settings, ("loras", "out", "strict", "check")), as_loras(loras)
    return reported("bake", wanted, lambda settings: work(path, given, settings, out=out, strict=strict, check=check))


@spelled_out(Keywords)
def extract_lora(
    tuned: Input,
    base: Input,
    *,
    out: Path | None = None,
    kind: str = "lora",
    rank: int | None = None,
    energy: float | None = None,
    sigma_ratio: float | None = None,
    conv_rank: int | None = None,
    clamp: float = 0.0,
    unet: bool = True,
    te: bool = True,
    names: str = "kohya",
    **settings: Unpack[Keywords],
) -> Report:
    """Write what ``tuned`` has beyond ``base`` as an adapter: up·down of each layer's difference, by its largest
    singular values.

    ``rank`` (32), or the smallest that keeps the share ``energy`` of each layer's Frobenius norm, or as many values as
    are above ``sigma_ratio`` of the largest; ``rank`` then is the most. ``kind``: lora (linear layers and 1×1
    convolutions of attention, and the text encoders), locon (all convolutions too, 3×3 ones at ``conv_rank``), dora, or
    full (differences as they are). ``names``: kohya or diffusers. A layer is left out where nothing differs, and only
    there. fp16 unless ``dtype`` says otherwise. InputRefused for different families, shapes, NaN or Inf.
    """
    from ..surgery.extract_lora import Extraction
    from ..surgery.extract_lora import extract_lora as work

    own = ("out", "kind", "rank", "energy", "sigma_ratio", "conv_rank", "clamp", "unet", "te", "names")
    given = settings_of("extract_lora", {"dtype": "fp16", **settings}, own)
    chosen = _rank(rank, energy, sigma_ratio, 32)
    of_conv = None if conv_rank is None else chosen._replace(most=conv_rank)
    wanted = Extraction(chosen, kind, of_conv, clamp, unet, te, names)
    return reported("extract_lora", given, lambda settings: work(tuned, base, wanted, settings, out=out))


def _rank(rank: int | None, energy: float | None, sigma_ratio: float | None, default: int) -> Rank:
    from ..adapters.svd import Rank

    most = default if rank is None and energy is None and sigma_ratio is None else rank or 0
    return Rank(most, energy or 0.0, sigma_ratio or 0.0)


@spelled_out(Keywords)
def merge_lora(
    loras: Lora | Path | Mapping[str, float] | Sequence[Lora | Path],
    *,
    out: Path | None = None,
    rank: int | None = None,
    energy: float | None = None,
    sigma_ratio: float | None = None,
    exact: bool = False,
    names: str = "kohya",
    **settings: Unpack[Keywords],
) -> Report:
    """Write one adapter with the effects of several, each at its strength (as ``bake`` takes them).

    Exact unless a rank is asked for (``exact`` says so): factors are put side by side and the ranks add up. ``rank``,
    ``energy`` and ``sigma_ratio`` cut the sum as ``extract_lora`` does. LoRA, LoCon, LoHa, LoKr, full differences and
    norms in any dialect; ``names``: kohya or diffusers. InputRefused for kinds whose effect depends on the weight, and
    for adapters of different families.
    """
    from ..adapters.lora import as_loras
    from ..surgery.merge_lora import merge_lora as work

    own = ("loras", "out", "rank", "energy", "sigma_ratio", "exact", "names")
    wanted, given = settings_of("merge_lora", settings, own), as_loras(loras)
    is_cut = not (rank is None and energy is None and sigma_ratio is None)
    if exact and is_cut:
        raise UsageError("exact= keeps all ranks; it excludes rank=, energy= and sigma_ratio=", code="conflict")
    chosen = _rank(rank, energy, sigma_ratio, 0) if is_cut else None
    return reported(
        "merge_lora", wanted, lambda settings: work(given, settings, rank=chosen, dialect=names, out=out)
    )  # fmt: skip


@spelled_out(Keywords)
def resize_lora(
    path: Path,
    *,
    out: Path | None = None,
    rank: int | None = None,
    energy: float | None = None,
    sigma_ratio: float | None = None,
    names: str = "kohya",
    **settings: Unpack[Keywords],
) -> Report:
    """Write an adapter at another rank: the best approximation of each module, alpha/rank unchanged. The keywords are
    those of ``extract_lora``; a DoRA keeps its lengths. InputRefused for kinds whose effect depends on the weight."""
    from ..adapters.lora import as_loras
    from ..surgery.merge_lora import merge_lora as work

    wanted = settings_of("resize_lora", settings, ("out", "rank", "energy", "sigma_ratio", "names"))
    chosen, given = _rank(rank, energy, sigma_ratio, 0), as_loras(path)
    return reported("resize_lora", wanted, lambda settings: work(
        given, settings, rank=chosen, dialect=names, verb="resize-lora", out=out,
    ))  # fmt: skip
