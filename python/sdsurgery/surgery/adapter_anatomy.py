"""What an adapter consists of: kinds, dialects, ranks and alphas, modules, facts of its training, and how strong its
layers are beside a base model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..adapters import keys, names, writing
from ..adapters.arrays import array, values
from ..adapters.facts import training_facts
from ..adapters.lora import Lora
from ..adapters.read import Adapter, counted, summary
from ..checkpoint import Checkpoint, open_checkpoint
from ..encodings import decode
from ..errors import printable
from ..layouts import detect
from .bake import applied

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..settings import Reading


@dataclass
class Anatomy:
    """``ranks`` and ``alphas``: number of modules by value (text for no alpha). ``strengths``: ‖W₁ − W‖/‖W‖ by the base
    model's tensor, empty without a base. ``decomposed`` and ``rescaled``: modules of DoRA and of rs-LoRA.
    ``embeddings``: those that are bundled with it."""

    path: str
    base: str
    kinds: dict[str, int]
    dialects: dict[str, int]
    components: dict[str, int]
    ranks: dict[str, int]
    alphas: dict[str, int]
    decomposed: int
    embeddings: list[str]
    training: dict[str, Any]
    rescaled: int = 0
    strengths: dict[str, float] = field(default_factory=dict)

    def lines(self, verbose: bool = False) -> list[str]:
        """As text."""
        lines = [
            f"adapter: {summary(self.kinds, self.dialects, self.base)}",
            f"modules: {', '.join(f'{name} {count}' for name, count in self.components.items())}"
            + (f"; DoRA: {self.decomposed}" if self.decomposed else ""),
        ]
        if self.ranks:
            over = f", divided by √rank (rs-LoRA {self.rescaled})" if self.rescaled else ""
            lines.append(f"rank: {_spread(self.ranks)}; alpha: {_spread(self.alphas)}{over}")
        if self.embeddings:
            lines.append(f"bundled embeddings: {', '.join(map(printable, self.embeddings))}")
        for name, value in self.training.items():
            text = ", ".join(value) if isinstance(value, list) else str(value)
            lines.append(f"{name.replace('_', ' ')}: {printable(text, 400)}")
        return lines + list(self._strong(verbose))

    def _strong(self, verbose: bool) -> Iterator[str]:
        if not self.strengths:
            return
        order = sorted(self.strengths, key=lambda name: -self.strengths[name])
        shown = order if verbose else order[:3]
        for name in shown:
            yield f"strength {100 * self.strengths[name]:8.3f} %  {printable(name)}"
        if len(shown) < len(order):
            median = sorted(self.strengths.values())[len(order) // 2]
            yield f"strength {100 * median:8.3f} %  the median of {len(order)} tensors"


def _spread(counts: dict[str, int]) -> str:
    values = list(counts)
    if len(values) > 4:
        return f"{values[0]} to {values[-1]} ({len(values)} values)"
    return counted(counts)


def anatomy(adapter: Adapter, base: str | os.PathLike[str] | None = None, **opening: Unpack[Reading]) -> Anatomy:
    """What an adapter consists of. InputRefused for a ``base`` of another family."""
    found = _of(adapter)
    if base is not None:
        with open_checkpoint(base, **opening) as checkpoint:
            decode(checkpoint)
            found.strengths = _strengths(adapter, checkpoint)
    return found


def _of(adapter: Adapter) -> Anatomy:
    components: dict[str, int] = {}
    ranks: dict[float, int] = {}
    alphas: dict[float | None, int] = {}
    decomposed = rescaled = 0
    layout = writing.layout_of(adapter.base)
    for module, parts in adapter.modules.items():
        places = names.find(layout, module) if layout else ()
        _count(components, places[0].component if places else names.component_of(module) or "unknown")
        decomposed += any(part.startswith("magnitude") for part in parts)
        rescaled += keys.ALPHA not in parts and adapter.peft.is_rescaled(module)
        rank = adapter.rank(module)
        if rank is not None:
            _count(ranks, rank)
            _count(alphas, adapter.alpha(module))
    known = {f"{value:g}": alphas[value] for value in sorted(each for each in alphas if each is not None)}
    if None in alphas:
        known["none"] = alphas[None]
    embeddings = sorted({name.split(".")[1] for name in adapter.bundled if name.count(".") > 1})
    return Anatomy(
        adapter.path, adapter.base, adapter.kinds(), adapter.dialects(), components,
        {str(rank): ranks[rank] for rank in sorted(ranks)}, known, decomposed, embeddings,
        training_facts(adapter.checkpoint.metadata()), rescaled,
    )  # fmt: skip


def _count(counts: dict[Any, int], key: Any) -> None:
    counts[key] = counts.get(key, 0) + 1


def _strengths(adapter: Adapter, checkpoint: Checkpoint) -> dict[str, float]:
    """How much each tensor of the base changes at strength 1, beside its own Frobenius norm."""
    import numpy as np

    from ..definitions.effects import changed

    layout = detect(checkpoint.tensors).layout
    found = applied(adapter, 0, checkpoint.tensors, layout, lora=Lora(adapter.path), path=checkpoint.path)
    strengths = {}
    for name, changes in found.changes.items():
        weight = array(checkpoint, checkpoint.tensors[name]).astype(np.float32)
        flat = weight.reshape(len(weight), -1) if weight.ndim else weight.reshape(1, 1)
        total = 0.0
        for change in changes:
            parts = [values(adapter.checkpoint, *factor) for factor in change.factors]
            factors = {part: parts[at].reshape(shape) for part, at, shape in change.module.factors}
            rows = flat[change.first : change.first + change.count]
            after = changed(change.module, factors, rows)
            total += float(np.sum((after.astype(np.float64) - rows) ** 2))
        norm = float(np.sqrt(np.sum(flat.astype(np.float64) ** 2)))
        strengths[name] = float(np.sqrt(total)) / norm if norm else float("inf")
    return strengths
