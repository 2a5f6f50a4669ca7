"""What ``scan`` found: one verdict per file, for people, as JSON, and as SARIF for code scanning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import printable
from .pickle_calls import harmless
from .pickle_names import dangerous
from .torch_values import known

VERDICTS = {
    "suspicious": "SUSPICIOUS",
    "unjudged": "CANNOT BE JUDGED",
    "clean": "nothing dangerous found",
}
"""Verdict: how the report words it."""


@dataclass(repr=False)
class FileScan:
    """What one file would do.

    ``globals``: every class and function it names, with the number of times. ``calls``: those that loading would have
    called. ``dangerous``: those that can be made to run anything. ``problems``: why it could not be followed to its
    end. ``unjudged``: what loading would do that is not known to be harmless. ``holds``: what a clean file is, where it
    is an adapter.
    """

    path: str
    kind: str = "other"
    globals: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    dangerous: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unjudged: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    holds: str = ""

    @property
    def suspicious(self) -> bool:
        """Whether it is unsafe to load with anything that runs pickles."""
        return bool(self.dangerous or self.problems)

    @property
    def verdict(self) -> str:
        """A key of ``VERDICTS``: ``unjudged`` when it calls what is known neither as dangerous nor as harmless."""
        return "suspicious" if self.suspicious else "unjudged" if self.unjudged else "clean"

    @property
    def unknown(self) -> list[str]:
        """Names that are known neither as dangerous nor as harmless."""
        return [label for label in self.globals if not (known(label) or harmless(label) or dangerous(label))]

    def __repr__(self) -> str:
        return f"<FileScan of {self.path}: {VERDICTS[self.verdict].lower()}>"

    def as_json(self) -> dict[str, object]:
        """The report as plain values."""
        return {
            "path": self.path,
            "kind": self.kind,
            "verdict": self.verdict,
            "suspicious": self.suspicious,
            "dangerous": self.dangerous,
            "problems": self.problems,
            "unjudged": self.unjudged,
            "unknown": self.unknown,
            "calls": self.calls,
            "globals": self.globals,
            "notes": self.notes,
            "holds": self.holds,
        }

    def findings(self) -> Iterator[tuple[str, str]]:
        """(rule of ``RULES``, text) of everything that the verdict rests on."""
        for label in self.dangerous:
            times = self.globals.get(label, 1)
            verb = "would have run" if label in self.calls else "names"
            yield "dangerous-name", f"{verb} {printable(label)} (named {times} time{'s' if times != 1 else ''})"
        yield from (("not-followed", problem) for problem in self.problems)
        yield from (("cannot-be-judged", f"cannot be judged: {doubt}") for doubt in self.unjudged)

    def lines(self, most: int | None) -> Iterator[str]:
        """The report for people; names from the file are escaped."""
        yield f"{printable(self.path, 1000)}: {self.kind}: {VERDICTS[self.verdict]}"
        if self.holds:
            yield f"  holds: {self.holds}"
        findings = [text for _, text in self.findings()]
        yield from (f"  {text}" for text in findings[:most])
        if most and len(findings) > most:
            yield f"  … ({len(findings)} findings in all; --verbose lists them)"
        if self.globals:
            names = ", ".join(printable(label, 80) for label in list(self.globals)[:most])
            left = f", … ({len(self.globals)} in all)" if most and len(self.globals) > most else ""
            yield f"  globals: {names}{left}"
        if self.unknown:
            yield "  other classes: " + ", ".join(printable(label, 80) for label in self.unknown[:most])
        yield from (f"  {note}" for note in self.notes[:most])


@dataclass(repr=False)
class ScanReport:
    """The scans of all files; ``skipped`` counts those in a folder that hold no pickle, ``links`` says which links in
    folders were not followed, and which lead outside.
    """

    files: list[FileScan] = field(default_factory=list)
    skipped: int = 0
    links: list[str] = field(default_factory=list)

    @property
    def suspicious(self) -> bool:
        """Whether any file is; the command line returns exit code 3 then."""
        return any(file.suspicious for file in self.files)

    @property
    def verdict(self) -> str:
        """The worst verdict of any file, a key of ``VERDICTS``."""
        found = {file.verdict for file in self.files}
        return next(verdict for verdict in VERDICTS if verdict in found or verdict == "clean")

    def __repr__(self) -> str:
        bad = sum(file.suspicious for file in self.files)
        return f"<ScanReport: {bad} of {len(self.files)} files suspicious, {self.skipped} skipped>"

    def as_json(self) -> dict[str, object]:
        """The report as plain values."""
        return {
            "verdict": self.verdict,
            "suspicious": self.suspicious,
            "skipped": self.skipped,
            "links": self.links,
            "files": [file.as_json() for file in self.files],
        }

    def lines(self, *, verbose: bool = False) -> Iterator[str]:
        """The report for people, one line per finding; names from files are escaped. ``verbose``: lists in full."""
        for file in self.files:
            yield from file.lines(None if verbose else 20)
        yield from (printable(link, 2000) for link in self.links)
        if self.skipped:
            yield f"{self.skipped} other files hold no pickle"
        elif not self.files:
            yield "no files"
