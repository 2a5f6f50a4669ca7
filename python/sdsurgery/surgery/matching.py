"""Which tensor of another input belongs to which of A's: by name, and where that fails by what both names stand for.

Old and foreign names (CLIP-L without ``text_model.``, the VAE's old attention names, ``state_dict.`` and ``model.``
around everything, a bare U-Net, also in diffusers' names, SD 2's encoder in sgm's place) are renames: the tensors
themselves are merged unchanged. A text projection under its diffusers name is the transposed matrix: it is gathered
by its columns. The output keeps A's names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile

from ..checkpoint import Checkpoint, TensorInfo
from ..errors import InputRefused, UsageError, number_of, printable
from ..layouts import Layout, aliases, names


def in_names_of(
    first: Mapping[str, TensorInfo], other: Mapping[str, TensorInfo], layout: Layout
) -> tuple[Mapping[str, TensorInfo], list[str]]:
    """``other``'s tensors under the names that ``first`` has for them, and notes, one line each.

    A tensor that ``first`` has under no name keeps its own. A name that both have is never given to another tensor.
    """
    extra = [name for name in other if name not in first and not layout.is_ema(name)]
    if not extra:
        return other, []
    layout = layout.original or layout  # whose names are what all others stand for
    lacking = {aliases.canonical(name, layout): name for name in first if name not in other and not layout.is_ema(name)}
    renamed: dict[str, str] = {}
    for name in extra:
        known = lacking.pop(aliases.canonical(name, layout), None)
        if known is not None:
            renamed[name] = known
    notes = []
    if renamed:
        name, known = next(iter(renamed.items()))
        others = f"'{printable(name)}' for '{printable(known)}'"
        notes.append(f"{number_of(len(renamed), 'tensor')} found under other names ({others})")
    left = [name for name in extra if name not in renamed]  # what no rule of the family explains
    wanted = {name: first[name].shape for name in lacking.values()}
    while (fronts := _fronts(wanted, {name: other[name].shape for name in left})) is not None:  # part by part
        ours, theirs = fronts
        found = {name: ours + name[len(theirs) :] for name in left if name.startswith(theirs)}
        found = {name: known for name, known in found.items() if known in wanted}
        renamed |= found
        for known in found.values():
            del wanted[known]
        left = [name for name in left if name not in found]
        notes.append(
            f"{number_of(len(found), 'name')} under '{printable(theirs)}' read as names under '{printable(ours)}'"
        )
    lacking = {key: name for key, name in lacking.items() if name in wanted}
    flipped = {}
    for name in extra:
        known = lacking.get(aliases.transposed(aliases.canonical(name, layout)) or "")
        if known is not None:
            renamed[name], flipped[name] = known, transposed(other[name])
            notes.append(f"'{printable(name)}' is the transposed matrix of '{printable(known)}' and was transposed")
    if renamed:
        other = {renamed.get(name, name): flipped.get(name, info) for name, info in other.items()}
    return other, notes


Names = Sequence[str] | Mapping[str, str]
"""What names begin with, and what they are read with instead: ``["OLD=NEW"]`` or a dictionary."""


def fronts(given: Names) -> tuple[tuple[str, str], ...]:
    """``OLD=NEW`` as pairs. UsageError for anything else."""
    items = list(given.items()) if isinstance(given, Mapping) else [text.partition("=")[::2] for text in given]
    for (old, new), text in zip(items, given, strict=True):
        if not old or (isinstance(given, Sequence) and "=" not in text):
            raise UsageError(f"map= needs OLD=NEW, beginnings of names, not '{printable(text)}'", code="bad_value")
        assert isinstance(new, str)
    return tuple(items)


def read_under(checkpoint: Checkpoint, places: Sequence[tuple[str, str]]) -> None:
    """Read a checkpoint's tensors under other names, and note how many. InputRefused when two would get one name."""
    for old, new in places:
        renamed = {new + name[len(old) :] if name.startswith(old) else name: name for name in checkpoint.tensors}
        if len(renamed) < len(checkpoint.tensors):
            raise InputRefused(
                f"{printable(checkpoint.path)}: two tensors would get one name with '{printable(new)}' for "
                f"'{printable(old)}'",
                code="extra_tensors",
                path=checkpoint.path,
            )
        count = sum(name.startswith(old) for name in checkpoint.tensors)
        checkpoint.tensors = {key: checkpoint.tensors[name].renamed(key) for key, name in renamed.items()}
        checkpoint.notes.append(f"{number_of(count, 'name')} under '{printable(old)}' read under '{printable(new)}'")


_MOST_PARTS = 6  # of one file, whose beginnings are tried
_MANY = 100  # names that agree in shape too: no coincidence
_ROOTS = ("", names.UNET, "diffusion_model.", names.VAE)


