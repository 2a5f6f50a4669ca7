"""Reads a page as a strict parser does: every element closed, ids unique, nothing that runs or loads anything."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "br"}


class Page(HTMLParser):
    """``elements``: how often each tag occurs; ``texts`` of each tag; ``rows`` of all tables; ``metas``."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: dict[str, int] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.source = source
        self.feed(source)
        self.close()
        assert self.open == [], self.open

    @classmethod
    def of(cls, path: Path) -> Page:
        return cls(path.read_bytes().decode("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        self.elements[tag] = self.elements.get(tag, 0) + 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))
        if self.rows and "tr" in self.open:
            self.rows[-1][-1] += data

    def values(self, name: str) -> list[str]:
        return [value for _, each, value in self.attributes if each == name]

    @property
    def text(self) -> str:
        return "\n".join(data for tag, data in self.texts if tag not in ("style", "script"))

    def assert_self_contained(self) -> None:
        """One document that loads nothing, links only to itself, and runs no script but its own."""
        assert self.source.startswith("<!DOCTYPE html>\n<html lang=")
        ids = self.values("id")
        assert len(set(ids)) == len(ids)
        assert all(link.startswith("#") and link[1:] in ids for link in self.values("href"))
        assert all(label in ids for label in self.values("aria-labelledby"))
        names = {name for _, name, _ in self.attributes}
        assert not [name for name in names if name.startswith("on")] and not names & {"src", "srcset", "action"}
        assert not {"link", "iframe", "object", "embed", "form", "base", "img"} & set(self.elements)
        styles = "".join(data for tag, data in self.texts if tag == "style") + "".join(self.values("style"))
        assert "url(" not in styles and "@import" not in styles and "://" not in self.source
        assert self.elements["script"] == 1 and self.elements["html"] == self.elements["body"] == 1
        (policy,) = [value for value in self.values("content") if "default-src" in value]
        assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
        tables = len(re.findall("<table", self.source))
        assert self.elements.get("caption", 0) == tables == self.elements.get("thead", 0)
