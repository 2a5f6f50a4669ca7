"""Messages spell options as Python does; here they become the command line's: ``overwrite=True`` → ``--force``."""

from __future__ import annotations

import re
from functools import cache

_FLAGS = {"out": "-o", "overwrite": "--force"}
"""Options that the two call differently. The others differ in their hyphens only."""

_VERB = r"\b(merge|cast|ema|prune|fix_clip|extract|replace|convert)\(([^()]*)\)"
_VALUE = r"True|FILE|…|\"[\w-]+\"(?: or \"[\w-]+\")*|\{\"\w+\": …\}|(?![\w'\"(\[{.-])"


def in_shell(text: str) -> str:
    """A message with its options as the command line takes them. What names no option stays as it is."""
    if "=" not in text:
        return text
    option = _option()
    text = re.sub(_VERB, lambda found: f"{found[1].replace('_', '-')} {option.sub(_spelled, found[2])}", text)
    return option.sub(_spelled, text)


def _spelled(found: re.Match[str]) -> str:
    name, value = found[1], found[2]
    flag = _FLAGS.get(name) or "--" + name.replace("_", "-")
    if value.startswith("{"):  # {"alpha": …}
        return f"{flag} {value[2:].partition(chr(34))[0]}:…"
    words = "" if value in ("True", "…") else value.replace('"', "")
    return f"{flag} {words}".rstrip()


@cache
def _option() -> re.Pattern[str]:
    from ..methods import registered

    names = {"out", "out_dir", "overwrite", "component", "preset", "drop", "keep_keys", "drop_keys", "strict"}
    names |= {"add_missing", "use_ema", "blocks", "rules", "to_ema", "keep_counters", "allow_missing", "strip_prefix"}
    names |= {"dtype", "threads", "backend", "gpu_memory", "fallback", "overflow", "on_nonfinite", "compute", "io"}
    names |= {"fix_clip", "fix_names", "dry_run", "allow_suspicious", "allow_inflate"}
    names |= {name for method in registered("merge").values() for name in method.params}
    return re.compile(rf"(?<![\w.-])({'|'.join(sorted(names, key=len, reverse=True))})=({_VALUE})")
