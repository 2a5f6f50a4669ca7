"""Reports for people. Names from files are escaped before they are printed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..commands.spelling import in_shell
from ..errors import number_of, printable
from .progress import human_bytes
from .warnings import line

if TYPE_CHECKING:
    from ..surgery.report import Report
    from ..surgery.verify import Verification


def report_lines(report: Report, *, verbose: bool = False) -> list[str]:
    """A verb's report as lines of text."""
    counts = ", ".join(f"{count} {action}" for action, count in report.counts.items() if count)
    target = printable(report.output) if report.output else "(no output named)"
    verb = "would write" if report.dry_run else "wrote"
    lines = [_formula(report)] if report.formula else []
    lines += [f"{verb} {target}: {human_bytes(report.bytes_written)}, family {report.family}"]
    lines.append(f"tensors: {counts or 'none'}")
    for path, names in report.missing.items():
        lines.append(f"missing in {printable(path)}: {some(names, verbose)} (A's were kept)")
    for path, names in report.only_there.items():
        lines.append(f"only in {printable(path)}, not added: {some(names, verbose)}")
    lines += [f"dropped: {count} × {reason}" for reason, count in report.dropped.items()]
    if report.dropped_components:
        parts = ", ".join(
            f"{name} {row['tensors']} ({human_bytes(row['bytes'])})" for name, row in report.dropped_components.items()
        )
        lines.append(f"dropped by component: {parts}; tensor data {_change(report.bytes_saved)}")
    if report.dry_run:
        lines.append(
            f"would read {human_bytes(report.bytes_read)} of tensor data and write {human_bytes(report.bytes_written)}"
        )
        free = report.how.get("free_bytes", 0)
        lines.append(f"free space in the target's folder: {human_bytes(free)}")
        if "buffer_bytes" in report.how:
            lines.append(f"expected peak memory: about {human_bytes(25e6 + report.how['buffer_bytes'])}")
    elif report.seconds is not None:
        speed = human_bytes(report.bytes_written / max(report.seconds, 1e-9))
        waited = f", {report.hash_seconds:.2f} s of it for hashes" if report.hash_seconds else ""
        lines.append(f"{report.seconds:.2f} s ({speed}/s written{waited})")
    if report.output_sha256:
        lines.append(f"SHA-256 {report.output_sha256} (AutoV2 {report.output_sha256[:10]})")
    lines += [in_shell(line(note)) for note in report.notes]
    if verbose:
        lines += _verbose(report)
    if "fallback" in report.how:
        reason = in_shell(printable(report.how["fallback"], 400))
        lines.append(f"note: done by the backend {report.how['backend']}, because: {reason}")
    return lines


def _formula(report: Report) -> str:
    """``0.6 × A + 0.4 × B → mix.safetensors (AutoV3 85cda4d20f1b)``"""
    known = f" (AutoV3 {report.body_sha256[:12]})" if report.body_sha256 else ""
    out = f" → {printable(os.path.basename(report.output))}{known}" if report.output else ""
    return f"{report.formula}{out}"


def _change(saved: int) -> str:
    return f"{saved:,} bytes smaller" if saved >= 0 else f"{-saved:,} bytes larger"


def _verbose(report: Report) -> list[str]:
    how = report.how
    lines = [
        f"backend {how.get('backend')}, " + ", ".join(f"{k} {v}" for k, v in how.items() if k in ("cpu", "threads"))
    ]
    for path, mode in zip(report.inputs, how.get("io", ()), strict=False):
        lines.append(f"read {printable(path)} by {mode}")
    for path, digest in zip(report.inputs, report.sha256, strict=False):
        if digest:
            lines.append(f"sha256 {digest}  {printable(path)}")
    if report.body_sha256:
        lines.append(f"sha256 of the output's tensor data {report.body_sha256}")
    for what, found in (("NaN or Inf", report.nonfinite), ("did not fit", report.overflow)):
        lines += [f"{what}: {count} in {printable(name)}" for name, count in found.items()]
    for row in report.tensors:
        why = ", ".join(filter(None, (_ratios(row), row["note"])))
        shown = f"{row['action']:<7} {row['dtype']:<5} {row['shape']} {printable(row['name'])}"
        lines.append(f"  {shown}" + (f"  ({why})" if why else ""))
    return lines


