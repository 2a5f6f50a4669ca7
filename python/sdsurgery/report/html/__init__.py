"""HTML reports: a result as one self-contained page (docs/html.md).

``views/`` has one file per kind of result, ``elements.py`` the markup, ``page.py`` the document around it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import RunFailed, printable
from ..progress import followed

if TYPE_CHECKING:
    from ...settings import Settings
    from .page import View

Found = TypeVar("Found")
SUFFIXES = (".html", ".htm")


def reported(verb: str, settings: Settings, work: Callable[[Settings], Found]) -> Found:
    """``followed``, and the page of what it gives where ``settings.html`` names one. UsageError as ``check``, before
    the work; RunFailed as ``write``, after it."""
    if settings.html is None:
        return followed(verb, settings, work)
    where = check(settings.html, overwrite=settings.overwrite)
    found = followed(verb, settings, work)
    write(found, where, overwrite=settings.overwrite)
    return found


def check(path: str | os.PathLike[str], *, overwrite: bool = False) -> str:
    """The resolved target of a page. UsageError when its name doesn't end in .html, or it can't be written there."""
    from ..pictures import target

    return target(path, SUFFIXES, overwrite, "the report")


def write(found: Any, where: str, *, overwrite: bool = False) -> None:
    """Write the page of a result to what ``check`` gave, whole or not at all. RunFailed, which says that the work is
    done, when it can't be written."""
    from ..pictures import write_whole

    try:
        write_whole(where, document(found).encode(), overwrite=overwrite)
    except RunFailed as error:
        raise error.within("the work is done, but its HTML report is not written") from None


def document(found: Any) -> str:
    """The page of a result, or of a list of them. TypeError for what has no page."""
    from ... import __version__
    from . import page

    several: Sequence[Any] = found if isinstance(found, list) else [found]
    return page.document([_view(each) for each in several], __version__)


def _view(found: Any) -> View:
    known = _views()
    for kind in type(found).__mro__:
        if kind.__name__ in known:
            return known[kind.__name__](found)
    raise TypeError(f"{printable(type(found).__name__)} has no HTML report")


@cache
def _views() -> dict[str, Callable[[Any], View]]:
    from ...discovery import module_names
    from . import views

    modules: list[Any] = [import_module(f".{name}", views.__name__) for name in module_names(views.__path__)]
    return {module.KIND: module.view for module in modules}
