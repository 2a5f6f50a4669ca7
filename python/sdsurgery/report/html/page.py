"""One page: a self-contained document that asks the network for nothing and works without its script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

from .elements import Content, Markup, element, joined


class Section(NamedTuple):
    """A part of a page, with a heading; one without content is left out."""

    title: str
    content: Content


class View(NamedTuple):
    """A result as a page: ``title``, a ``line`` below it, what stands ``first`` (formula, facts, notes), sections."""

    title: str
    line: Content
    first: Content
    sections: Sequence[Section] = ()


def document(views: Sequence[View], version: str) -> str:
    """The page of one result, or of several one below the other."""
    style, script = (files(__package__).joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    rules = ("default-src 'none'", "style-src 'unsafe-inline'", f"script-src '{_digest(script)}'")
    head = [
        element("meta", charset="utf-8"),
        element(
            "meta",
            http_equiv="Content-Security-Policy",
            content="; ".join((*rules, "base-uri 'none'", "form-action 'none'")),
        ),
        element("meta", name="referrer", content="no-referrer"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", views[0].title + (f" and {len(views) - 1} more" if len(views) > 1 else "")),
        element("style", Markup(f"\n{style}")),
    ]
    body = [*(_article(view, f"r{at}", len(views) > 1) for at, view in enumerate(views, 1))]
    body += [element("footer", f"Written by sdsurgery {version}."), element("script", Markup(f"\n{script}"))]
    return f"<!DOCTYPE html>\n{element('html', element('head', head), element('body', body), lang='en')}\n"


def _digest(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(f'{chr(10)}{script}'.encode()).digest()).decode()}"


def _article(view: View, name: str, several: bool) -> Markup:
    sections = [(f"{name}-{at}", each) for at, each in enumerate(view.sections, 1) if joined(each.content)]
    links = [element("li", element("a", each.title, href=f"#{anchor}")) for anchor, each in sections]
    contents = element("nav", element("ul", links), aria_label=f"Contents of {view.title}" if several else "Contents")
    head = element("header", element("h1", view.title), element("p", view.line), contents if len(links) > 1 else "")
    parts = [
        element("section", element("h2", each.title, id=anchor), each.content, aria_labelledby=anchor)
        for anchor, each in sections
    ]
    return element("main" if not several else "article", head, view.first, parts)
