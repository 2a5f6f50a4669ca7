"""The guess made again and compared: which arithmetic gives the mix, on a sample, then the whole file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..methods.registry import get
from ..methods.tools import TOOLS
from .guesses import Guess, option_of
from .samples import Tensor, sample

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint, TensorInfo
    from .parentage import Work

_SAMPLE = 1 << 16
"""Elements of a block that are tried."""
_FIRST = 2048
_TELLING = 3
"""Blocks that all guesses are tried on."""
_FAR = 0.9
"""Share of their elements below which no guess can be right."""
_CLOSE = 2e-3
"""What gives nearly as many of their elements as the best is tried on the others too."""
_ALIKE = 0.99
"""Share of the sample that a guess must give; what none does is no single merge of these, and the first is made."""
_MOST_MADE = 3
_STRETCH = 1 << 22


@dataclass(frozen=True)
class Proof:
    """``guess`` is the merge that was made; ``equal`` of the mix's ``tensors`` have its bits, no element of the others
    is more than ``ulps`` steps of its dtype away (None where dtypes differ, or there is none to compare). ``tools``
    compute the method so (docs/compat.md)."""

    guess: Guess
    tensors: int
    equal: int
    ulps: int | None
    unequal_elements: int
    tools: list[str]
    text: str

    def to_dict(self) -> dict[str, Any]:
        found = asdict(self)
        guess = found.pop("guess")
        return {**found, "method": guess["method"], "parameters": guess["parameters"], "blocks": guess["blocks"]}


def proved(work: Work, guesses: Sequence[Guess]) -> Proof:
    """The guess that has most of a sample's bits, made into a temporary file, compared, and removed."""
    proofs: list[Proof] = []
    with tempfile.TemporaryDirectory(prefix="sdsurgery-proof-") as folder:
        made = os.path.join(folder, "made.safetensors")
        for guess in islice(_likely(work, guesses), _MOST_MADE):
            _make(work, guess, made)
            proofs.append(_compared(work, guess, made))
            if proofs[-1].equal == proofs[-1].tensors:
                break
    return max(proofs, key=lambda proof: (proof.equal, -proof.unequal_elements))


