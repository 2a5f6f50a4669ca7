"""A report of ``scan`` as SARIF 2.1.0 (OASIS), which code scanning services read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from .scan_report import ScanReport

_RULES = {
    "dangerous-name": ("error", "A pickle names a function that can run anything"),
    "not-followed": ("error", "A file that holds pickles could not be followed to its end"),
    "cannot-be-judged": ("warning", "Loading a pickle calls what is not known to be harmless"),
}
_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def as_sarif(report: ScanReport, version: str) -> dict[str, Any]:
    """The whole log, one run, one result per finding."""
    driver = {
        "name": "sdsurgery scan",
        "version": version,
        "rules": [
            {"id": rule, "shortDescription": {"text": text}, "defaultConfiguration": {"level": level}}
            for rule, (level, text) in _RULES.items()
        ],
    }
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": list(_results(report))}
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def _results(report: ScanReport) -> Iterator[dict[str, Any]]:
    for file in report.files:
        location = {"physicalLocation": {"artifactLocation": {"uri": _uri(file.path)}}}
        for rule, text in file.findings():
            yield {
                "ruleId": rule,
                "level": _RULES[rule][0],
                "message": {"text": f"{file.kind}: {text}"},
                "locations": [location],
            }


def _uri(path: str) -> str:
    """A relative path stays one, for the service to resolve in the repository."""
    name = quote(os.fsencode(os.path.normpath(path).replace(os.sep, "/")))
    return f"file://{name}" if os.path.isabs(path) else name
