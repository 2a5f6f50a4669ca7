"""What the two torch containers share: running the machine over their pickles, and the refusal of dangerous ones."""

from __future__ import annotations

from ..errors import InputRefused, printable
from .pickle_graph import MAX_OPCODES, Graph
from .pickle_machine import Machine
from .pickle_names import dangerous_names
from .torch_values import TABLE, persistent


def parse(data: bytes | bytearray, start: int = 0, max_opcodes: int = MAX_OPCODES) -> tuple[Graph, int]:
    """The graph of the pickle at ``start``, and the position behind it. Raises InputRefused."""
    machine = Machine(data, start, TABLE, persistent, max_opcodes)
    return machine.run(), machine.pos


def refuse_dangerous(graph: Graph) -> None:
    """Refuse a pickle that would have run something, with the names. The tensors would be just as safe to read here."""
    names = dangerous_names(graph.globals)
    if not names:
        return
    listed = ", ".join(printable(name, 60) for name in names[:6]) + (
        f" and {len(names) - 6} more" if len(names) > 6 else ""
    )
    raise InputRefused(
        f"suspicious: torch.load could have run {listed}. Nothing was run here; "
        "allow_suspicious=True reads the tensors anyway",
        code="suspicious",
    )