def _ratios(row: Mapping[str, Any]) -> str:
    """``IN04 alpha 0.3``: a merged tensor's block and ratios."""
    ratios = [
        f"{name} {' '.join(f'{item:g}' for item in number)}" if isinstance(number, tuple) else f"{name} {number:g}"
        for name, number in row.get("ratios", {}).items()
    ]
    return " ".join(filter(None, (row.get("block"), *ratios)))


def some(names: list[str], everything: bool) -> str:
    """The first of many names, or all of them, safe to print."""
    shown = names if everything else names[:3]
    more = f", … ({len(names)} in all)" if len(shown) < len(names) else ""
    return ", ".join(printable(name) for name in shown) + more


def noted(notes: Iterable[str]) -> list[str]:
    """Notes and warnings, one line each."""
    return [line(in_shell(printable(note, 1000))) for note in notes]


def verification_lines(found: Verification) -> list[str]:
    """``verify`` as text."""
    from ..file_hashes import KINDS

    tensors = number_of(found.tensors, "tensor")
    lines = [f"{printable(found.path)}: {found.format}, family {found.family}, {tensors}, structure intact"]
    lines += [text for text in found.differs if text.startswith(("incomplete", "shapes"))]
    if found.nonfinite:
        lines.append(f"NaN or Inf: {sum(found.nonfinite.values())} in {some(list(found.nonfinite), False)}")
    else:
        lines.append("NaN or Inf: none")
    if found.storages_checked is not None:
        wrong = sum(text.startswith("CRC-32") for text in found.differs)
        lines.append(f"CRC-32: {found.storages_checked} storages checked, {wrong} damaged")
    if found.hashes is not None:
        own = found.hashes.to_dict()
        lines += [f"{kind.title} {own[name]}" for name, kind in KINDS.items() if own[name]]
        if found.hashes.blake3 is None:
            lines.append("BLAKE3 not computed: the package blake3 is not installed")
    lines += [f"{KINDS[name].title} is the expected {printable(text, 100)}" for text, name in found.matches.items()]
    return lines + noted(found.notes)


def method_lines(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """``methods`` as text."""
    lines, rows = [], list(rows)
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        inputs = " ".join(row["inputs"]) + (" …" if row["any_number_of_inputs"] else "")
        lines.append(f"{row['name']:<{width}} {inputs:<8} {row['formula']}")
        if row["base"]:
            lines.append(f"{'':<{width}} base: {row['base']}")
        for name, param in row["parameters"].items():
            lines.append(f"{'':<{width}} --{name.replace('_', '-')}: {param['text']}")
    return lines


def info_lines(found: Mapping[str, Any]) -> list[str]:
    """``info`` as text."""
    targets = ", ".join(
        name + ("" if runs else " (not on this machine)") for name, runs in found["cpu_targets"].items()
    )
    return [
        f"sdsurgery {found['version']}, Python {found['python']}, {found['system']}, built by {found['compiler']}",
        f"CPU targets built: {targets}; active: {found['cpu_target']} (SDS_CPU overrides); {found['cpus']} processors",
        *(f"backend {name}: {state}" for name, state in found["backends"].items()),
        f"CUDA module: {found['cuda']}",
        *(
            f"{name} device {row['number']}: {row['name']}"
            + (f", compute capability {row['capability']}, {row['memory'] >> 20} MiB" if "capability" in row else "")
            for name, rows in found["devices"].items()
            for row in rows
        ),
        *(f"{name}: {version or 'not installed'}" for name, version in found["packages"].items()),
    ]
