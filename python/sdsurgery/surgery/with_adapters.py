"""Adapters in merges: what they change of the inputs and of the result, put into the pieces of an outline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..adapters.lora import RESULT, Lora, Placed
from ..checkpoint import Checkpoint, TensorInfo
from ..errors import InputRefused, printable
from ..layouts import Layout
from ..outline import BAKED, MERGED, Piece
from ..settings import Settings

if TYPE_CHECKING:  # a merge without adapters does not load what reads and applies them
    from ..adapters.apply import Change
    from ..adapters.read import Adapter
    from .bake import AdapterReport


class Adapters:
    """The opened adapters of a merge; close them."""

    def __init__(self, loras: Placed, settings: Settings) -> None:
        self.used: list[tuple[int, Lora, Adapter]] = []
        self.reports: list[AdapterReport] = []
        if not loras:
            return
        from ..adapters.read import open_adapter

        try:
            for place, given in loras.items():
                for lora in given:
                    self.used.append((place, lora, open_adapter(lora.path, **settings.opening)))
        except BaseException:
            self.close()
            raise

    def at(self, loras: Placed) -> Adapters:
        """The same opened adapters at other strengths."""
        other = copy(self)
        wanted = [(place, lora) for place, given in loras.items() for lora in given]
        other.used = [(*each, adapter) for each, (_, _, adapter) in zip(wanted, self.used, strict=True)]
        return other

    def close(self) -> None:
        for _, _, adapter in self.used:
            adapter.close()

    def places(self) -> frozenset[int]:
        """The inputs that adapters change."""
        return frozenset(place for place, _, _ in self.used)

    def checkpoints(self) -> list[Checkpoint]:
        """The adapters' files, in the order of the outline's inputs after the merged ones."""
        return [adapter.checkpoint for _, _, adapter in self.used]

    def recipe(self) -> dict[str, Any]:
        """What the output's recipe says of them: those of the result, and of inputs by letter."""
        from .preflight import letter

        found: dict[str, Any] = {}
        for place, lora, _ in self.used:
            key = "result" if place == RESULT else letter(place)
            found.setdefault(key, []).append(lora.to_json(lora.name))
        return {"loras": found} if found else {}

    def applied(
        self, pieces: Sequence[Piece], tensors: Sequence[Mapping[str, TensorInfo]], layout: Layout, path: str
    ) -> tuple[list[Piece], list[str]]:
        """The pieces with what the adapters change, and notes. ``tensors`` are the inputs', under A's names; ``path``
        is A's. InputRefused as ``adapters.apply.effects``."""
        self.reports = []
        if not self.used:
            return list(pieces), []
        from .bake import applied, by_tensor, described, notes_of

        effects: dict[int, list[Any]] = {}
        notes = []
        for number, (place, lora, adapter) in enumerate(self.used, len(tensors)):
            found = applied(adapter, number, tensors[max(place, 0)], layout, lora=lora, path=path)
            effects.setdefault(place, []).append(found)
            self.reports.append(described(lora, adapter, found))
            notes += [self.reports[-1].line(), *notes_of(lora, adapter, found)]
        changes = {place: by_tensor(found) for place, found in effects.items()}
        return [_adapted(piece, changes) for piece in pieces], notes

    def described(self) -> list[dict[str, Any]]:
        """Their part of the report."""
        return [asdict(report) for report in self.reports]


def _adapted(piece: Piece, changes: Mapping[int, Mapping[str, Sequence[Change]]]) -> Piece:
    operands = piece.segments[0].operands if piece.segments else ()
    wanted = [
        (place, change)
        for place, region in enumerate(operands)
        for change in changes.get(region.source, {}).get(piece.name, ())
    ]
    wanted += [(RESULT, change) for change in changes.get(RESULT, {}).get(piece.name, ())]
    if not wanted:
        return piece
    if len(piece.segments) > 1:
        raise InputRefused(
            f"tensor '{printable(piece.name)}' is merged in part (its inputs have different numbers of channels), and "
            "an adapter changes it; bake the adapter into its model first",
            code="unusable_tensor",
            tensor=piece.name,
        )
    from .bake import changed

    made = changed(piece, wanted)
    return made._replace(action=piece.action if piece.action == MERGED else BAKED)
