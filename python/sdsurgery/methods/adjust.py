"""Adjust: eight numbers that change a picture's detail, contrast and colours, by six tensors of the U-Net."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..functions import index, where
from .parameters import Param
from .registry import Method, get, method, named_by, require_free
from .sums import unchanged

UNET = "model.diffusion_model."
PARTS = ("input_blocks.0.0.weight", "input_blocks.0.0.bias", "out.0.weight", "out.0.bias", "out.2.weight", "out.2.bias")
NUMBERS: dict[str, Any] = {
    "d1": Param(0.0, "detail: of the first convolution"), "d2": Param(0.0, "detail: of the last norm"),
    "d3": Param(0.0, "contrast: of the last convolution"), "d4": Param(0.0, "brightness"),
    "d5": Param(0.0, "colour: of latent channels 1 to 3"), "d6": Param(0.0, "colour, as d5"),
    "d7": Param(0.0, "colour, as d5"), "d8": Param(0.0, "colour, as d5"),
}  # fmt: skip
COLOURS = {
    "sd1": ((-1, 1 / 3, 2 / 3), (1, 1, 0), (0, -1, -1), (1, 0, 1)),
    "sdxl": ((0, 0, 1), (1, 0, 0), (-1, -1, 0), (-1, 1, 0)),
}


def role(name: str, family: str) -> str:
    """Which of the six tensors it is, and for the last the family."""
    part = name.removeprefix(UNET)
    if part == PARTS[-1]:
        return f"{part} {'sdxl' if family.startswith('sdxl') else 'sd1'}"
    return part if part in PARTS else ""


def adjusted(x: Any, d: Sequence[Any], of: str) -> Any:
    """A tensor of that role, changed."""
    part, _, family = of.partition(" ")
    if part not in PARTS:
        return unchanged(x)
    if part == PARTS[-1]:
        rows = COLOURS[family]
        colours = [
            0.02 * (d[4] * rows[0][k] + d[5] * rows[1][k] + d[6] * rows[2][k] + d[7] * rows[3][k]) for k in range(3)
        ]
        place = index(x, 0)
        return x + where(
            place == 0, 0.02 * d[3], where(place == 1, colours[0], where(place == 2, colours[1], colours[2]))
        )
    number = d[PARTS.index(part) // 2]
    return x * ((1 + 0.02 * number) if part.endswith("bias") else (1 - 0.01 * number))


@method("adjust", inputs="A", roles=role, **NUMBERS)
def adjust(a: Any, role: str = "", **d: float) -> Any:
    """A; of the U-Net's first and last tensors weight·(1 − 0.01·dᵢ), bias·(1 + 0.02·dᵢ), the last bias plus colours.

    "Adjust" of supermerger: d₁ first convolution, d₂ last norm, d₃ weight of the last convolution; its bias (4) +
    0.02·[d₄, Σ dᵢ·rowᵢ] of i = 5 … 8, other rows for SD 1.x and SDXL. ``--adjust`` does this after any method.
    """
    return adjusted(a, list(d.values()), role)


@dataclass(frozen=True, eq=False)
class Adjusted:
    """A body whose result is adjusted."""

    method: Method

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        return f"{self.method.summary.rstrip('.')}; adjusted."

    def __call__(self, *inputs: Any, role: str = "", **numbers: float | Sequence[float] | None) -> Any:
        of, inner = role.split("|") if "|" in role else (role, "")
        d = [numbers.pop(name) for name in NUMBERS]
        own = {"role": inner} if self.method.roles else {}
        return adjusted(self.method.body(*inputs, **own, **numbers), d, of)


@named_by("adjust:")
@functools.lru_cache(maxsize=64)
def adjusted_method(name: str) -> Method:
    """The method behind the colon, with its result adjusted. UsageError for one that has a number of that name."""
    found = get(name.removeprefix("adjust:"))
    require_free("adjust", found, NUMBERS)

    def roles(name: str, family: str) -> str:
        inner = found.roles(name, family) if found.roles else ""
        return f"{role(name, family)}|{inner}" if inner else role(name, family)

    params = {**found.params, **NUMBERS}
    return dataclasses.replace(found, name=f"adjust:{found.name}", body=Adjusted(found), params=params, roles=roles)
