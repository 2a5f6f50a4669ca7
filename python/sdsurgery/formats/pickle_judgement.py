"""What a pickle names, calls and sets, and whether that is known to be harmless."""

from __future__ import annotations

from typing import Any

from .pickle_calls import PLAIN_OBJECTS, may_be_called, objection, result
from .pickle_followed import UNKNOWN, Blob, LongText, Made, Name
from .pickle_names import dangerous
from .pickle_stream import Stopped

MAX_NAMES = 1000  # different names that are listed
_TYPES = (dict, list, set, str, bytes, int, float)
_OF_TENSORS = ("detach", "requires_grad_", "to", "clone", "set_")
_DELEGATES = ("state", "defaults", "param_groups", "data")  # of optimizers and UserList, which call their methods
_HOOKS = frozenset((*_OF_TENSORS, "default_factory")).union(
    *([name for name in dir(each) if name[0] != "_"] for each in _TYPES)
)
"""Methods that the unpickler, or what it calls, looks up on an object: an attribute of that name is called."""


class Judgement:
    """``names``: what a pickle names, with the number of times. ``calls``: what loading it calls, likewise.
    ``odd``: what loaders read differently, in words. ``unjudged``: calls that are not known to be harmless, in words.
    ``nested``: files that it hands to torch.load, as bytes or as text that stands for bytes. ``storages``: the
    persistent ids of torch, key to storage class.
    """

    def __init__(self) -> None:
        self.odd: dict[str, None] = {}
        self.names: dict[str, int] = {}
        self.excused: dict[str, int] = {}  # times that a dangerous name was used in a way known to be harmless
        self.calls: dict[str, int] = {}
        self.unjudged: dict[str, None] = {}
        self.storages: dict[str, str] = {}
        self.methods: dict[str, None] = {}
        self.nested: list[Blob | LongText | str] = []

    @property
    def harms(self) -> list[str]:
        """The dangerous ones of ``names``."""
        return [name for name, count in self.names.items() if dangerous(name) and count > self.excused.get(name, 0)]

    def call(self, function: Any, args: Any) -> Any:
        """What the unpickler calls: counted and judged. Gives what the call makes."""
        if isinstance(function, Made):
            if function.label in PLAIN_OBJECTS:
                raise Stopped("calls what cannot be called")
            self.doubt(f"calls the result of {function.label}" if function.label else "calls an unknown value")
            return UNKNOWN
        if not isinstance(function, Name):
            raise Stopped("calls what cannot be called")
        if args is None or isinstance(args, int | float):  # Python's own unpickler takes what can be iterated over
            raise Stopped("a call whose arguments are not a tuple")
        label = function.label
        known = tuple(args) if isinstance(args, tuple | list) else None
        self.calls[label] = self.calls.get(label, 0) + 1
        against = objection(self, function, known)
        if against:
            self.doubt(against)
        made = result(function, known)
        return (
            Made(made.label if isinstance(made, Name) else label, known == ())
            if made is None or isinstance(made, Name)
            else made
        )

    def include(self, other: Judgement) -> None:
        """Add what another pickle of the same source does."""
        for own, more in ((self.names, other.names), (self.excused, other.excused), (self.calls, other.calls)):
            for label, count in more.items():
                own[label] = own.get(label, 0) + count
        self._include_findings(other)

    def join(self, other: Judgement) -> None:
        """Add what the same bytes do when another loader reads them: what both readings name counts once."""
        for label in {**self.names, **other.names}:
            counts = [(each.names.get(label, 0), each.excused.get(label, 0)) for each in (self, other)]
            self.names[label] = max(named for named, _ in counts)
            self.excused[label] = self.names[label] - max(named - excused for named, excused in counts)
        for label, count in other.calls.items():
            self.calls[label] = max(count, self.calls.get(label, 0))
        self._include_findings(other)

    def _include_findings(self, other: Judgement) -> None:
        self.unjudged |= other.unjudged
        self.odd |= other.odd
        self.storages |= other.storages
        self.nested += other.nested

    def add_nested(self, data: Any) -> bool:
        """A file inside, given as bytes; whether it can be found there."""
        if isinstance(data, Blob | LongText | str):
            self.nested.append(data)
            return True
        return False

    def excuse(self, label: str) -> None:
        """A dangerous name was used in a way that does no harm."""
        self.excused[label] = self.excused.get(label, 0) + 1

    def oddity(self, items: list[Any]) -> str:
        """Why items set as attributes could be called by the unpickler: '' when they could not."""
        for key, value in zip(items[::2], items[1::2], strict=False):
            if isinstance(key, Made):
                return "an attribute whose name is not known"
            if isinstance(key, str) and (
                (key.startswith("__") and key.endswith("__"))
                or (key in _HOOKS and may_be_called(value))
                or (key in _DELEGATES and isinstance(value, Name))
            ):
                return f"the attribute {key}"
        return ""

    def keep_methods(self, items: list[Any]) -> None:
        """Remember the items of a dict that would be methods if a module of torch had the dict for its buffers."""
        for key, value in zip(items[::2], items[1::2], strict=False):
            if isinstance(key, str) and key in _HOOKS and may_be_called(value):
                self.methods[key] = None

    def doubt_methods(self) -> None:
        """Modules of torch give what their dicts hold as attributes."""
        if self.methods and any(label.startswith("torch.nn.modules.") for label in self.calls):
            self.doubt(f"a dict gives a module of torch the method {next(iter(self.methods))}")

    def hooks(self, label: str, odd: str) -> None:
        if odd:
            self.doubt(f"sets {odd} of {label or 'an object'}")

    def doubt(self, what: str) -> None:
        if len(self.unjudged) < MAX_NAMES:
            self.unjudged[what] = None
