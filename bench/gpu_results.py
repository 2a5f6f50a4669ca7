"""Results of bench/gpu.py: their file names, their worst ratios, and what fell since an earlier one."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OURS = ("cuda", "triton")
LARGE = 16 << 20  # bytes of the output; from here on a kernel's time is its bytes, and there are limits
LIMITS = {"kernels": 0.92, "unet": 0.85, "files": 0.90}


def result_name(gpu: str, date: str) -> str:
    slug = "-".join("".join(c if c.isalnum() else " " for c in gpu.lower()).split())
    return f"gpu-{slug}-{date}.json"


def newest_kept(results: dict[str, Any]) -> Path | None:
    """The newest result of the same GPU in bench/results."""
    pattern = result_name(results["gpu"], "*")
    return max((Path(__file__).parent / "results").glob(pattern), default=None)


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """Our ratios (more is better) by place, {"kernels/add-diff/float16/16777216/cuda": 0.95, …}. Small sizes are left
    out: they measure the launch, and vary."""
    found: dict[str, float] = {}

    def walk(item: Any, path: tuple[str, ...]) -> None:
        if isinstance(item, dict):
            for key, value in item.items():
                walk(value, (*path, str(key)))
        elif path[-1] in OURS and math.isfinite(item) and (path[0] != "kernels" or int(path[-2]) >= LARGE):
            found["/".join(path)] = float(item)

    walk(results.get("ratios", {}), ())
    return found


def regressions(old: dict[str, Any], new: dict[str, Any], tolerance: float) -> list[str]:
    """A line for every ratio that fell by more than ``tolerance`` (0.05: five percent of it), or is gone."""
    before, after = ratios(old), ratios(new)
    lines = []
    for place, value in before.items():
        if place not in after:
            lines.append(f"{place}: {value:.3f} before, not measured now")
        elif after[place] < value * (1 - tolerance):
            lines.append(f"{place}: {value:.3f} before, {after[place]:.3f} now")
    return lines


def compare(old: Path, new: Path, tolerance: float) -> int:
    found = [json.loads(path.read_text(encoding="utf-8")) for path in (old, new)]
    if found[0]["gpu"] != found[1]["gpu"]:
        print(f"not comparable: {found[0]['gpu']} and {found[1]['gpu']}", file=sys.stderr)
        return 2
    lines = regressions(*found, tolerance)
    print("\n".join(lines) if lines else f"no ratio fell by more than {tolerance:.0%}")
    return 1 if lines else 0


def worst(results: dict[str, Any]) -> Iterator[str]:
    """A line for every limit and backend: the smallest ratio that it applies to."""
    found = ratios(results)
    for part, limit in LIMITS.items():
        for backend in OURS:
            own = {
                place: value
                for place, value in found.items()
                if place.startswith(f"{part}/") and place.endswith(f"/{backend}") and "over the CPU" not in place
            }
            if own:
                place = min(own, key=own.__getitem__)
                yield f"{part}, limit {limit:.2f}: {backend} has at least {own[place]:.3f} ({place})"
