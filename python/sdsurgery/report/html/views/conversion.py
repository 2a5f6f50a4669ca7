"""The page of one of many files of ``convert``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..page import View
from . import failure, written

if TYPE_CHECKING:
    from ....surgery.convert import Conversion

KIND = "Conversion"


def view(found: Conversion) -> View:
    if found.error is not None:
        return failure.view(found.error)
    assert found.report is not None
    return written.view(found.report)
