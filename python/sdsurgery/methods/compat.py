"""Other tools' arithmetic: of a method the form, the order of operations and the rounding that a tool gives.

``--compat supermerger`` calls ``supermerger:weighted-sum``, a method of its own: the variant that the tool computes,
with one rounding of lerp and addcmul where torch's kernels have it on AVX2 and later. docs/compat.md is the table of
what is equal to the bit and what is not. KEYS says what differs in the choice of keys.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import UsageError
from .across import APART
from .parameters import Flag, Param
from .registry import Method, get, method, named_by
from .sums import unchanged

SEPARATOR = ":"


class Form(NamedTuple):
    """What a tool computes for one of our methods: the method's full name, and how equal the result is."""

    name: str
    equal: str = "bits"
    fused: bool = False
    skips: tuple[str, ...] = ()  # words of names that the tool leaves A's
    stands_in: bool = False  # A's tensor stands in for one that another input lacks


_LERP = Form("weighted-sum.lerp", fused=True)
_OUTER = ("to_out", "proj_out", "norm")
_MEH = ("weighted-sum", "sum-twice", "triple-sum", "add-diff", "weighted-subtract", "tensor-sum", "similarity-add-diff")

TOOLS: Mapping[str, Mapping[str, Form]] = {
    "a1111": {"weighted-sum": Form("weighted-sum"), "add-diff": Form("add-diff")},
    "supermerger": {
        "weighted-sum": _LERP, "sum-twice": Form("sum-twice.lerp", fused=True),
        "triple-sum": Form("triple-sum.lerp", fused=True),
        "add-diff": Form("add-diff", "bits of float32 files; B − C is rounded to B's dtype there"),
        "train-diff": Form("train-diff"), "tensor-sum": Form("tensor-sum"), "tensor-sum-2": Form("tensor-sum-2"),
        "extract": Form("extract", "1e-6"), "self-scale": Form("self-scale", skips=_OUTER),
        "add-noise": Form("add-noise", "the same rule, other random numbers", skips=_OUTER),
        "cosine-a": Form("cosine-a", "5e-6"), "cosine-b": Form("cosine-b", "2e-6"), "smooth-add": Form("smooth-add"),
        "adjust": Form("adjust"),
    },
    "sd-mecha": {
        "weighted-sum": _LERP, "n-sum": Form("n-sum.running-mean", fused=True),
        "add-diff": Form("add-diff", fused=True), "slerp": Form("slerp.norm", "2e-6"),
        "tensor-sum": Form("tensor-sum.round"), "ties": Form("ties.count"),
        "model-stock": Form("model-stock.consecutive", "1e-6"), "clamp": Form("clamp"), "scale": Form("scale"),
        "train-diff": Form("train-diff", "1e-6"), "perpendicular": Form("perpendicular", "5e-6"),
        "geometric-sum": Form("geometric-sum", "2e-6"), "geometric-median": Form("geometric-median", "2e-3"),
        "add-cosine-a": Form("add-cosine-a", "2e-6"), "add-cosine-b": Form("add-cosine-b", "2e-6"),
        "crossover": Form("crossover", "5e-6"), "rotate": Form("rotate", "1e-5; 2e-3 of fractional powers"),
        "truncate-rank": Form("truncate-rank", "5e-5 of exact singular vectors"),
        "truncate-kronecker": Form("truncate-kronecker", "2e-5 of exact singular vectors"),
        "top-k-tensor-sum": Form("top-k-tensor-sum.le"), "della": Form("della.mecha", "bits, given its masks"),
        "dare-mean": Form("dare-mean", "bits, given its masks"),
    },
    "mergekit": {
        "n-sum": Form("n-sum.normalised", fused=True), "slerp": Form("slerp", "2e-6"),
        "nuslerp": Form("nuslerp", "2e-6"), "multislerp": Form("multislerp", "5e-6"),
        "karcher": Form("karcher", "1e-6"),
        "model-stock": Form("model-stock", "1e-6"), "ties": Form("ties"), "breadcrumbs": Form("breadcrumbs"),
        "sce": Form("sce", "1e-6"), "ram": Form("ram"), "ram-plus": Form("ram-plus"), "nearswap": Form("nearswap"),
        "arcee-fusion": Form("arcee-fusion", "bits up to a million elements"),
        "della": Form("della.mergekit", "2e-6, given its masks"),
        "della-linear": Form("della-linear.mergekit", "1e-6, given its masks"),
        "dare-linear": Form("dare-linear.mergekit", "2e-6, given its masks"),
        "dare-ties": Form("dare-ties.mergekit", "2e-6, given its masks"),
    },
    "comfy": {"weighted-sum": Form("weighted-sum.first")},
    "kohya": {"n-sum": Form("n-sum", stands_in=True)},
    "meh": {
        **{name: Form(name) for name in _MEH}, "multiply-diff": Form("multiply-diff", "1e-6"),
        "euclidean-add-diff": Form("euclidean-add-diff", "1e-6"), "ties": Form("ties.count"),
        "top-k-tensor-sum": Form("top-k-tensor-sum"),
        "distribution-crossover": Form("distribution-crossover", "2e-6"), "clamp": Form("clamp.ab"),
    },
    "chattiori": {
        "weighted-sum": _LERP, "sum-twice": Form("sum-twice.lerp", fused=True),
        "triple-sum": Form("triple-sum", fused=True), "multiply-diff": Form("multiply-diff.ge", "1e-6"),
        "similarity-add-diff": Form("similarity-add-diff.matched", "2e-6"), "sparse-top-k": Form("sparse-top-k"),
        "norm-direction": Form("norm-direction", "2e-6"), "ortho": Form("ortho", "1e-6"),
        "channel-cosine-gate": Form("channel-cosine-gate", "1e-6"), "cosine-channel": Form("cosine-channel", "2e-6"),
        "max": Form("max"), "tensor-sum": Form("tensor-sum"), "smooth-add": Form("smooth-add.gauss"),
        "frequency-band": Form("frequency-band", "2e-6"), "feature-weighted": Form("feature-weighted", "2e-6"),
    },
}  # fmt: skip
"""By tool and method: the form."""

