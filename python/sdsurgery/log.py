"""The logger ``sdsurgery``: what was written and every note (INFO), every warning (WARNING), files opened (DEBUG).

It has a NullHandler, so it is silent until the caller configures logging. Where ``logging`` was never imported there
is no handler, and it isn't imported for that: the command line prints its own report.
"""

from __future__ import annotations

import sys
from typing import Any

from .errors import printable


def debug(message: str, *values: object) -> None:
    """One DEBUG record."""
    logger = _logger()
    if logger is not None:
        logger.debug(message, *values)


def warning(message: str, *values: object) -> None:
    """One WARNING record."""
    logger = _logger()
    if logger is not None:
        logger.warning(message, *values)


def report(found: Any) -> None:
    """What a writing verb did, from its Report or those of a sweep; other results say nothing."""
    if isinstance(found, list):
        for each in found:
            report(each)
        return
    logger = _logger()
    if logger is None or not hasattr(found, "bytes_written"):
        return
    verb = "would write" if found.dry_run else "wrote"
    logger.info("%s: %s %s (%d bytes)", found.verb, verb, printable(found.output or "-"), found.bytes_written)
    for note in found.notes:
        if note.startswith("warning: "):
            logger.warning("%s", note.removeprefix("warning: "))
        else:
            logger.info("%s", note)


def _logger() -> Any:
    logging = sys.modules.get("logging")
    if logging is None:
        return None
    logger = logging.getLogger("sdsurgery")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    return logger
