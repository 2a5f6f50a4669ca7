"""Other tools' arithmetic: of a method the form, the order of operations and the rounding that a tool gives.

``--compat supermerger`` calls ``supermerger:weighted-sum``, a method of its own: the variant that the tool computes,
with one rounding of lerp and addcmul where torch's kernels have it on AVX2 and later. docs/compat.md is the table of
what is equal to the bit and what is not. The keys are chosen as in every merge.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import UsageError
from .parameters import Flag, Param
from .registry import Method, get, method, named_by

SEPARATOR = ":"


class Form(NamedTuple):
    """What a tool computes for one of our methods: the method's full name, and how equal the result is."""

    name: str
    equal: str = "bits"
    fused: bool = False


_LERP = Form("weighted-sum.lerp", fused=True)
_MEH = ("weighted-sum", "sum-twice", "triple-sum", "add-diff", "weighted-subtract", "tensor-sum", "similarity-add-diff")

TOOLS: Mapping[str, Mapping[str, Form]] = {
    "a1111": {"weighted-sum": Form("weighted-sum"), "add-diff": Form("add-diff")},
    "supermerger": {
        "weighted-sum": _LERP, "sum-twice": Form("sum-twice.lerp", fused=True),
        "triple-sum": Form("triple-sum.lerp", fused=True),
        "add-diff": Form("add-diff", "bits of float32 files; B − C is rounded to B's dtype there"),
        "train-diff": Form("train-diff"), "tensor-sum": Form("tensor-sum"), "tensor-sum-2": Form("tensor-sum-2"),
        "extract": Form("extract", "1e-6"),
        "self-scale": Form("self-scale", "bits; keys with to_out, proj_out and norm are skipped there"),
    },
    "sd-mecha": {
        "weighted-sum": _LERP, "n-sum": Form("n-sum.running-mean", fused=True),
        "add-diff": Form("add-diff", fused=True), "slerp": Form("slerp.norm", "2e-6"),
        "tensor-sum": Form("tensor-sum.round"), "ties": Form("ties.count"),
        "model-stock": Form("model-stock.consecutive", "1e-6"), "clamp": Form("clamp"), "scale": Form("scale"),
        "train-diff": Form("train-diff", "1e-6"), "perpendicular": Form("perpendicular", "5e-6"),
        "geometric-sum": Form("geometric-sum", "2e-6"), "geometric-median": Form("geometric-median", "2e-3"),
        "add-cosine-a": Form("add-cosine-a", "2e-6"), "add-cosine-b": Form("add-cosine-b", "2e-6"),
    },
    "mergekit": {
        "n-sum": Form("n-sum.normalised", fused=True), "slerp": Form("slerp", "2e-6"),
        "nuslerp": Form("nuslerp", "2e-6"), "multislerp": Form("multislerp", "5e-6"),
        "karcher": Form("karcher", "1e-6"),
        "model-stock": Form("model-stock", "1e-6"), "ties": Form("ties"), "breadcrumbs": Form("breadcrumbs"),
        "sce": Form("sce", "1e-6"), "ram": Form("ram"), "ram-plus": Form("ram-plus"), "nearswap": Form("nearswap"),
        "arcee-fusion": Form("arcee-fusion", "bits up to a million elements"),
    },
    "comfy": {"weighted-sum": Form("weighted-sum.first")},
    "kohya": {"n-sum": Form("n-sum", "bits where no model lacks a key")},
    "meh": {
        **{name: Form(name) for name in _MEH}, "multiply-diff": Form("multiply-diff", "1e-6"),
        "euclidean-add-diff": Form("euclidean-add-diff", "1e-6"), "ties": Form("ties.count"),
    },
    "chattiori": {
        "weighted-sum": _LERP, "sum-twice": Form("sum-twice.lerp", fused=True),
        "triple-sum": Form("triple-sum", fused=True), "multiply-diff": Form("multiply-diff.ge", "1e-6"),
        "similarity-add-diff": Form("similarity-add-diff.matched", "2e-6"), "sparse-top-k": Form("sparse-top-k"),
        "norm-direction": Form("norm-direction", "2e-6"), "ortho": Form("ortho", "1e-6"),
        "channel-cosine-gate": Form("channel-cosine-gate", "1e-6"), "cosine-channel": Form("cosine-channel", "2e-6"),
        "max": Form("max"), "tensor-sum": Form("tensor-sum"),
    },
}  # fmt: skip
"""By tool and method: the form."""


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


@functools.lru_cache(maxsize=64)
def as_in(name: str) -> Method:
    """``tool:method``: the method as the tool computes it. UsageError for a method that it isn't known to have."""
    tool, _, wanted = name.partition(SEPARATOR)
    form = TOOLS[tool].get(get(wanted).name)
    if form is None:
        known = ", ".join(TOOLS[tool])
        raise UsageError(f"compat: of {tool} are known {known}; not {get(wanted).name}", code="unknown_name")
    found = get(form.name)
    whole = f"{tool}{SEPARATOR}{get(wanted).name}"
    if not form.fused:
        return dataclasses.replace(found, name=whole)
    params = {key: param for key, param in found.params.items() if not (key == "fused" and isinstance(param, Flag))}
    return dataclasses.replace(found, name=whole, params=params, body=Fused(found))


for _tool in TOOLS:
    named_by(_tool + SEPARATOR)(as_in)
