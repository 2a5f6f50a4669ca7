"""Other tools' arithmetic: of a method the form, the order of operations and the rounding that a tool gives.

``--compat supermerger`` calls ``supermerger:weighted-sum``, a method of its own: the variant that the tool computes,
with one rounding of lerp and addcmul where torch's kernels have it on AVX2 and later, of the tensors that the tool
merges, by its merge blocks (``tools.py``). docs/compat.md is the table of what is equal to the bit and what is not.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from .parameters import Flag, Param
from .registry import Method, get, method, named_by
from .sums import left_to_right, unchanged
from .tools import SEPARATOR, TOOLS, Form, Tool

KEPT = "kept"
"""The role of tensors that a tool leaves A's, and counts in its statistics."""


@method("weighted-sum.first", inputs="A B", alpha=Param(0.5, "weight of A, 0 to 1; beyond it extrapolates"))
def weighted_sum_first(a: Any, b: Any, alpha: float) -> Any:
    """α·A + (1 − α)·B: the ratio is the weight of the first model.

    The merge nodes of ComfyUI, ComfyUI-DareMerge.
    """
    return alpha * a + (1 - alpha) * b


@dataclass(frozen=True, eq=False)
class AsInTool:
    """A body as a tool computes it: with one rounding of products and sums, A itself for some tensors and numbers."""

    method: Method
    form: Form

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        return self.method.summary

    def __call__(self, *inputs: Any, role: str = "", **numbers: float | Sequence[float] | None) -> Any:
        if role == KEPT or (self.form.still and numbers[self.form.still] == 0):
            return unchanged(inputs[0])
        fused = {"fused": True} if self.form.fused else {}
        own = {"role": role} if self.method.roles else {}
        return self.method.body(*inputs, **fused, **own, **numbers)


@dataclass(frozen=True, eq=False)
class StandingIn:
    """The body of a sum for tensors that some inputs lack: A's, with the sum of their weights, stands behind the
    others."""

    body: Callable[..., Any]
    absent: frozenset[int]

    def __call__(self, *inputs: Any, weights: Any, **numbers: float | Sequence[float] | None) -> Any:
        weights = weights or (1 / len(inputs),) * len(inputs)
        left = [at for at in range(len(inputs)) if at not in self.absent]
        missing = left_to_right([weights[at] for at in sorted(self.absent)])
        return self.body(
            *(inputs[at] for at in left), inputs[0], weights=(*(weights[at] for at in left), missing), **numbers
        )


def _role(tool: Tool, form: Form, own: Callable[[str, str], str] | None, name: str, family: str) -> str:
    """The role of a tensor, which ``apply`` may not name: then it is an ordinary one."""
    if name and (tool.leaves(name, family) or any(word in name for word in form.keeps)):
        return KEPT
    return own(name, family) if own else ""


@functools.lru_cache(maxsize=64)
def as_in(name: str) -> Method:
    """``tool:method``: the method as the tool computes it. UsageError for a method that it isn't known to have."""
    word, _, wanted = name.partition(SEPARATOR)
    tool = TOOLS[word]
    ours = wanted if wanted in tool.forms else get(wanted).name  # some names are the tool's alone
    form = tool.forms.get(ours)
    if form is None:
        raise UsageError(
            f"no method {ours} of {word} is known; its methods: {', '.join(tool.forms)}", code="unknown_name"
        )
    found = get(form.name)
    roles = found.roles
    if tool.keeps or tool.keeps_xl or form.keeps:
        roles = functools.partial(_role, tool, form, found.roles)
    fused = {key for key, param in found.params.items() if form.fused and key == "fused" and isinstance(param, Flag)}
    return dataclasses.replace(
        found, name=f"{word}{SEPARATOR}{ours}", body=AsInTool(found, form), roles=roles,
        params={key: param for key, param in found.params.items() if key not in fused},
        block=tool.block if tool.blocks else None, stands_in=StandingIn if tool.stands_in else None,
    )  # fmt: skip


for _tool in TOOLS:
    named_by(_tool + SEPARATOR)(as_in)
