"""The guess made again and compared: which arithmetic gives the mix, on a sample, then the whole file."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..errors import number_of
from ..methods.registry import get
from ..methods.tools import SEPARATOR, TOOLS
from .guesses import Guess, block_text, dtype_of, option_of
from .samples import Tensor, sample

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint, TensorInfo
    from ..settings import Settings
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
_MOST_ALIKE = 8
_NEARLY = 0.9
"""Share of the tensors that a merge must give for tools to be tried that leave some of them A's."""
_STRETCH = 1 << 22


@dataclass(frozen=True)
class Proof:
    """``guess`` is the merge that was made; ``equal`` of the mix's ``tensors`` have its bits, no element of the others
    is more than ``ulps`` steps of its dtype away (None where dtypes differ, or there is none to compare). ``tools``
    compute the method so (docs/compat.md); none where something isn't equal."""

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


def proved(work: Work, guesses: Sequence[Guess], beyond: Sequence[str]) -> Proof:
    """The guess that has most of a sample's bits, made into a temporary file, compared, and removed. ``beyond``: blocks
    in which more than rounding is left."""
    proofs: list[Proof] = []
    with tempfile.TemporaryDirectory(prefix="sdsurgery-proof-") as folder:
        made = os.path.join(folder, "made.safetensors")
        likely = _likely(work, guesses)
        for guess in islice(likely, _MOST_MADE):
            _make(work, guess, made)
            proofs.append(_compared(work, guess, made))
            if proofs[-1].equal == proofs[-1].tensors:
                break
        best = max(proofs, key=_closeness)
        near = best.unequal_elements and best.equal >= _NEARLY * best.tensors
        alike = [*(proof.guess for proof in proofs), *islice(likely, _MOST_ALIKE)] if near else []
        for as_found in alike:
            for guess in _of_tools(work, as_found, beyond):
                _make(work, guess, made)
                as_it_does = _compared(work, guess, made)
                if as_it_does.equal == as_it_does.tensors:
                    return as_it_does
    return best


def _closeness(proof: Proof) -> tuple[int, int]:
    return proof.equal, -proof.unequal_elements


def _of_tools(work: Work, guess: Guess, beyond: Sequence[str]) -> Iterator[Guess]:
    """The merge as each tool makes it that computes so, where tensors of the mix are A's: some leave them so. Tensors
    that are left A's pull at the ratios of their blocks, so that these are tried with the model's ratios, too."""
    a = guess.order[0]
    if guess.via is not None or not any(each.has[a] and each.products[a, a] == 0 for each in work.tensors):
        return
    for tool, name in _tools(guess):
        words = [word for word in shlex.split(guess.command) if word != "--fused"]
        at = words.index("--method")
        words[at : at + 2] = ["--method", name, "--compat", tool]
        parameters = {own: value for own, value in guess.parameters.items() if own != "fused"}
        method = f"{tool}{SEPARATOR}{name}"
        yield replace(guess, method=method, parameters=parameters, command=shlex.join(words))
        if any(block in weights for weights in guess.blocks.values() for block in beyond):
            blocks = {
                ratio: kept for ratio, weights in guess.blocks.items()
                if (kept := {block: weight for block, weight in weights.items() if block not in beyond})
            }  # fmt: skip
            names, first = [work.short[i] for i in guess.order], guess.method == "weighted-sum.first"
            said = "; " + block_text(guess.blocks, guess.presets, names, first)
            formula = guess.formula.removesuffix(said)
            if blocks:
                formula += "; " + block_text(blocks, guess.presets, names, first)
            text = shlex.join(_without(words, beyond))
            yield replace(
                guess, method=method, parameters=parameters, blocks=blocks, command=text, formula=formula
            )  # fmt: skip


def _without(words: Sequence[str], blocks: Sequence[str]) -> Iterator[str]:
    """A command's words without the weights of some blocks."""
    rest = iter(words)
    for word in rest:
        if word != "--blocks":
            yield word
            continue
        ratio, _, weights = next(rest).partition(":")
        kept = [each for each in weights.split(",") if each.partition("=")[0] not in blocks]
        if kept:
            yield from (word, f"{ratio}:{','.join(kept)}")


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
    from .baked import dtype_for, put_in

    settings = replace(work.settings, hash=False, sync=False, overwrite=True, progress=None)
    _make_body(work, guess, path, settings)
    if work.baked:
        put_in(path, work.baked, settings, option_of(dtype_for(work.baked, work.opened[0], dtype_of(work))) or "keep")


def _make_body(work: Work, guess: Guess, path: str, settings: Settings) -> None:
    """The merge without the components that come from files of their own."""
    from .cast import cast
    from .merge import merge

    word = option_of(dtype_of(work)) or "keep"
    settings = replace(settings, dtype=word)
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
            text += f"; in the others {number_of(elements, 'element')} {'is' if elements == 1 else 'are'} up to "
            text += f"{number_of(ulps, 'step')} of the dtype (ulps) away"
        if lacking or found.shape_differs:
            absent = lacking + len(found.shape_differs)
            text += f"; {absent:,} {'is' if absent == 1 else 'are'} not in the merge"
    if found.only_in_b:
        text += f"; the merge has {len(found.only_in_b):,} more"
        command = _pruned(work, guess, found.only_in_b)
        if command:
            text += ", which prune drops"
            guess = replace(guess, command=command)
    tools = [tool for tool, _ in _tools(guess)] if ulps == 0 else []
    return Proof(guess, total, equal, ulps, elements, tools, text)


def _pruned(work: Work, guess: Guess, more: Iterable[str]) -> str:
    """The guess's command with a further step, which drops the components that the mix lacks; empty where it lacks
    only some tensors of a component, or what prune can't drop."""
    from .prune import DROPPABLE

    dropped = {work.layout.component(name) for name in more}
    if not dropped <= set(DROPPABLE) - {work.layout.component(name) for name in work.opened[0].tensors}:
        return ""
    made, _, last = guess.command.rpartition(" && ")
    if not made:
        made, last = f"{last.removesuffix('OUT.safetensors')}MERGED.safetensors", "cast MERGED.safetensors"
    words = [word for word in shlex.split(last) if word not in ("sdsurgery", "cast")]
    words = words[: words.index("-o")] if "-o" in words else words
    drop = ["--drop", ",".join(sorted(dropped)), "-o", "OUT.safetensors"]
    return f"{made} && {shlex.join(['sdsurgery', 'prune', *words, *drop])}"


def _tools(guess: Guess) -> list[tuple[str, str]]:
    """The programs whose arithmetic the guess is, and what they call the method."""
    tool, separator, name = guess.method.partition(SEPARATOR)
    if separator:
        return [(tool, name)]
    if guess.method == "add-diff" and "weights" in guess.parameters:
        return []  # no tool's form of the method
    wanted = (guess.method, bool(guess.parameters.get("fused")))
    forms = ((tool, name, form) for tool, table in TOOLS.items() for name, form in table.forms.items())
    found = {
        tool: name for tool, name, form in forms
        if (form.name, form.fused) == wanted and form.equal.startswith("bits")
    }  # fmt: skip
    return list(found.items())


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
