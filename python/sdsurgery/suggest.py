"""'Did you mean': close matches for mistyped names."""

from __future__ import annotations

from collections.abc import Iterable

from .errors import printable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` with up to three close matches, or an empty text when nothing is close."""
    import difflib  # 10 ms: only on the way to an error

    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    if not close:
        return ""
    return "; did you mean " + " or ".join(f"'{printable(name)}'" for name in close) + "?"
