"""``sdsurgery info``: what this installation is and can do here; for bug reports."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence
from typing import Any

from ..errors import SdsError, UsageError, printable
from .common import plain, print_json, print_lines

HELP = "show version, CPU targets and backends"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    parser.add_argument("files", nargs="*", help=argparse.SUPPRESS)
    plain(parser)


def run(args: argparse.Namespace) -> int:
    from ..report import console

    if args.files:
        raise UsageError(
            f"info is about this installation; of a file: sdsurgery inspect {printable(args.files[0])}",
            code="wrong_inputs",
        )
    found = collect()
    return print_json(found) if args.json else print_lines(console.info_lines(found))


def collect() -> dict[str, Any]:
    """Version, compiler, CPU targets built and active, backends and why one is unusable, optional packages."""
    from .. import __version__, _native, backends

    try:
        active = _native.check_target(os.environ.get("SDS_CPU", ""))
    except _native.Error as error:
        active = f"none ({error})"
    return {
        "version": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "compiler": _native.compiler,
        "cpus": _native.usable_cpus(),
        "cpu_targets": dict(_native.cpu_targets()),
        "cpu_target": active,
        "backends": {name: _usable(name) for name in backends.names()},
        "cuda": _cuda_build(),
        "devices": {name: rows for name in backends.names() if (rows := _devices(name))},
        "packages": {name: _installed(name) for name in ("numpy", "torch", "triton", "safetensors", "rich")},
    }


def _cuda_build() -> str:
    try:
        from ..kernels import _cuda
    except ImportError:
        return "not built"
    return f"built with CUDA {_cuda.runtime // 1000}.{_cuda.runtime % 1000 // 10} for {_cuda.architectures}"


def _devices(name: str) -> list[dict[str, Any]]:
    """The devices of a usable backend."""
    from .. import backends

    try:
        return backends.choose(name).devices()
    except (SdsError, ImportError):
        return []


def _usable(name: str) -> str:
    from .. import backends

    try:
        reason = backends.get(name).available()
    except ImportError as error:
        reason = str(error)
    return "usable" if reason is None else f"not usable here: {reason}"


def _installed(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