def _fronts(ours: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]]) -> tuple[str, str] | None:
    """What A's names begin with and what the other's begin with instead, where behind it they are the same: any
    constant prefix or infix.

    None when fewer than half of the smaller set would fit in name and shape, unless a whole part does (nearly all
    of many names that begin so, in both); or fewer than half of what begins so: a second network (a teacher, a copy)
    does not lend the first what that lacks. Where neither is the other with something before it, a name's last segment
    alone is no sign: 'a.bias' need not be 'b.bias'."""
    if not ours or not theirs:
        return None
    half, best, found = min(len(ours), len(theirs)) // 2, 0, None
    fronts = _beginnings(ours)
    for other in _beginnings(theirs):
        tails = [(name[len(other) :], shape) for name, shape in theirs.items() if name.startswith(other)]
        for front in fronts if len(tails) > max(best, min(half, _MANY - 1)) else ():
            least = 0 if front.endswith(other) or other.endswith(front) else 1
            fit = sum(shape == ours.get(front + tail) for tail, shape in tails if tail.count(".") >= least)
            if front == other or fit <= best or 2 * fit < len(tails):
                continue
            part = max(len(tails), sum(name.startswith(front) for name in ours))
            if fit > half or (fit >= _MANY and fit >= 0.9 * part):
                best, found = fit, (front, other)
    return found


def common_front(given: Collection[str]) -> str:
    """The whole segments with which all of the names begin."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(min(given), max(given), strict=False))
    common = "".join(letter for letter, _ in same)
    return common[: common.rfind(".") + 1]


def _beginnings(given: Collection[str]) -> list[str]:
    """Whole segments with which all of the names begin, or all of a part: those that have the next segment in common,
    and of these again. And the roots of components with which some do."""
    fronts = [common_front(given)]
    parts: list[Collection[str]] = [given]
    for _ in range(2):
        parts = sorted((below for part in parts for below in _parts(part)), key=len, reverse=True)
        del parts[_MOST_PARTS:]
        fronts += map(common_front, parts)
    ends = [(front, number + 1) for front in fronts for number, letter in enumerate(front) if letter == "."]
    roots = [root for root in _ROOTS if any(name.startswith(root) for name in given)]
    return list(dict.fromkeys([*roots, *(front[:end] for front, end in ends if front.count(".", 0, end) <= 8)]))


def _parts(given: Collection[str]) -> Collection[list[str]]:
    """The names by their next segment, behind those with which all of them begin. A U-Net is not taken apart."""
    parts: dict[str, list[str]] = {}
    behind = len(common_front(given))
    for name in () if any(names.in_unet(name[behind:]) for name in given) else given:
        parts.setdefault(name[behind:].partition(".")[0], []).append(name)
    return parts.values()


def transposed(info: TensorInfo) -> TensorInfo:
    """The same matrix with rows and columns swapped: a view of the same bytes. InputRefused if it is not a matrix."""
    if info.encoded is not None:
        raise InputRefused(
            f"tensor '{printable(info.name)}' is encoded ({printable(info.encoded.format)}) and would have to be "
            "transposed; cast the file to fp16 first",
            code="encoded",
            tensor=info.name,
        )
    if len(info.shape) != 2 or info.dtype.bits % 8:
        raise InputRefused(
            f"tensor '{printable(info.name)}' is {info.dtype.name} of shape {list(info.shape)}; a matrix that can be "
            "transposed is expected",
            code="shape",
            tensor=info.name,
        )
    rows, columns = info.shape
    strides = info.strides or (columns, 1)
    return info.with_form(info.form._replace(shape=(columns, rows), strides=strides[::-1]))


def is_bare(checkpoints: Sequence[Checkpoint]) -> bool:
    """Whether A is a U-Net in a file of its own, in names without a prefix, and another input a whole checkpoint."""
    first, *others = (any(name.startswith(names.UNET) for name in checkpoint.tensors) for checkpoint in checkpoints)
    return not first and any(others) and any(names.in_unet(name) for name in checkpoints[0].tensors)


def require_usable(
    source: int, checkpoint: Checkpoint, first: Mapping[str, TensorInfo], layout: Layout, *, add_missing: bool
) -> None:
    """InputRefused when a merge needs one of the tensors that cannot be read: of A (``source`` 0, ``first`` are its
    tensors) all but EMA weights, of the others those that meet one of A's weights, and all if they are to be added.
    """
    if not checkpoint.unusable:
        return
    model = layout.original or layout
    averaged = {
        aliases.canonical(name, model)
        for name, info in first.items()
        if info.dtype.kind not in ("int", "bool") and not layout.exact_copy(name)
    }
    everything = source == 0 or add_missing
    checkpoint.require_usable(
        lambda name: not layout.is_ema(name) and (everything or aliases.canonical(name, model) in averaged)
    )


def without_unit_tail(shape: tuple[int, ...]) -> tuple[int, ...]:
    """``shape`` with [o, i, 1, 1] as [o, i] and [o, 1, 1] as [o]: a 1×1 convolution and a linear layer hold the same
    matrix, and careless converters gave the biases of the VAE's attention three dimensions."""
    if len(shape) in (3, 4) and shape[-2:] == (1, 1):
        return shape[:-2]
    return shape
