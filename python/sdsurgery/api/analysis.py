"""What files are, how alike they are, what they were made of; nothing is written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..report.html import reported
from ..settings import Fallback, Io, Progress, Reading, settings_of
from .common import Input, Path, listed, spelled_out

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..surgery.compare import Comparison
    from ..surgery.inspect import Inspection
    from ..surgery.relations import Relations
    from ..surgery.unmix import Unmixing
    from ..surgery.verify import Verification


class Examining(Reading, total=False):
    """Keywords of ``verify``: those of ``open``, and how the file is read."""

    threads: int
    io: Io
    hash: bool
    progress: Progress | bool | None


class Showing(Reading, total=False):
    """Keywords of ``inspect``: those of ``open``, and its page."""

    html: str | os.PathLike[str] | None
    overwrite: bool


class Comparing(Showing, total=False):
    """Keywords of ``compare``, ``unmix`` and ``relations``."""

    threads: int
    io: Io
    backend: str
    gpu_memory: int
    fallback: Fallback
    fix_names: bool
    tile_bytes: int
    progress: Progress | bool | None


@spelled_out(Showing)
def inspect(
    path: Path,
    *,
    base: Path | None = None,
    keys: str | None = None,
    hashes: bool = False,
    progress: Progress | None = None,
    **settings: Unpack[Showing],
) -> Inspection:
    """Family, components, EMA, dtypes, metadata, recipe and faulty position_ids; no other tensor is read.

    Of an adapter (``path`` may be a folder as peft writes it) also kinds, dialects, ranks, alphas and facts of its
    training, and beside a ``base`` model how much each tensor changes: ``Inspection.adapter``. ``keys`` lists the
    tensors whose names this regular expression finds (``""``: all): ``Inspection.tensors``. ``hashes`` reads the whole
    file and computes every hash of it. The other keywords are those of ``open``, and ``html``. UsageError for a base
    of a file that is no adapter, and for a bad expression.
    """
    from ..surgery.inspect import inspect as work

    own = ("base", "keys", "hashes", "progress")
    wanted = settings_of("inspect", settings, own, Showing.__annotations__)
    return reported("inspect", wanted, lambda given: work(
        path, base, keys=keys, hashes=hashes, progress=progress, **given.opening
    ))  # fmt: skip


@spelled_out(Comparing)
def compare(a: Input, b: Input, *, base: Input | None = None, **settings: Unpack[Comparing]) -> Comparison:
    """Compare two checkpoints tensor by tensor, by name. ``[o, i, 1, 1]`` and ``[o, i]`` are the same shape.

    Of two adapters also what they change, module by module, whatever their kinds and names: ``Comparison.effects``.
    ``base`` is a model for adapters whose change depends on the weight (DoRA, OFT, …). ``fix_names`` reads old and
    foreign names as the family's own; ``backend`` is cpu, cuda or reference. No other setting changes a bit of the
    numbers. InputRefused when a file is damaged or cannot be read, UsageError when the backend cannot be used or has
    no reductions, and for a base of files that are not adapters of one family.
    """
    from ..surgery.compare import compare as work

    wanted = settings_of("compare", settings, ("base",), Comparing.__annotations__)
    return reported("compare", wanted, lambda given: work(a, b, given, base=base))


@spelled_out(Comparing)
def unmix(
    mix: Input,
    candidates: Sequence[Input] = (),
    *,
    folder: Path | None = None,
    prove: bool = False,
    **settings: Unpack[Comparing],
) -> Unmixing:
    """Find out which of the candidates a model was mixed from: ratios that sum to one, overall and by block, by least
    squares on the weights (docs/unmix.md). ``folder``: its files of the same family are candidates too. A file that
    holds a VAE or a text encoder alone is a candidate of that component. ``prove`` makes the merge again, in a
    temporary file, and compares it bit for bit.

    All files are read once, in one pass. The other settings are those of ``compare``. InputRefused when a candidate is
    of another family or has no weight of the mix; UsageError without candidates, and for a backend that keeps no values
    of stages.
    """
    from ..surgery.unmix import unmix as work

    wanted = settings_of("unmix", settings, ("candidates", "folder", "prove"), Comparing.__annotations__)
    given = listed(candidates)
    return reported("unmix", wanted, lambda settings: work(mix, given, settings, folder=folder, prove=prove))


@spelled_out(Comparing)
def relations(files: Iterable[Input], **settings: Unpack[Comparing]) -> Relations:
    """How far several models of one family are from each other: every pair, by component and block, from one pass over
    all; what is identical, the shortest tree between them, clusters (docs/verbs/map.md).

    The settings are those of ``compare``. InputRefused when a file is of another family; UsageError for fewer than two
    or more than 64 files.
    """
    from ..surgery.relations import relations as work

    wanted = settings_of("relations", settings, ("files",), Comparing.__annotations__)
    given = listed(files)
    return reported("relations", wanted, lambda settings: work(given, settings))


@spelled_out(Examining)
def verify(path: Path, *, expect: str | Sequence[str] = (), **settings: Unpack[Examining]) -> Verification:
    """Check a file's structure, count its NaN and Inf, compute its hashes and compare them with the stored ones.

    ``expect``: digests that the file should have, as sites list them: with or without ``0x``, in any letters' case,
    with a name (``"BLAKE3:…"``, ``"AutoV2=…"``) or by their length. ``hash=False`` skips the hashes. What differs is in
    the result; InputRefused when the structure is damaged, UsageError for what is no digest.
    """
    from ..surgery.verify import verify as work

    wanted = settings_of("verify", settings, ("expect",), Examining.__annotations__)
    return reported("verify", wanted, lambda given: work(path, given, expect))
