"""The place of a result that there is none of, on a page of several."""

from __future__ import annotations

import os

from ....errors import Failure
from ..elements import notes
from ..page import View

KIND = "Failure"


def view(found: Failure) -> View:
    name = os.path.basename(found.path) if found.path else found.code
    return View(name, "Failed.", notes([f"warning: {found}"]))
