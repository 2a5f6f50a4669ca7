"""One checkpoint in, another out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..report.html import reported
from ..settings import (
    Keywords,
    settings_of,
)
from .common import Input, Path, spelled_out

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..surgery.convert import Conversion
    from ..surgery.report import Report


@spelled_out(Keywords)
def cast(path: Input, *, out: Path | None = None, **settings: Unpack[Keywords]) -> Report:
    """Write a checkpoint's tensors in another dtype (``dtype="fp16"``, or ``torch.float16``).

    Integers, empty tensors, noise-schedule buffers, ``position_ids`` and marker tensors are copied exactly; EMA
    weights are cast like the others.
    """
    from ..surgery.cast import cast as work

    return reported("cast", settings_of("cast", settings, ("out",)), lambda given: work(path, given, out=out))


@spelled_out(Keywords)
def ema(
    path: Input,
    *,
    out: Path | None = None,
    keep_counters: bool = False,
    to_ema: bool = False,
    **settings: Unpack[Keywords],
) -> Report:
    """Replace every U-Net weight by its EMA twin and drop the EMA keys; everything else is kept.

    A twin keeps its own dtype unless ``dtype`` asks for another. ``keep_counters`` keeps ``model_ema.decay`` and
    ``model_ema.num_updates``. ``to_ema`` does the reverse: adds a twin of every U-Net weight, and new counters.
    InputRefused when the file has no EMA or a partial one (with ``to_ema``: when it has any), or when a twin's shape is
    not its weight's.
    """
    from ..surgery.ema import ema as work

    wanted = settings_of("ema", settings, ("out", "keep_counters", "to_ema"))
    return reported("ema", wanted, lambda given: work(path, given, out=out, keep_counters=keep_counters, to_ema=to_ema))


@spelled_out(Keywords)
def prune(
    path: Input,
    *,
    out: Path | None = None,
    preset: str = "full",
    drop: Sequence[str] = (),
    keep_keys: str | Sequence[str] | None = None,
    drop_keys: str | Sequence[str] | None = None,
    strict: bool = False,
    **settings: Unpack[Keywords],
) -> Report:
    """Write a checkpoint without some of its tensors.

    ``preset``: full (everything but training leftovers), no-ema, ema-only (the EMA weights in the U-Net's place),
    inference (without what no program reads, too: schedules, a trainer's losses). ``drop``: components to drop as well.
    ``keep_keys`` and ``drop_keys``: regular expressions, one or several, searched in the names; keeping wins. Keys of
    no known component are kept and listed; ``strict`` drops them. Training leftovers never
    survive; markers and the tensors by which this and other programs recognise the family are never dropped.
    UsageError for an unknown preset or component or a bad expression; InputRefused for ``inference`` of an unknown
    family or of a model that lacks tensors, ``ema-only`` without a full EMA, and when nothing would be left.
    """
    from ..surgery.prune import prune as work

    wanted = settings_of("prune", settings, ("out", "preset", "drop", "keep_keys", "drop_keys", "strict"))
    return reported(
        "prune",
        wanted,
        lambda given: work(
            path, given, out=out, preset=preset, drop=drop, keep_keys=keep_keys, drop_keys=drop_keys, strict=strict
        ),
    )


@spelled_out(Keywords)
def fix_clip(path: Input, *, out: Path | None = None, **settings: Unpack[Keywords]) -> Report:
    """Write int64 0…76 wherever the family has position_ids and drop misplaced ones; everything else is unchanged.

    InputRefused when the family is not known.
    """
    from ..surgery.fix_clip import fix_clip as work

    return reported("fix_clip", settings_of("fix_clip", settings, ("out",)), lambda given: work(path, given, out=out))


@spelled_out(Keywords)
def extract(
    path: Input,
    component: str | None = None,
    *,
    out: Path | None = None,
    prefix: str | None = None,
    keys: str | None = None,
    strip_prefix: bool = False,
    **settings: Unpack[Keywords],
) -> Report:
    """Write one component of a checkpoint (``unet``, ``vae``, ``text_encoder``, ``controlnet``, …) to a file of its
    own, or the tensors whose names begin with ``prefix``, or those that the regular expression ``keys`` finds.

    ``strip_prefix`` takes off what the family puts before the component's names (``first_stage_model.``), ``prefix``,
    or what all of the names begin with; an OpenCLIP encoder comes out under open_clip's own names. UsageError for an
    unknown component, InputRefused when the file has none.
    """
    from ..surgery.components import extract as work

    wanted = settings_of("extract", settings, ("out", "prefix", "keys", "strip_prefix"))
    return reported("extract", wanted, lambda given: work(
        path, given, component=component, prefix=prefix, keys=keys, out=out, strip_prefix=strip_prefix,
    ))  # fmt: skip


@spelled_out(Keywords)
def replace(
    path: Input,
    donors: Mapping[str, Input],
    *,
    out: Path | None = None,
    allow_missing: bool = False,
    **settings: Unpack[Keywords],
) -> Report:
    """Put other files' components into a checkpoint: ``replace("a", {"vae": "vae.safetensors"}, out="b")``.

    A donor is a full checkpoint or a file of only that component, in the original, old or diffusers names; its
    tensors keep their own dtype unless ``dtype`` asks for another. ``[o,i,1,1]`` and ``[o,i]`` are the same matrix.
    Tensors that the donor lacks or has too many are refused; ``allow_missing`` keeps the checkpoint's own, or leaves
    the donor's out. UsageError for an unknown component or none at all.
    """
    from ..surgery.components import replace as work

    wanted = settings_of("replace", settings, ("out", "allow_missing"))
    return reported("replace", wanted, lambda given: work(path, donors, given, out=out, allow_missing=allow_missing))


@spelled_out(Keywords)
def convert(path: Input, *, out: Path | None = None, names: str | None = None, **settings: Unpack[Keywords]) -> Report:
    """Write a checkpoint in the format that the suffix of ``out`` asks for.

    Names, dtypes and shapes stay (``dtype="fp16"`` casts on the way); views become contiguous. Tensors that share
    their data are written once where the format can say so. ``names``: kohya or diffusers, the dialect of an adapter;
    to diffusers all kinds become LoRA, as by ``merge_lora``.
    """
    from ..surgery.convert import convert as work

    wanted = settings_of("convert", settings, ("out", "names"))
    return reported("convert", wanted, lambda given: work(path, given, out=out, names=names))


@spelled_out(Keywords)
def convert_all(
    paths: Sequence[Path],
    *,
    out_dir: Path,
    to: str = "safetensors",
    names: str | None = None,
    started: Callable[[Conversion], None] = lambda conversion: None,
    **settings: Unpack[Keywords],
) -> list[Conversion]:
    """Convert many files into a folder (made when it is missing), under their own names with the suffix of ``to``.

    ``started`` is called with each before its work begins. A file that cannot be converted does not stop the others:
    its error is in its place of the list. UsageError when two files would get one name, or for an unknown format;
    Interrupted at once.
    """
    from ..files import expanded
    from ..surgery.convert import convert_all as work

    wanted = settings_of("convert_all", settings, ("out_dir", "to", "names", "started"))
    return reported("convert", wanted, lambda given: work(
        paths, given, out_dir=expanded(out_dir), to=to, names=names, started=started,
    ))  # fmt: skip
