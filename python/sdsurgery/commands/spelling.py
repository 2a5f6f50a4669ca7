"""Messages spell options as Python does; here they become the command line's: ``overwrite=True`` → ``--force``."""

from __future__ import annotations

import re
from functools import cache

from ..settings import OPTIONS, WRITING
from . import NAMES

_OWN = {
    "out", "out_dir", "component", "preset", "drop", "keep_keys", "drop_keys", "strict", "add_missing", "use_ema",
    "variant", "blocks", "rules", "to_ema", "keep_counters", "allow_missing", "strip_prefix", "prefix", "keys", "map",
    "expect", "hashes", "vae", "base", "loras", "check", "kind", "rank", "energy", "sigma_ratio", "exact", "conv_rank",
    "clamp", "unet", "te", "names", "folder",
}  # fmt: skip
"""Keywords of single verbs; a test says that these are all."""

_FLAGS = {"out": "-o", "loras": "--lora", "folder": "--in"}

_VERB = rf"\b({'|'.join(NAMES).replace('-', '_')})\(([^()]*)\)"
_VALUE = r"True|FILE|…|\"[\w-]+\"(?: or \"[\w-]+\")*|\{\"\w+\": …\}|(?![\w'\"(\[{.-])"


def in_shell(text: str) -> str:
    """A message with its options as the command line takes them. Other text is unchanged."""
    if "=" not in text:
        return text
    option = _option()
    text = re.sub(_VERB, lambda found: f"{found[1].replace('_', '-')} {option.sub(_spelled, found[2])}", text)
    return option.sub(_spelled, text)


def _spelled(found: re.Match[str]) -> str:
    name, value = found[1], found[2]
    flag = _FLAGS[name] if name in _FLAGS else OPTIONS[name].flag if name in OPTIONS else "--" + name.replace("_", "-")
    if value.startswith("{"):  # {"alpha": …}
        return f"{flag} {value[2:].partition(chr(34))[0]}:…"
    words = "" if value in ("True", "…") else value.replace('"', "")
    return f"{flag} {words}".rstrip()


@cache
def _option() -> re.Pattern[str]:
    from ..methods.registry import registered

    names = _OWN | set(WRITING) - {"hash", "sync"}
    names |= {name for method in registered().values() for name in method.params}
    return re.compile(rf"(?<![\w.-])({'|'.join(sorted(names, key=len, reverse=True))})=({_VALUE})")