def _likely(work: Work, guesses: Sequence[Guess]) -> Iterator[Guess]:
    """The guesses that give all of a sample's bits, as they are found; else those that give most of them."""
    if len(guesses) == 1:
        yield guesses[0]
        return
    tried = _by_block(sample(work, sorted(set().union(*(guess.order for guess in guesses))), _SAMPLE, _SAMPLE))
    telling = tried[:: max(1, len(tried) // _TELLING)]
    first = [_equal_share(telling, guess, _FIRST) for guess in guesses]  # few elements part most of them
    if max(first) < _FAR:
        yield guesses[0]
        return
    ranked = sorted(zip(first, guesses, strict=True), key=lambda row: -row[0])
    guesses = [guess for share, guess in ranked if share >= max(first) - _CLOSE]
    shares: list[float] = []
    for guess in guesses:
        shares.append(_equal_share(tried, guess, _FIRST))
        if shares[-1] == 1.0 and _equal_share(tried, guess, _SAMPLE) == 1.0:
            yield guess
    best = max(shares)
    left = [guess for guess, share in zip(guesses, shares, strict=True) if share == best]
    equal = [_equal_share(tried, guess, _SAMPLE) for guess in left]
    if best < 1.0 and max(equal) < _ALIKE:
        yield guesses[0]
    elif max(equal) < 1.0:
        yield from (guess for guess, share in zip(left, equal, strict=True) if share == max(equal))


def _by_block(tried: Iterable[Tensor]) -> list[Tensor]:
    """The tensors of a block and dtype as one: the methods are the same for every element of them."""
    import numpy as np

    groups: dict[tuple[str, str], list[Tensor]] = {}
    for tensor in tried:
        groups.setdefault((tensor.block, tensor.dtype.name), []).append(tensor)
    return [
        group[0]._replace(
            mix=np.concatenate([each.mix for each in group]),
            inputs={i: np.concatenate([each.inputs[i] for each in group]) for i in group[0].inputs},
        )
        for group in groups.values()
    ]


def _make(work: Work, guess: Guess, path: str) -> None:
    from .cast import cast
    from .merge import merge

    dtypes = {each.dtypes[0] for each in work.tensors}
    word = (option_of(next(iter(dtypes))) if len(dtypes) == 1 else None) or "keep"
    settings = replace(work.settings, dtype=word, hash=False, sync=False, overwrite=True, progress=None)
    inputs = [work.opened[i + 1] for i in guess.order]
    if guess.method == "cast":
        cast(inputs[0], settings, out=path)
        return
    first, step = (
        (path, settings) if guess.via is None else (f"{path}.first.safetensors", replace(settings, dtype="keep"))
    )
    merge(guess.method, inputs, step, out=first, parameters=guess.parameters, blocks=guess.blocks or None)
    if guess.via is not None:
        cast(first, settings, out=path)
        os.remove(first)


def _equal_share(tried: Sequence[Tensor], guess: Guess, most: int) -> float:
    """The share of the sample's elements, ``most`` of each block, that has the mix's values."""
    import numpy as np

    from ..definitions.conversions import store, widen

    found = total = 0
    method = get(guess.method)
    for tensor in tried:
        inputs = [tensor.inputs[i][:most] for i in guess.order]
        with np.errstate(all="ignore"):
            result = method.body(*inputs, **method.bind(len(inputs), guess.of_block(tensor.block)))
        if guess.via is not None:
            stored, _ = store(result, np.isfinite(result), guess.via, "default")
            result = widen(stored, guess.via, False)
        stored, _ = store(result, np.isfinite(result), tensor.dtype, "default")
        total += len(inputs[0])
        found += int((widen(stored, tensor.dtype, False) == tensor.mix[:most]).sum())
    return found / max(1, total)


def _compared(work: Work, guess: Guess, path: str) -> Proof:
    from ..checkpoint import open_checkpoint
    from .compare import compare
    from .matching import in_names_of

    mix = work.opened[0]
    with open_checkpoint(path) as made:
        made.tensors = in_names_of(mix.tensors, made.tensors, work.layout)[0]
        found = compare(mix, made, replace(work.settings, progress=None))
        unequal = [tensor.name for tensor in found.tensors if not tensor.equal]
        ulps, elements = 0, 0
        for name in unequal:
            steps = _steps(mix, mix.tensors[name], made, made.tensors[name])
            if steps is None:
                ulps = None  # type: ignore[assignment]
                break
            ulps, elements = max(ulps, steps[0]), elements + steps[1]
    total = len(mix.tensors)
    equal = found.total.equal
    lacking = len(found.only_in_a)
    if equal == total:
        text = f"all {total:,} tensors equal bit for bit"
    elif ulps is None:
        text = f"{equal:,} of {total:,} tensors equal bit for bit; the others are of another dtype"
    else:
        text = f"{equal:,} of {total:,} tensors equal bit for bit"
        if unequal and not elements:
            text += "; the others in value, but some of their zeros have the other sign"
        elif unequal:
            text += f"; in the others {elements:,} elements are up to {ulps:,} steps of the dtype (ulps) away"
        if lacking or found.shape_differs:
            text += f"; {lacking + len(found.shape_differs):,} are not in the merge"
    if found.only_in_b:
        text += f"; the merge has {len(found.only_in_b):,} more"
    return Proof(guess, total, equal, ulps, elements, _tools(guess), text)


def _tools(guess: Guess) -> list[str]:
    """The programs whose arithmetic the guess is."""
    wanted = (guess.method, bool(guess.parameters.get("fused")))
    forms = ((tool, form) for tool, table in TOOLS.items() for form in table.forms.values())
    found = (tool for tool, form in forms if (form.name, form.fused) == wanted and form.equal.startswith("bits"))
    return list(dict.fromkeys(found))


def _steps(a: Checkpoint, first: TensorInfo, b: Checkpoint, second: TensorInfo) -> tuple[int, int] | None:
    """How many values of the dtype lie between two tensors' elements at most, and how many elements differ."""
    import numpy as np

    size = first.dtype.itemsize
    if (
        first.dtype is not second.dtype
        or first.encoded
        or first.strides
        or second.strides
        or not first.dtype.computable
    ):
        return None
    most = count = 0
    for at in range(0, first.nbytes, _STRETCH):
        nbytes = min(_STRETCH, first.nbytes - at)
        x, y = (
            _ordered(np.frombuffer(file.files[info.file].read(info.offset + at, nbytes), f"i{size}"))
            for file, info in ((a, first), (b, second))
        )
        apart = np.abs(x - y)
        most, count = max(most, int(apart.max(initial=0))), count + int((apart != 0).sum())
    return most, count


def _ordered(codes: Any) -> Any:
    """Codes of floats as integers in the order of their values; both zeros are 0."""
    import numpy as np

    lowest = np.iinfo(codes.dtype).min
    return np.where(codes < 0, np.int64(lowest) - codes, codes.astype(np.int64))
