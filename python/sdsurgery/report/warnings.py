"""Every warning that a verb can give: its code, when it is given, and its text.

The surgery says a code and facts. What comes of it is a text that begins with ``warning: ``, among the notes of a
report; ``--json`` lists it with its code apart from them. Codes are stable, the wording is not (docs/warnings.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ..errors import printable

_PREFIX = "warning: "


class Kind(NamedTuple):
    """When a warning is given, and its text, with the facts in braces."""

    when: str
    text: str


KINDS = {
    "out_of_range": Kind(
        "a ratio lies outside −1…2, as a percentage does",
        "{name} is {value}, outside −1…2{hint}",
    ),
    "weights_sum": Kind(
        "weights of the inputs that are used as given don't sum to 1",
        "the {name} sum to {total}, not 1; they are used as given{hint}",
    ),
    "same_file": Kind(
        "two inputs hold the same tensors",
        "{first} and {second} hold the same tensors: {how}",
    ),
    "zero_difference": Kind(
        "two inputs whose difference is taken hold the same tensors, so the difference is zero everywhere",
        "{first} − {second} is zero everywhere: {how}",
    ),
    "copy": Kind("the numbers make the output a copy of one input", "with {numbers} the output is a copy of {which}"),
    "no_effect": Kind(
        "an adapter changes nothing: its strengths and block weights are 0",
        "{name} changes nothing: all its strengths and block weights are 0",
    ),
    "unread": Kind(
        "tensors of an adapter in diffusers' names are whole differences, which diffusers passes over",
        "whole differences, which diffusers passes over, in {tensors}: {names}; "
        "merge_lora(rank=…) makes factors of those of matrices",
    ),
    "overflow": Kind(
        "values did not fit the output's dtype",
        "values that did not fit the dtype: {count} in {tensors}: {names}",
    ),
    "nonfinite": Kind("NaN or Inf in an input", "NaN or Inf in the inputs: {count} in {tensors}: {names}"),
    "ema_unused": Kind(
        "an input has EMA weights, and the others are taken",
        "{path} has EMA weights ({state}), which are often the better ones, and they are dropped; {option} takes them",
    ),
    "shard": Kind(
        "the file is one of several that are a model together",
        "{path} is shard {number} of {count} of a model; {advice}",
    ),
    "incomplete": Kind("a file lacks tensors of its family, or has them in another shape", "{what}"),
    "vae_family": Kind(
        "a VAE is another family's: its shapes fit, its latents do not",
        "the VAE of {path} is that of {found}, by {sign}; {family} has another: same shapes, other latents, so the "
        "pictures come out wrong",
    ),
    "vae_unrelated": Kind(
        "a VAE has nothing in common with A's: it is probably another family's",
        "the VAE of {path} has nothing in common with that of {base} (cosine {cosine:.2f} of the encoder's filters): "
        "one of them is another family's, with other latents in the same shapes, and the pictures come out wrong",
    ),
    "prediction": Kind(
        "the models predict different things (noise, v)",
        "these models predict different things, and a mix of them rarely works: {each}",
    ),
    "schedule": Kind(
        "some of the models have the marker of a zero-terminal-SNR schedule",
        "the marker ztsnr (zero-terminal-SNR schedule) is in {having} and not in {lacking}; "
        "the output {kept}, as A does",
    ),
    "stray_scales": Kind(
        "scales lie beside weights that are not encoded",
        "{count} scales lie beside weights that are not encoded ('{name}'); the weights were taken as they are stored, "
        "and the scales left out",
    ),
    "unusable_package": Kind("an installed package offers methods that cannot be loaded", "{what}"),
    "unexplained": Kind(
        "unmix: the best mix of the candidates leaves more than rounding does",
        "the best mix leaves {share:.2%} of the weights' spread{where}, while rounding leaves {rounding:.3%}: "
        "{cause}. {bounds}",
    ),
}  # fmt: skip
"""Every code."""


class Warned(str):
    """A note that warns. ``code`` is a key of ``KINDS``."""

    code: str

    def __new__(cls, code: str, text: str) -> Warned:
        made = super().__new__(cls, _PREFIX + text)
        made.code = code
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]  # for copies and pickles
        return self.code, self.text

    @property
    def text(self) -> str:
        """Without what marks it as a warning."""
        return self.removeprefix(_PREFIX)


def warned(code: str, **facts: str | int | float) -> Warned:
    """The warning of that code. Facts that come from a file are escaped by who gives them (``printable``)."""
    return Warned(code, KINDS[code].text.format(**facts))


def shortened(names: Sequence[str], most: int = 3) -> str:
    """The first of many names from files, safe to print."""
    more = f", … ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more


def of_file(path: str, notes: Iterable[str]) -> list[str]:
    """Notes with the file that they are about; warnings name it themselves."""
    return [note if isinstance(note, Warned) else f"{printable(path)}: {note}" for note in notes]


def in_json(notes: Iterable[str]) -> dict[str, Any]:
    """Notes in JSON types: warnings, as ``{"code": …, "text": …}``, apart from the others."""
    found = list(notes)
    return {
        "notes": [note for note in found if not isinstance(note, Warned)],
        "warnings": [{"code": note.code, "text": note.text} for note in found if isinstance(note, Warned)],
    }


def line(note: str) -> str:
    """A note as a line of a report."""
    return note if is_warning(note) else f"note: {note}"


def is_warning(note: str) -> bool:
    """Whether a line of text warns."""
    return note.startswith(_PREFIX)


def yellow(note: str) -> str:
    """A line for terminals that show colours."""
    return f"\x1b[33m{note}\x1b[0m"
