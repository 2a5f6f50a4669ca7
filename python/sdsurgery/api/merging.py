"""Merges, and sweeps over their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..report.html import reported
from ..settings import (
    OPTIONS,
    Compute,
    Dtype,
    Fallback,
    Hash,
    Io,
    Keywords,
    OnNonfinite,
    Overflow,
    Pairs,
    Progress,
    Settings,
    dtype_word,
    settings_of,
)
from .common import Input, Path, listed, spelled_out

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..adapters.lora import Lora
    from ..recipe import Call, Model, Opened
    from ..surgery.matching import Names
    from ..surgery.ratios import BlockWeights, RuleSet
    from ..surgery.report import Report


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

    from ..adapters.lora import as_loras, swept_loras
    from ..methods.registry import get
    from ..recipe import Call, Model, Opened, call, compose
    from ..surgery.merge import merge as merge_files
    from ..surgery.merge import merge_tree
    from ..surgery.ratios import bound, with_rest

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
    inputs = listed(inputs)
    files = [item for item in inputs if not isinstance(item, Model | Opened | Call)]
    others: dict[str, Any] = {"out": out, "add_missing": add_missing, "use_ema": use_ema, "vae": vae}
    if len(files) < len(inputs):
        if map:
            raise UsageError(_MAP_NEEDS_FILES, code="conflict")
        root = call(chosen.name, inputs, blocks=blocks, rules=rules, **numbers)
        tree = compose(replace(root, loras=tuple(as_loras(loras))))
        return reported("merge", settings, lambda given: merge_tree(tree, given, **others)[0])
    numbers, blocks = with_rest(chosen, len(files), numbers, blocks)
    bound(chosen, files, numbers)  # which takes no list for a number: that is a sweep's
    return reported("merge", settings, lambda given: merge_files(
        chosen.name, files, given, parameters=numbers, blocks=blocks, rules=rules, map=map,
        loras=swept_loras(as_loras(loras)), **others,
    )[0])  # fmt: skip


@spelled_out(Keywords)
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

    ``loras`` may have several strengths, too: ``sweep("bake", [model], loras={file: [0.2, 0.4]},
    out="x-{lora}.safetensors")`` bakes an adapter at each of them; ``{lora1}``, ``{lora2}``, … are the names for
    several adapters.
    """
    from ..adapters.lora import swept_loras
    from ..methods.registry import Param, Whole, get
    from ..recipe import Call, Model, Opened, call, compose
    from ..surgery.bake import bake_all
    from ..surgery.merge import merge as work
    from ..surgery.merge import merge_tree

    wanted, given_inputs = settings_of("sweep", settings, (*_OWN, "parameters")), listed(inputs)
    several, parameters = swept_loras(loras), parameters or {}
    if method == "bake":
        return reported("bake", wanted, lambda given: bake_all(given_inputs, several, given, out=out))
    others: dict[str, Any] = {
        "parameters": parameters,
        "out": out,
        "add_missing": add_missing,
        "use_ema": use_ema,
        "loras": several,
        "vae": vae,
    }
    if map and (isinstance(method, Call) or any(isinstance(item, Model | Opened | Call) for item in given_inputs)):
        raise UsageError(_MAP_NEEDS_FILES, code="conflict")
    if isinstance(method, Call):
        if given_inputs or blocks is not None or rules is not None:
            raise UsageError("a recipe has inputs, blocks= and rules= of its own", code="conflict")
        tree = compose(method)
        return reported("merge", wanted, lambda given: merge_tree(tree, given, **others))
    name = get(method, variant).name
    if not any(isinstance(item, Model | Opened | Call) for item in given_inputs):
        return reported("merge", wanted, lambda given: work(
            name, given_inputs, given, blocks=blocks, rules=rules, map=map, **others,
        ))  # fmt: skip
    lists: dict[str, Any] = {
        each: value for each, value in parameters.items() if not isinstance(get(name).params.get(each), Param | Whole)
    }
    root = call(name, given_inputs, blocks=blocks, rules=rules, **lists)
    return sweep(
        root, parameters={each: value for each, value in parameters.items() if each not in lists}, out=out,
        add_missing=add_missing, use_ema=use_ema, loras=several, vae=vae, **settings,
    )  # fmt: skip


_OWN = ("variant", "out", "add_missing", "use_ema", "blocks", "rules", "map", "loras", "vae")

_MAP_NEEDS_FILES = "map= goes with a method of files, not with recipes"