KEYS: Mapping[str, str] = {
    "a1111": "Every tensor that all files have, the VAE's too; A's where one lacks it. No merge blocks.",
    "supermerger": "Every tensor that all files have; A's where one lacks it. The VAE follows BASE; cosine modes keep "
    "A's VAE.",
    "sd-mecha": "The keys of the model's configuration; a missing one is an error there, and A's here.",
    "mergekit": "Every tensor; a missing one is an error there, and A's here. No merge blocks of Stable Diffusion.",
    "comfy": "The U-Net by one node and the text encoders by another, each with its ratio: --blocks BASE=… here.",
    "kohya": "Every tensor of A; A's stands in for one that another model lacks, so that the weights still sum.",
    "meh": "Every tensor that all files have; A's where one lacks it.",
    "chattiori": "Every tensor that all files have. Since 2026 the VAE is removed there; here it is merged; "
    "prune or --vae change it.",
}
"""By tool: which tensors it merges."""


@method("weighted-sum.first", inputs="A B", alpha=Param(0.5, "weight of A, 0 to 1; beyond it extrapolates"))
def weighted_sum_first(a: Any, b: Any, alpha: float) -> Any:
    """α·A + (1 − α)·B: the ratio is the weight of the first model.

    The merge nodes of ComfyUI, ComfyUI-DareMerge.
    """
    return alpha * a + (1 - alpha) * b


@dataclass(frozen=True, eq=False)
class Fused:
    """A body with one rounding of its products and sums."""

    method: Method

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        return self.method.summary

    def __call__(self, *inputs: Any, **numbers: float | Sequence[float] | None) -> Any:
        return self.method.body(*inputs, fused=True, **numbers)


@dataclass(frozen=True, eq=False)
class Skipping:
    """A body that leaves some tensors A's."""

    body: Callable[..., Any]

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        return self.body.__doc__ or ""

    def __call__(self, *inputs: Any, role: str = "", **numbers: float | Sequence[float] | None) -> Any:
        return unchanged(inputs[0]) if role == APART else self.body(*inputs, **numbers)


def skipped(words: tuple[str, ...], name: str, family: str) -> str:
    """The role of a tensor whose name may hold one of the words."""
    return APART if any(word in name for word in words) else ""


@functools.lru_cache(maxsize=64)
def as_in(name: str) -> Method:
    """``tool:method``: the method as the tool computes it. UsageError for a method that it isn't known to have."""
    tool, _, wanted = name.partition(SEPARATOR)
    form = TOOLS[tool].get(get(wanted).name)
    if form is None:
        known = ", ".join(TOOLS[tool])
        raise UsageError(f"compat: of {tool} are known {known}; not {get(wanted).name}", code="unknown_name")
    found = dataclasses.replace(get(form.name), stands_in=form.stands_in)
    if form.skips:
        found = dataclasses.replace(found, body=Skipping(found.body), roles=functools.partial(skipped, form.skips))
    whole = f"{tool}{SEPARATOR}{get(wanted).name}"
    if not form.fused:
        return dataclasses.replace(found, name=whole)
    params = {key: param for key, param in found.params.items() if not (key == "fused" and isinstance(param, Flag))}
    return dataclasses.replace(found, name=whole, params=params, body=Fused(found))


for _tool in TOOLS:
    named_by(_tool + SEPARATOR)(as_in)
