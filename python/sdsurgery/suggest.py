"""'Did you mean': close matches for mistyped names."""

from __future__ import annotations

from collections.abc import Iterable

from .errors import printable

_MOST_FILES = 10_000


def near_files(path: str) -> str:
    """``"; did you mean 'x'?"`` with files whose name is like that of a file that is missing; or which folder is."""
    import difflib
    import os

    folder, name = os.path.split(path)
    try:
        with os.scandir(folder or os.curdir) as entries:
            held = sorted(entry.name for _, entry in zip(range(_MOST_FILES), entries, strict=False))
    except FileNotFoundError:
        return f"; there is no folder '{printable(folder)}'"
    except OSError:
        return ""
    word, stem = name.lower(), os.path.splitext(name.lower())[0]
    by_stem: dict[str, list[str]] = {}  # without the suffix, by which most are alike
    for each in held:
        by_stem.setdefault(os.path.splitext(each.lower())[0], []).append(each)
    stems = [each for each in (word, stem) if each in by_stem] or difflib.get_close_matches(stem, by_stem, n=3)
    close = [each for key in dict.fromkeys(stems) for each in by_stem[key]]
    if not close:
        return ""
    return "; did you mean " + " or ".join(f"'{printable(os.path.join(folder, each))}'" for each in close[:3]) + "?"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` with up to three close matches, or an empty text when nothing is close."""
    import difflib  # 10 ms: only on the way to an error

    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    if not close:
        return ""
    return "; did you mean " + " or ".join(f"'{printable(name)}'" for name in close) + "?"
