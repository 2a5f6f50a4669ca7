"""What is known of a merge before it begins: refusals of inputs that must not be mixed, and warnings.

Headers only, except for one bias of 320 numbers in SD 2 files, whose names and shapes are the same for ε- and
v-prediction.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from ..checkpoint import Checkpoint, TensorInfo
from ..errors import InputRefused, UsageError, printable
from ..layouts import UNKNOWN, Detection, Layout, conflict, known_encoders, names, release, text_encoders
from ..layouts.base import EPSILON, V_PREDICTION, PredictionSign
from ..layouts.completeness import completeness
from ..report.warnings import warned

_STATED = {
    "epsilon": EPSILON,
    "eps": EPSILON,
    "v": V_PREDICTION,
    "v_prediction": V_PREDICTION,
    "v-prediction": V_PREDICTION,
}
_MARKED = {"v_pred": V_PREDICTION, "edm_vpred.sigma_max": "EDM v-prediction", "edm_mean": "EDM"}
_MARKS = (*_MARKED, "ztsnr")


def letter(source: int) -> str:
    """``A``, ``B``, … as the methods name their inputs; ``input 27`` after Z."""
    return chr(ord("A") + source) if source < 26 else f"input {source + 1}"


def letters(given: str | Sequence[str], count: int) -> list[int]:
    """Indexes of the inputs named ``A,B``. UsageError for a name that no input has."""
    words = given.split(",") if isinstance(given, str) else given
    known = [letter(source) for source in range(min(count, 26))]
    found = set()
    for word in filter(None, (item.strip().upper() for item in words)):
        if word not in known:
            raise UsageError(
                f"there is no input '{printable(word)}' for use_ema=; the inputs are {', '.join(known)}",
                code="unknown_name",
            )
        found.add(known.index(word))
    return sorted(found)


def who(source: int, checkpoints: Sequence[Checkpoint]) -> str:
    """``B (path)``, as messages name an input."""
    return f"{letter(source)} ({printable(checkpoints[source].path)})"


# ---- refusals


def refuse_conflicts(checkpoints: Sequence[Checkpoint], detections: Sequence[Detection]) -> None:
    """InputRefused when two inputs are of different families, with both families and the tensor that differs."""
    _refuse_factors(checkpoints, detections)
    known = [source for source, found in enumerate(detections) if found.layout is not UNKNOWN]
    for source in known[1:]:
        first = known[0]
        reason = conflict(detections[first], detections[source], (letter(first), letter(source)))
        if reason is not None:
            raise InputRefused(
                f"different families cannot be merged: {who(first, checkpoints)} and {who(source, checkpoints)}: "
                f"{reason}{_instead([detections[first].layout, detections[source].layout])}",
                code="family",
                tensor=detections[source].evidence_key,
                path=checkpoints[source].path,
                details={"expected": detections[first].layout.name, "found": detections[source].layout.name},
            )


def _refuse_factors(checkpoints: Sequence[Checkpoint], detections: Sequence[Detection]) -> None:
    """InputRefused for two adapters of factors: their effects are products, so means of the factors mean nothing."""
    found = [source for source, each in enumerate(detections) if each.layout.factors]
    if len(found) > 1:
        raise InputRefused(
            f"{who(found[0], checkpoints)} is {detections[found[0]].layout.title}, {who(found[1], checkpoints)} is "
            f"{detections[found[1]].layout.title}: their effects are products of factors, and merging the factors one "
            "by one gives another effect; merge-lora merges adapters by their effects",
            code="family",
            path=checkpoints[found[1]].path,
        )


def _instead(layouts: Sequence[Layout]) -> str:
    """Which verb does what a refused merge may have been meant to do."""
    if any(each.factors for each in layouts):
        return "; bake puts an adapter's effect into a checkpoint"
    parts = [next(iter(each.components)) if each.components == {"vae"} else each.alone for each in layouts]
    part = next(filter(None, parts), None)
    if part is None:
        return ""
    title = _COMPONENTS.get(part, part)
    return f'; replace(component="{part}") puts a {title} into a checkpoint'


def refuse_strangers(
    checkpoints: Sequence[Checkpoint], merged: int, missing: Sequence[tuple[int, str]], allowed: bool
) -> None:
    """InputRefused when fewer than half of A's weights are in every input; ``allowed`` accepts any number but zero.

    ``missing`` are (source, name of A's tensor that it lacks).
    """
    wanted = merged + len({name for _, name in missing})
    if merged and (allowed or 2 * merged >= wanted):
        return
    lacking: dict[int, int] = {}
    for source, _ in missing:
        lacking[source] = lacking.get(source, 0) + 1
    counts = ", ".join(
        f"{wanted - count} of {wanted} of A's tensors are in {who(source, checkpoints)}"
        for source, count in lacking.items()
    )
    raise InputRefused(
        (f"only {counts}" if counts else f"no tensor of {who(0, checkpoints)} can be merged")
        + "; these models have little in common"
        + (" (allow_unlike=True merges them anyway)" if merged else ""),
        code="unlike",
        details={"expected": wanted, "missing": {checkpoints[source].path: count for source, count in lacking.items()}},
    )


# ---- warnings and explanations


def remarks(
    checkpoints: Sequence[Checkpoint], detections: Sequence[Detection], missing: Sequence[tuple[int, str]],
    tensors: Sequence[Mapping[str, TensorInfo]], *, fix_clip: bool = False,
) -> list[str]:  # fmt: skip
    """Notes on inputs that may be merged. ``tensors`` are theirs under A's names; ``fix_clip``: position_ids will be
    repaired."""
    signs = [
        _signs(checkpoint.tensors, found.layout) for checkpoint, found in zip(checkpoints, detections, strict=True)
    ]
    notes = [
        *_predictions(checkpoints, detections, signs),
        *_encoders(checkpoints, detections[0].layout, signs, tensors),
    ]
    if not fix_clip:
        notes += _position_ids(checkpoints, signs)
    for source in range(1, len(checkpoints)):
        layout = detections[source].layout
        absent = [name for lacking, name in missing if lacking == source and layout.parts and _may_lack(layout, name)]
        if absent:
            notes.append(
                f"{len(absent)} of the tensors missing in {who(source, checkpoints)} are ones that {layout.title} "
                f"files may lack ('{printable(absent[0])}'{', …' if len(absent) > 1 else ''})"
            )
    return notes


def _may_lack(layout: Layout, name: str) -> bool:
    """Whether the tensor is the family's, and one that files of it may lack."""
    return layout.component(name) not in ("other", "training", "optimizer") and layout.optional(name)


def completenesses(
    checkpoints: Sequence[Checkpoint], detections: Sequence[Detection], *, add_missing: bool, given: Sequence[str] = ()
) -> list[str]:
    """What inputs lack of their families' tensors, and the components of which A has none and another input all.
    ``given`` are components that come from elsewhere."""
    notes: list[str] = []
    lacking: list[set[str] | None] = []
    for source, (checkpoint, found) in enumerate(zip(checkpoints, detections, strict=True)):
        whole = completeness(checkpoint.tensors, found.layout)
        notes += [warned("incomplete", what=f"{who(source, checkpoints)}: {line}") for line in whole.lines()]
        lacking.append(set(whole.lacking) if whole.parts else None)
    first = lacking[0]
    for component in sorted(first or ()):
        others = [source for source in range(1, len(checkpoints)) if lacking[source] is not None]
        having = next((source for source in others if component not in (lacking[source] or ())), None)
        if having is not None and not add_missing and component not in given:
            title = _COMPONENTS.get(component, component)
            notes.append(
                f"A has no {title}, so the output has none either; add_missing=True adds that of "
                f"{who(having, checkpoints)}"
            )
    return notes


_COMPONENTS = {"unet": "U-Net", "vae": "VAE", "text_encoder": "text encoder", "text_encoder_2": "second text encoder"}


class _Signs(NamedTuple):
    """What of a file's tensors the remarks are about."""

    marks: frozenset[str]
    encoders: Mapping[str, str]  # kind of text encoder -> its names, empty for the usual ones
    has_ids: bool


def _signs(tensors: Mapping[str, TensorInfo], layout: Layout) -> _Signs:
    identifying = tuple({".".join(encoder.key.split(".")[-2:]) for encoder in known_encoders()})
    found = [name for name in tensors if name.endswith((*identifying, *_MARKS, "position_ids"))]
    unwrapped = {layout.unwrap(name): tensors[name] for name in found if name.endswith(identifying)}
    encoders = {encoder.name: encoder.spelling for encoder in text_encoders(unwrapped)}
    marks = frozenset(layout.unwrap(name) for name in found if name.endswith(_MARKS))
    return _Signs(marks, encoders, any(names.is_position_ids(name) for name in found))


class Prediction(NamedTuple):
    """What a model predicts, and what says so."""

    kind: str
    reason: str


def prediction(checkpoint: Checkpoint, layout: Layout) -> Prediction | None:
    """What the model predicts: by marker tensors, then metadata, then for SD 2 a bias, then the family's usual.

    None for files that are not a complete model of a known family and say nothing themselves.
    """
    return _prediction(checkpoint, layout, _signs(checkpoint.tensors, layout).marks)


def _prediction(checkpoint: Checkpoint, layout: Layout, marks: Collection[str]) -> Prediction | None:
    for marker, kind in _MARKED.items():
        if marker in marks:
            return Prediction(kind, f"marker tensor {marker}")
    metadata = checkpoint.metadata()
    stated = _STATED.get(metadata.get("modelspec.prediction_type", "").lower())
    if stated is not None:
        return Prediction(stated, "metadata modelspec.prediction_type")
    architecture = metadata.get("modelspec.architecture", "").lower()
    published = release(architecture)
    if published is not None and published.architecture == architecture and published.prediction is not None:
        return Prediction(published.prediction, "metadata modelspec.architecture")
    if layout.prediction is None:
        return None
    sign = layout.prediction_sign
    spread = None if sign is None else _spread(checkpoint, sign)
    if sign is not None and spread is not None:
        kind = V_PREDICTION if spread > sign.spread else EPSILON
        return Prediction(kind, f"by the spread of {sign.key}, {spread:.3f}")
    return Prediction(layout.prediction, f"usual for {layout.title}, nothing in the file says otherwise")


def _spread(checkpoint: Checkpoint, sign: PredictionSign) -> float | None:
    """Standard deviation of the tensor that shows the prediction type, None where it can't be read."""
    info = next((info for name, info in checkpoint.tensors.items() if name.endswith(sign.key)), None)
    if info is None or info.strides is not None or info.elements > 320:
        return None
    found = checkpoint.numbers(info)
    if not found:
        return None
    mean = sum(found) / len(found)
    spread: float = (sum((value - mean) ** 2 for value in found) / len(found)) ** 0.5
    return spread


def _predictions(
    checkpoints: Sequence[Checkpoint], detections: Sequence[Detection], signs: Sequence[_Signs]
) -> list[str]:
    notes: list[str] = []
    found: dict[int, Prediction] = {}
    for source, (checkpoint, detection) in enumerate(zip(checkpoints, detections, strict=True)):
        known = _prediction(checkpoint, detection.layout, signs[source].marks)
        if known is not None:
            found[source] = known
    if len({item.kind for item in found.values()}) > 1:
        each = "; ".join(f"{who(source, checkpoints)}: {item.kind} ({item.reason})" for source, item in found.items())
        notes.append(warned("prediction", each=each))
    snr = [source for source, item in enumerate(signs) if "ztsnr" in item.marks]
    if snr and len(snr) < len(checkpoints):
        others = [source for source in range(len(checkpoints)) if source not in snr]
        kept = "has it" if 0 in snr else "lacks it"
        notes.append(warned("schedule", having=_list(snr), lacking=_list(others), kept=kept))
    return notes


def _list(sources: Sequence[int]) -> str:
    return " and ".join(map(letter, sources))


def _encoders(
    checkpoints: Sequence[Checkpoint],
    layout: Layout,
    signs: Sequence[_Signs],
    tensors: Sequence[Mapping[str, TensorInfo]],
) -> list[str]:
    """How the text encoders of the others differ from A's in kind and in names; those that are known only under A's
    names are as good as any."""
    notes = []
    first = signs[0].encoders
    for source in range(1, len(checkpoints)):
        here, where = signs[source].encoders, who(source, checkpoints)
        if set(here) != set(first) and set(under_a := {**_signs(tensors[source], layout).encoders, **here}) != set(
            first
        ):
            notes.append(f"text encoders: A has {_some(first)}, {where} has {_some(under_a)}")
        notes += [
            f"text encoder {kind}: {here[kind] or 'usual names'} in {where}, {names_in_a or 'usual names'} in A; its "
            "tensors were matched anyway"
            for kind, names_in_a in first.items()
            if kind in here and here[kind] != names_in_a
        ]
    return notes


def _position_ids(checkpoints: Sequence[Checkpoint], signs: Sequence[_Signs]) -> list[str]:
    """Which of the inputs with a text encoder lack position_ids where A has them, or have them where A lacks them."""
    notes = []
    ours = signs[0].has_ids
    for source in range(1, len(checkpoints)):
        both = signs[0].encoders and signs[source].encoders
        if not both or signs[source].has_ids == ours:
            continue
        where = who(source, checkpoints)
        notes.append(
            f"position_ids: A has them, {where} has none; A's are copied"
            if ours
            else f"position_ids: {where} has them, A has none, so the output has none (programs no longer need "
            "them; fix_clip=True adds them)"
        )
    return notes


def _some(found: Collection[str]) -> str:
    return " and ".join(found) or "none"
