"""The Markdown table of end-to-end results."""

from __future__ import annotations

from typing import Any

_WORK = ("earlier, work itself, median", "earlier, work itself, least")
_RATIOS = ("earlier", *_WORK, "cp", "cp+read", "floor", "floor-reserved", "torch", "sd-mecha")


def table(results: dict[str, Any]) -> str:
    """One row a case: our median and memory, then our time over each contender's (below 1: we are faster)."""
    cases = results["cases"]
    present = [name for name in _RATIOS if any(f"ours/{name}" in case["ratios"] for case in cases.values())]
    heads = ["case", "read + written", "seconds", "in-process", *(f"÷ {name}" for name in present), "memory"]
    rows = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for title, case in cases.items():
        ours = case["contenders"].get("ours", {})
        rows.append(
            [
                title,
                f"{case['bytes_read'] / 1e9:.2f} + {case['bytes_written'] / 1e9:.2f} GB",
                _number(ours.get("median_seconds")),
                _number(ours.get("median_inner_seconds")),
                *(_number(case["ratios"].get(f"ours/{name}")) for name in present),
                _memory(ours.get("peak_anonymous_bytes")),
            ]
        )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([_about(results["machine"]), "", *lines])


def _about(machine: dict[str, Any]) -> str:
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['kernel']}, "
        f"{machine['file_system']}, sdsurgery {machine['sdsurgery']} ({machine['commit'] or 'no commit'})"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _memory(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:.0f} MB"
