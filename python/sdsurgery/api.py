"""Every verb as a function. docs/api.md is about the package as a library.

Each verb that writes a checkpoint takes ``out`` (a file, or None for a dry run), keywords of its own, and the settings
of ``sdsurgery.Settings`` as keywords: ``dtype="fp16"``, ``overwrite=True``, ``threads=4``, ``progress=…``. It returns a
``Report``. It raises UsageError or InputRefused before the first output byte, RunFailed or Interrupted afterwards; the
target is then unchanged. A keyword that doesn't exist is a TypeError, with close matches.
"""

from __future__ import annotations

import inspect as _signatures
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, Union

from .errors import UsageError, printable
from .report.html import reported
from .settings import (
    DEFAULTS,
    OPTIONS,
    Comparing,
    Compute,
    Dtype,
    Examining,
    Fallback,
    Hash,
    Io,
    Keywords,
    OnNonfinite,
    Overflow,
    Pairs,
    Progress,
    Settings,
    Showing,
    dtype_word,
    settings_of,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .adapters.lora import Lora
    from .adapters.svd import Rank
    from .checkpoint import Checkpoint
    from .recipe import Call, Model, Opened
    from .surgery.compare import Comparison
    from .surgery.convert import Conversion
    from .surgery.inspect import Inspection
    from .surgery.matching import Names
    from .surgery.ratios import BlockWeights, RuleSet
    from .surgery.relations import Relations
    from .surgery.report import Report
    from .surgery.unmix import Unmixing
    from .surgery.verify import Verification

Path = str | os.PathLike[str]
Input = Union[Path, "Checkpoint", Mapping[str, Any]]
"""A file, one that is opened already (and stays open), or tensors by name."""
Verb = TypeVar("Verb", bound=Callable[..., Any])


def _spelled_out(keywords: Any) -> Callable[[Verb], Verb]:
    """``help()`` and editors that ask at run time see every setting, not ``**settings``."""

    def decorate(function: Verb) -> Verb:
        found = _signatures.signature(function)
        named = [item for item in found.parameters.values() if item.kind is not item.VAR_KEYWORD]
        for name, kind in keywords.__annotations__.items():
            text = getattr(kind, "__forward_arg__", kind)
            only = _signatures.Parameter.KEYWORD_ONLY
            named.append(_signatures.Parameter(name, only, default=DEFAULTS[name], annotation=text))
        function.__signature__ = found.replace(parameters=named)  # type: ignore[attr-defined]
        return function

    return decorate


def merge(
    method: str,
    inputs: Iterable[Input | Model | Opened | Call],
    *,
    variant: str | None = None,
    out: Path | None = None,
    add_missing: bool = False,
    use_ema: str | Sequence[str] = (),
    blocks: BlockWeights | Mapping[str, BlockWeights] | None = None,
    rules: RuleSet | Mapping[str, RuleSet] | None = None,
    map: Names = (),
    loras: Sequence[Lora | Path] | Mapping[str, float] = (),
    vae: Input | None = None,
    dtype: Dtype = "keep",
    overflow: Overflow = "default",
    on_nonfinite: OnNonfinite = "keep",
    compute: Compute = "fp32",
    io: Io = "auto",
    backend: str = "auto",
    gpu_memory: int = 0,
    fallback: Fallback = "none",
    threads: int = 0,
    fix_clip: bool = False,
    fix_names: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
    allow_unlike: bool = False,
    hash: Hash = True,
    title: str = "",
    author: str = "",
    license: str = "",
    metadata: Pairs = (),
    store_recipe: bool = True,
    store_names: bool = True,
    sync: bool = True,
    html: Path | None = None,
    allow_suspicious: bool = False,
    allow_inflate: bool = False,
    part: str = "",
    tile_bytes: int = 0,
    progress: Progress | bool | None = None,
    **parameters: float | Sequence[float],
) -> Report:
    """Merge checkpoint files into one.

    ``method`` is a name from ``methods()``, ``variant`` a word after it; ``parameters`` are its numbers (``alpha=0.7``,
    ``weights=[…]``). ``inputs`` are A, B, C, … in the method's order: files, opened checkpoints, dictionaries of arrays
    or tensors, or other recipes (``sdsurgery.weighted_sum(…)``), which are evaluated in the same pass; of those named
    in ``use_ema`` (``"A,B"``) the U-Net's EMA weights are merged instead of the weights. ``add_missing`` adds tensors
    that only B (or C) has.

    ``blocks`` gives merge blocks a ratio of their own: ``"GRAD_V,BASE=0.5"``, a list of numbers or ``{"IN04": 0.3}``;
    ``rules`` gives one to names that a regular expression finds: a file, or ``{r"attn2": 0.3}``. A rule wins over a
    block, a block over the parameter. A method with several ratios takes ``{"alpha": …}``. (See docs/verbs/merge.md.)
    ``map`` reads names of B, C, … that begin with one text as names that begin with another
    (``{"model.diffusion_model.": "control_model."}`` moves a ControlNet to another base).
    ``loras`` are adapters that are applied to the result before it is rounded, as ``bake`` takes them; those of an
    input stand in a recipe (``sdsurgery.model("a") + 0.8 * sdsurgery.lora("x")``). ``vae`` is a file whose VAE the
    result gets in the place of a merged one, as ``replace`` takes it.
    The other keywords are settings. UsageError for a parameter that the method lacks.
    """
    from dataclasses import replace

    from .methods.registry import get
    from .recipe import Call, Model, Opened, call, compose
    from .surgery.bake import as_loras
    from .surgery.merge import bound, merge_tree
    from .surgery.merge import merge as merge_files

    chosen = get(method, variant)
    numbers = chosen.named(parameters, [*OPTIONS, *_OWN])
    settings = Settings(
        dtype=dtype_word(dtype), overflow=overflow, on_nonfinite=on_nonfinite, compute=compute, io=io, backend=backend,
        gpu_memory=gpu_memory, fallback=fallback, threads=threads, fix_clip=fix_clip, fix_names=fix_names,
        dry_run=dry_run, overwrite=overwrite, allow_unlike=allow_unlike, hash=hash, title=title, author=author,
        license=license, metadata=metadata, store_recipe=store_recipe, store_names=store_names, sync=sync, html=html,
        allow_suspicious=allow_suspicious, allow_inflate=allow_inflate, part=part, tile_bytes=tile_bytes,
        progress=progress,
    )  # fmt: skip
    inputs = _listed(inputs)
    files = [item for item in inputs if not isinstance(item, Model | Opened | Call)]
    others: dict[str, Any] = {"out": out, "add_missing": add_missing, "use_ema": use_ema, "vae": vae}
    if len(files) < len(inputs):
        if map:
            raise UsageError(_MAP_NEEDS_FILES, code="conflict")
        root = call(chosen.name, inputs, blocks=blocks, rules=rules, **numbers)
        tree = compose(replace(root, loras=tuple(as_loras(loras))))
        return reported("merge", settings, lambda given: merge_tree(tree, given, **others)[0])
    bound(chosen, files, numbers)  # which takes no list for a number: that is a sweep's
    return reported("merge", settings, lambda given: merge_files(
        chosen.name, files, given, parameters=numbers, blocks=blocks, rules=rules, map=map, loras=as_loras(loras),
        **others,
    )[0])  # fmt: skip


def _listed(inputs: Iterable[Any]) -> list[Any]:
    if isinstance(inputs, str | bytes | os.PathLike):
        raise UsageError(f"inputs must be a list of files, not one file ('{printable(inputs)}')", code="wrong_inputs")
    if hasattr(inputs, "items"):
        raise UsageError("inputs must be a list: [a, b], not one checkpoint or dictionary", code="wrong_inputs")
    return list(inputs)


_OWN = ("variant", "out", "add_missing", "use_ema", "blocks", "rules", "map", "loras", "vae")
_MAP_NEEDS_FILES = "map= goes with a method of files, not with recipes"


@_spelled_out(Keywords)
def sweep(
    method: str | Call,
    inputs: Iterable[Input | Model | Opened | Call] = (),
    *,
    parameters: Mapping[str, float | Sequence[float]] | None = None,
    variant: str | None = None,
    out: Path | None = None,
    add_missing: bool = False,
    use_ema: str | Sequence[str] = (),
    blocks: BlockWeights | Mapping[str, BlockWeights] | None = None,
    rules: RuleSet | Mapping[str, RuleSet] | None = None,
    map: Names = (),
    loras: Mapping[str, float | Sequence[float]] | Sequence[Lora | Path | Sequence[Lora]] = (),
    vae: Input | None = None,
    **settings: Unpack[Keywords],
) -> list[Report]:
    """Merge the same files with several numbers, one output for each, from one reading of the inputs.

    ``parameters`` are the method's numbers (``{"alpha": [0.1, 0.2, 0.3]}``); of several lists the product is made.
    ``out`` names the outputs: ``"mix-{alpha}.safetensors"``. Each is the same file that ``merge`` writes for its
    number. When one fails, ``details["finished"]`` of the error lists those that were finished. The other keywords are
    those of ``merge``.

    Of a recipe (``sweep(recipe, parameters=…)``) the parameters go by their path: ``{"B.alpha": [0.1, 0.2]}`` is the
    ``alpha`` of the call that is the root's input B. Those that are not given are the recipe's.

    ``sweep("bake", [model], loras={file: [0.2, 0.4]}, out="x-{lora}.safetensors")`` bakes an adapter at each of its
    strengths; ``{lora1}``, ``{lora2}``, … are the names for several adapters. A merge's ``loras`` have one strength.
    """
    from dataclasses import replace

    from .methods.registry import Param, get
    from .recipe import Call, Model, Opened, call, compose
    from .surgery.bake import bake_all, one_strength, swept_loras
    from .surgery.merge import merge as work
    from .surgery.merge import merge_tree

    wanted, given_inputs = settings_of("sweep", settings, (*_OWN, "parameters")), _listed(inputs)
    several, parameters = swept_loras(loras), parameters or {}
    if method == "bake":
        return reported("bake", wanted, lambda given: bake_all(given_inputs, several, given, out=out))
    adapters = one_strength(several)
    others: dict[str, Any] = {
        "parameters": parameters,
        "out": out,
        "add_missing": add_missing,
        "use_ema": use_ema,
        "vae": vae,
    }
    if map and (isinstance(method, Call) or any(isinstance(item, Model | Opened | Call) for item in given_inputs)):
        raise UsageError(_MAP_NEEDS_FILES, code="conflict")
    if isinstance(method, Call):
        if given_inputs or blocks is not None or rules is not None:
            raise UsageError("a recipe has inputs, blocks= and rules= of its own", code="conflict")
        tree = compose(replace(method, loras=(*method.loras, *adapters)))
        return reported("merge", wanted, lambda given: merge_tree(tree, given, **others))
    name = get(method, variant).name
    if not any(isinstance(item, Model | Opened | Call) for item in given_inputs):
        return reported("merge", wanted, lambda given: work(
            name, given_inputs, given, blocks=blocks, rules=rules, map=map, loras=adapters, **others,
        ))  # fmt: skip
    lists: dict[str, Any] = {
        each: value for each, value in parameters.items() if not isinstance(get(name).params.get(each), Param)
    }
    root = call(name, given_inputs, blocks=blocks, rules=rules, **lists)
    return sweep(
        root, parameters={each: value for each, value in parameters.items() if each not in lists}, out=out,
        add_missing=add_missing, use_ema=use_ema, loras=adapters, vae=vae, **settings,
    )  # fmt: skip


@_spelled_out(Keywords)
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
    from .surgery.bake import as_loras
    from .surgery.bake import bake as work

    wanted, given = settings_of("bake", settings, ("loras", "out", "strict", "check")), as_loras(loras)
    return reported("bake", wanted, lambda settings: work(path, given, settings, out=out, strict=strict, check=check))


@_spelled_out(Keywords)
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
    from .surgery.extract_lora import Extraction
    from .surgery.extract_lora import extract_lora as work

    own = ("out", "kind", "rank", "energy", "sigma_ratio", "conv_rank", "clamp", "unet", "te", "names")
    given = settings_of("extract_lora", {"dtype": "fp16", **settings}, own)
    chosen = _rank(rank, energy, sigma_ratio, 32)
    of_conv = None if conv_rank is None else chosen._replace(most=conv_rank)
    wanted = Extraction(chosen, kind, of_conv, clamp, unet, te, names)
    return reported("extract_lora", given, lambda settings: work(tuned, base, wanted, settings, out=out))


def _rank(rank: int | None, energy: float | None, sigma_ratio: float | None, default: int) -> Rank:
    from .adapters.svd import Rank

    most = default if rank is None and energy is None and sigma_ratio is None else rank or 0
    return Rank(most, energy or 0.0, sigma_ratio or 0.0)


@_spelled_out(Keywords)
def merge_lora(
    loras: Lora | Path | Mapping[str, float] | Sequence[Lora | Path],
    *,
    out: Path | None = None,
    rank: int | None = None,
    energy: float | None = None,
    sigma_ratio: float | None = None,
    names: str = "kohya",
    **settings: Unpack[Keywords],
) -> Report:
    """Write one adapter with the effects of several, each at its strength (as ``bake`` takes them).

    Exact unless a rank is asked for: factors are put side by side and the ranks add up. ``rank``, ``energy`` and
    ``sigma_ratio`` cut the sum as ``extract_lora`` does. LoRA, LoCon, LoHa, LoKr, full differences and norms in any
    dialect; ``names``: kohya or diffusers. InputRefused for kinds whose effect depends on the weight, and for
    adapters of different families.
    """
    from .surgery.bake import as_loras
    from .surgery.merge_lora import merge_lora as work

    own = ("loras", "out", "rank", "energy", "sigma_ratio", "names")
    wanted, given = settings_of("merge_lora", settings, own), as_loras(loras)
    is_cut = not (rank is None and energy is None and sigma_ratio is None)
    chosen = _rank(rank, energy, sigma_ratio, 0) if is_cut else None
    return reported(
        "merge_lora", wanted, lambda settings: work(given, settings, rank=chosen, dialect=names, out=out)
    )  # fmt: skip


@_spelled_out(Keywords)
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
    from .surgery.bake import as_loras
    from .surgery.merge_lora import merge_lora as work

    wanted = settings_of("resize_lora", settings, ("out", "rank", "energy", "sigma_ratio", "names"))
    chosen, given = _rank(rank, energy, sigma_ratio, 0), as_loras(path)
    return reported("resize_lora", wanted, lambda settings: work(
        given, settings, rank=chosen, dialect=names, verb="resize-lora", out=out,
    ))  # fmt: skip


@_spelled_out(Keywords)
def cast(path: Input, *, out: Path | None = None, **settings: Unpack[Keywords]) -> Report:
    """Write a checkpoint's tensors in another dtype (``dtype="fp16"``, or ``torch.float16``).

    Integers, empty tensors, noise-schedule buffers, ``position_ids`` and marker tensors are copied exactly; EMA
    weights are cast like the others.
    """
    from .surgery.cast import cast as work

    return reported("cast", settings_of("cast", settings, ("out",)), lambda given: work(path, given, out=out))


@_spelled_out(Keywords)
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
    from .surgery.ema import ema as work

    wanted = settings_of("ema", settings, ("out", "keep_counters", "to_ema"))
    return reported("ema", wanted, lambda given: work(path, given, out=out, keep_counters=keep_counters, to_ema=to_ema))


@_spelled_out(Keywords)
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
    from .surgery.prune import prune as work

    wanted = settings_of("prune", settings, ("out", "preset", "drop", "keep_keys", "drop_keys", "strict"))
    return reported(
        "prune",
        wanted,
        lambda given: work(
            path, given, out=out, preset=preset, drop=drop, keep_keys=keep_keys, drop_keys=drop_keys, strict=strict
        ),
    )


@_spelled_out(Keywords)
def fix_clip(path: Input, *, out: Path | None = None, **settings: Unpack[Keywords]) -> Report:
    """Write int64 0…76 wherever the family has position_ids and drop misplaced ones; everything else is unchanged.

    InputRefused when the family is not known.
    """
    from .surgery.fix_clip import fix_clip as work

    return reported("fix_clip", settings_of("fix_clip", settings, ("out",)), lambda given: work(path, given, out=out))


@_spelled_out(Keywords)
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
    from .surgery.components import extract as work

    wanted = settings_of("extract", settings, ("out", "prefix", "keys", "strip_prefix"))
    return reported("extract", wanted, lambda given: work(
        path, given, component=component, prefix=prefix, keys=keys, out=out, strip_prefix=strip_prefix,
    ))  # fmt: skip


@_spelled_out(Keywords)
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
    from .surgery.components import replace as work

    wanted = settings_of("replace", settings, ("out", "allow_missing"))
    return reported("replace", wanted, lambda given: work(path, donors, given, out=out, allow_missing=allow_missing))


@_spelled_out(Keywords)
def convert(path: Input, *, out: Path | None = None, **settings: Unpack[Keywords]) -> Report:
    """Write a checkpoint in the format that the suffix of ``out`` asks for.

    Names, dtypes and shapes stay (``dtype="fp16"`` casts on the way); views become contiguous. Tensors that share
    their data are written once where the format can say so.
    """
    from .surgery.convert import convert as work

    return reported("convert", settings_of("convert", settings, ("out",)), lambda given: work(path, given, out=out))


@_spelled_out(Keywords)
def convert_all(
    paths: Sequence[Path],
    *,
    out_dir: Path,
    to: str = "safetensors",
    started: Callable[[Conversion], None] = lambda conversion: None,
    **settings: Unpack[Keywords],
) -> list[Conversion]:
    """Convert many files into a folder (made when it is missing), under their own names with the suffix of ``to``.

    ``started`` is called with each before its work begins. A file that cannot be converted does not stop the others:
    its error is in its place of the list. UsageError when two files would get one name, or for an unknown format;
    Interrupted at once.
    """
    from .files import expanded
    from .surgery.convert import convert_all as work

    wanted = settings_of("convert_all", settings, ("out_dir", "to", "started"))
    return reported(
        "convert", wanted, lambda given: work(paths, given, out_dir=expanded(out_dir), to=to, started=started)
    )


@_spelled_out(Showing)
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
    from .surgery.inspect import inspect as work

    own = ("base", "keys", "hashes", "progress")
    wanted = settings_of("inspect", settings, own, Showing.__annotations__)
    return reported("inspect", wanted, lambda given: work(
        path, base, keys=keys, hashes=hashes, progress=progress, **given.opening
    ))  # fmt: skip


@_spelled_out(Comparing)
def compare(a: Input, b: Input, **settings: Unpack[Comparing]) -> Comparison:
    """Compare two checkpoints tensor by tensor, by name. ``[o, i, 1, 1]`` and ``[o, i]`` are the same shape.

    ``fix_names`` reads old and foreign names as the family's own; ``backend`` is cpu, cuda or reference. No other
    setting changes a bit of the numbers. InputRefused when a file is damaged or cannot be read, UsageError when the
    backend cannot be used or has no reductions.
    """
    from .surgery.compare import compare as work

    wanted = settings_of("compare", settings, (), Comparing.__annotations__)
    return reported("compare", wanted, lambda given: work(a, b, given))


@_spelled_out(Comparing)
def unmix(
    mix: Input,
    candidates: Sequence[Input] = (),
    *,
    folder: Path | None = None,
    prove: bool = False,
    **settings: Unpack[Comparing],
) -> Unmixing:
    """Find out which of the candidates a model was mixed from: ratios that sum to one, overall and by block, by least
    squares on the weights (docs/unmix.md). ``folder``: its files of the same family are candidates too. ``prove`` makes
    the merge again, in a temporary file, and compares it bit for bit.

    All files are read once, in one pass. The other settings are those of ``compare``. InputRefused when a candidate is
    of another family or has no weight of the mix; UsageError without candidates, and for a backend that keeps no values
    of stages.
    """
    from .surgery.unmix import unmix as work

    wanted = settings_of("unmix", settings, ("candidates", "folder", "prove"), Comparing.__annotations__)
    given = _listed(candidates)
    return reported("unmix", wanted, lambda settings: work(mix, given, settings, folder=folder, prove=prove))


@_spelled_out(Comparing)
def relations(files: Iterable[Input], **settings: Unpack[Comparing]) -> Relations:
    """How far several models of one family are from each other: every pair, by component and block, from one pass over
    all; what is identical, the shortest tree between them, clusters (docs/verbs/map.md).

    The settings are those of ``compare``. InputRefused when a file is of another family; UsageError for fewer than two
    or more than 64 files.
    """
    from .surgery.relations import relations as work

    wanted = settings_of("relations", settings, ("files",), Comparing.__annotations__)
    given = _listed(files)
    return reported("relations", wanted, lambda settings: work(given, settings))


@_spelled_out(Examining)
def verify(path: Path, *, expect: str | Sequence[str] = (), **settings: Unpack[Examining]) -> Verification:
    """Check a file's structure, count its NaN and Inf, compute its hashes and compare them with the stored ones.

    ``expect``: digests that the file should have, as sites list them: with or without ``0x``, in any letters' case,
    with a name (``"BLAKE3:…"``, ``"AutoV2=…"``) or by their length. ``hash=False`` skips the hashes. What differs is in
    the result; InputRefused when the structure is damaged, UsageError for what is no digest.
    """
    from .surgery.verify import verify as work

    wanted = settings_of("verify", settings, ("expect",), Examining.__annotations__)
    return reported("verify", wanted, lambda given: work(path, given, expect))
