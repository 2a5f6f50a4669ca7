"""Follows a pickle as the unpickler would, whatever opcodes it has, and says what loading it calls. Nothing is run.

``pickle_machine`` reads what ``torch.save`` writes and refuses the rest. This one is for ``scan``: it knows every
opcode of the protocols 0 to 5 as CPython's unpickler executes them (``Modules/_pickle.c``, ``Lib/pickle.py``), keeps
the stack and the memo, and asks ``pickle_calls`` about every call. Where CPython would stop with an error, it stops
too; where it can't know a value, it goes on with an unknown one, so that it never misses a call that CPython makes.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from functools import partial
from struct import Struct
from typing import Any

from .pickle_calls import may_be_text
from .pickle_followed import UNKNOWN, Blob, LongText, Made, Name, Pairs
from .pickle_graph import MAX_OPCODES
from .pickle_judgement import MAX_NAMES, Judgement
from .pickle_machine import REFUSED
from .pickle_names import dangerous, modern_name, original_name
from .pickle_stream import MAX_ESCAPED, Bytes, Stopped, Stream

TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # what the first pickle of torch's legacy stream holds
MAX_KEPT = 1024  # bytes of a text that is kept, as names and keys need it
MAX_TEXT_TOTAL = 24 << 20
MAX_CONTAINERS = 1_000_000
FEW = 6  # opcodes of a pickle without a mark of its own that may be a coincidence
_OCTAL = re.compile(rb"\s*[+-]?0[0-7]+\s*")
_DICTS = frozenset(("collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict"))
_NO_DICTS = ("numpy.", "torch._utils._rebuild", "torch._tensor._rebuild")  # what these make is never a dict


class Pickle(Stream, Judgement):
    """One pickle, followed from ``start`` to its end.

    ``ended``: STOP was reached; ``stopped``: why it was not; ``end``: the byte behind; ``opcodes``: how many there
    were. ``value``: what it makes.
    """

    def __init__(self, source: Bytes, start: int = 0, max_opcodes: int = MAX_OPCODES) -> None:
        Stream.__init__(self, source, start)
        Judgement.__init__(self)
        self.rare: set[int] = set()  # those of its opcodes that torch.save never writes
        self.opcodes = self.protocol = 0
        self.ended = False
        self.stopped = ""
        self.value: Any = None
        self._allowed = max_opcodes
        self._text, self._containers = MAX_TEXT_TOTAL, MAX_CONTAINERS
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._run()
        self.doubt_methods()
        if self.crossed:
            self.odd["an argument crosses the end of its frame, which loaders read differently"] = None
        self.end = self._base + self._at
        self._stack, self._below, self._memo = [], [], {}

    @property
    def is_text(self) -> bool:
        """Whether these bytes, which need not begin as a pickle does, look like one and not only begin like one."""
        whole = self.end == self.source.size or self.opcodes >= FEW or bool(self.names) or self.value == TORCH_MAGIC
        return bool(self.harms or self.unjudged) or (self.ended and whole)

    def _run(self) -> None:
        try:
            self._loop()
        except Stopped as error:
            self.stopped = str(error)
        except IndexError:
            self.stopped = "takes from an empty stack"
        except KeyError:
            self.stopped = "asks the memo for a value that was never put there"
        except (ValueError, OverflowError):  # UnicodeDecodeError among them
            self.stopped = "holds a damaged number or text"

    def _loop(self) -> None:
        actions = [getattr(self, _OPCODES[code]) if code in _OPCODES else self._no_opcode for code in range(256)]
        for code in REFUSED:
            actions[code] = partial(self._rare, actions[code])
        while self.opcodes < self._allowed:
            self.opcodes += 1
            at = self._at
            if at >= len(self._data):
                self._fill(1)
                at = 0
            opcode = self._data[at]
            self._at = at + 1
            if opcode == 0x2E:
                self.value = self._stack.pop()
                self.ended = True
                return
            actions[opcode](opcode)
        self.exhausted = True
        self.stopped = "too long to follow to the end"

    def _no_opcode(self, opcode: int) -> None:
        raise Stopped(f"0x{opcode:02x} is not an opcode")

    def _rare(self, action: Callable[[int], None], opcode: int) -> None:
        self.rare.add(opcode)
        action(opcode)

    def _keep(self, text: str) -> None:
        self._text -= len(text)
        self._stack.append(text if len(text) <= MAX_KEPT and self._text >= 0 else UNKNOWN)

    def _room(self) -> None:
        self._containers -= 1
        if self._containers < 0:
            self.exhausted = True
            raise Stopped("too long to follow to the end")

    # --- constants ---------------------------------------------------------------------------------------------------

    def _constant(self, opcode: int) -> None:
        self._stack.append(_CONSTANTS[opcode])

    def _number(self, opcode: int) -> None:
        code = _NUMBERS[opcode]
        self._stack.append(code.unpack(self._take(code.size))[0])

    def _long(self, opcode: int) -> None:
        length = self._length(_U8 if opcode == 0x8A else _I32)
        if length <= MAX_KEPT:
            self._stack.append(int.from_bytes(self._take(length), "little", signed=True))
        else:
            self._skip(length)
            self._stack.append(UNKNOWN)

    def _int_line(self, opcode: int) -> None:
        """INT and LONG, of any base, as C's strtol and Python's int() read them."""
        line = self._line()
        if opcode == 0x49 and line in (b"00", b"01"):
            self._stack.append(line == b"01")
            return
        if b"\0" in line:  # where the text ends for C, and not for Python
            self._stack.append(UNKNOWN)
            return
        text = line.rstrip(b"L") if opcode == 0x4C else line
        self._stack.append(int(text, 8) if _OCTAL.fullmatch(text) else int(text, 0))

    def _float_line(self, opcode: int) -> None:
        line = self._line()
        self._stack.append(UNKNOWN if b"\0" in line else float(line))

    def _string_line(self, opcode: int) -> None:
        line = self._line()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise Stopped("a string without quotes")
        raw: bytes = codecs.escape_decode(line[1:-1])[0]  # type: ignore[attr-defined]
        self._keep(raw.decode("latin-1"))

    def _unicode_line(self, opcode: int) -> None:
        text = codecs.raw_unicode_escape_decode(self._line())[0]
        if MAX_KEPT < len(text) < MAX_ESCAPED and len(text) < self._text:
            self._text -= len(text)
            self._stack.append(LongText(0, 0, text))
        else:
            self._keep(text)

    def _counted_text(self, opcode: int) -> None:
        length = self._length(_COUNTED[opcode])
        if length > MAX_KEPT:
            offset = self._skip(length)
            self._stack.append(UNKNOWN if opcode in _STRINGS else LongText(offset, length))
        elif opcode in _STRINGS:
            self._keep(self._take(length).decode("latin-1"))
        else:
            self._keep(self._take(length).decode("utf-8", "surrogatepass"))

    def _bytes(self, opcode: int) -> None:
        length = self._length(_COUNTED[opcode])
        self._stack.append(Blob(self._skip(length), length))

    def _buffer(self, opcode: int) -> None:
        if opcode == 0x97:
            self._stack.append(UNKNOWN)  # which the loader must have been given
        else:
            self._stack[-1]

    def _proto(self, opcode: int) -> None:
        self.protocol = self._take(1)[0]
        if self.protocol > 5:
            raise Stopped(f"of the unknown protocol {self.protocol}")

    def _frame(self, opcode: int) -> None:
        begin = self._base + self._at - 1
        length = int.from_bytes(self._take(8), "little")
        self._check_frame(begin, self.frame_end + 1)
        self.frame_end = begin + 9 + length

    # --- stack, memo, containers -------------------------------------------------------------------------------------

    def _mark(self, opcode: int) -> None:
        self._room()
        self._below.append(self._stack)
        self._stack = []

    def _pop_mark(self, opcode: int = 0) -> list[Any]:
        if not self._below:
            raise Stopped("takes back a mark that was never set")
        items, self._stack = self._stack, self._below.pop()
        return items

    def _pop(self, opcode: int) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _dup(self, opcode: int) -> None:
        self._stack.append(self._stack[-1])

    def _get(self, opcode: int) -> None:
        self._stack.append(self._memo[self._take(1)[0]])

    def _index(self) -> int:
        return int(self._line().partition(b"\0")[0] or b"0")

    def _get_far(self, opcode: int) -> None:
        index = self._index() if opcode == 0x67 else int.from_bytes(self._take(4), "little")
        self._stack.append(self._memo[index])

    def _memoize(self, opcode: int) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _put(self, opcode: int) -> None:
        self._memo[self._take(1)[0]] = self._stack[-1]

    def _put_far(self, opcode: int) -> None:
        index = self._index() if opcode == 0x70 else int.from_bytes(self._take(4), "little")
        if index < 0:
            raise Stopped("a memo entry of negative number")
        self._memo[index] = self._stack[-1]

    def _new(self, opcode: int) -> None:
        self._room()
        self._stack.append([] if opcode == 0x5D else Pairs() if opcode == 0x7D else set())

    def _filled(self, opcode: int) -> None:
        """LIST, DICT, FROZENSET: from what lies above the mark."""
        items = self._pop_mark()
        if opcode == 0x6C:
            self._stack.append(items)
        elif opcode == 0x64:
            made = Pairs()
            self._set(made, items)
            self._stack.append(made)
        else:
            self._stack.append(set())

    def _tuple(self, opcode: int) -> None:
        self._room()
        if opcode == 0x74:
            marked = tuple(self._pop_mark())
            self._stack.append(marked)
            return
        count = opcode - 0x84
        if len(self._stack) < count:
            raise Stopped("takes from an empty stack")
        items = tuple(self._stack[-count:])
        del self._stack[-count:]
        self._stack.append(items)

    def _append(self, opcode: int) -> None:
        """APPEND, APPENDS, ADDITEMS."""
        items = [self._stack.pop()] if opcode == 0x61 else self._pop_mark()
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Name):
            self.doubt(f"changes {target.label}")
        elif items and not isinstance(target, Made | set | Blob):
            raise Stopped("adds items to a value that takes none")

    def _setitem(self, opcode: int) -> None:
        """SETITEM, SETITEMS."""
        if opcode == 0x73:
            value, key = self._stack.pop(), self._stack.pop()
            items = [key, value]
        else:
            items = self._pop_mark()
        target = self._stack[-1]
        if isinstance(target, Pairs | list):
            self._set(target, items)
        elif isinstance(target, Name):
            self.doubt(f"changes {target.label}")
        elif isinstance(target, Made):
            if target.label not in _DICTS:  # a class may give its items as attributes
                self.hooks(target.label, self.oddity(items))
            else:
                target.blank = target.blank and not self.oddity(items)
                self.keep_methods(items)
        elif items and not isinstance(target, Blob):
            raise Stopped("sets items of a value that has none")

    def _set(self, target: Pairs | list[Any], items: list[Any]) -> None:
        if isinstance(target, Pairs):
            target.odd = target.odd or self.oddity(items)
            self.keep_methods(items)

    # --- names and calls ---------------------------------------------------------------------------------------------

    def _name(self, module: str, name: str) -> None:
        parts = (*module.split("."), *name.split("."))
        if not all(part.isidentifier() for part in parts):
            raise Stopped("names what cannot be the name of a class or function")
        label = modern_name(module, name) if self.protocol < 3 else original_name(module, name)
        if label in self.names or len(self.names) < MAX_NAMES:
            self.names[label] = self.names.get(label, 0) + 1
        else:
            self.doubt(f"names more than {MAX_NAMES} classes and functions")
            if dangerous(label):
                self.names[label] = 1
        self._stack.append(Name(label, "." not in name))

    def _global(self, opcode: int) -> None:
        module = self._line().decode("utf-8")
        self._name(module, self._line().decode("utf-8"))

    def _stack_global(self, opcode: int) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if isinstance(name, str) and isinstance(module, str):
            self._name(module, name)
        elif all(isinstance(each, str) or may_be_text(each) for each in (name, module)):
            self.odd["names a class by a text that cannot be known here"] = None
            self._stack.append(UNKNOWN)
        else:
            raise Stopped("names a class by something that is not a text")

    def _extension(self, opcode: int) -> None:
        number = int.from_bytes(self._take({0x82: 1, 0x83: 2, 0x84: 4}[opcode]), "little")
        if len(self.odd) < MAX_NAMES:
            self.odd[f"takes the class of extension {number}, which only the loading program knows"] = None
        self._stack.append(UNKNOWN)

    def _persistent(self, opcode: int) -> None:
        if opcode == 0x50:
            self._line().decode("ascii")
            self.odd["a persistent id as text"] = None
            self._stack.append(UNKNOWN)
            return
        parts = self._stack.pop()
        made: Any = UNKNOWN
        if isinstance(parts, tuple) and len(parts) > 2:
            if parts[0] == "module":
                made = parts[1]
            elif parts[0] == "storage" and isinstance(parts[1], Name) and isinstance(parts[2], str | int):
                self.storages.setdefault(str(parts[2]), parts[1].label)
        self._stack.append(made)

    def _reduce(self, opcode: int) -> None:
        args = self._stack.pop()
        self._stack[-1] = self.call(self._stack[-1], args)

    def _newobj(self, opcode: int) -> None:
        keywords = self._stack.pop() if opcode == 0x92 else None
        args = self._stack.pop()
        if opcode == 0x92 and not isinstance(keywords, Pairs | Made):
            raise Stopped("a call whose keywords are not a dict")
        self._stack[-1] = self.call(self._stack[-1], args)
        if isinstance(keywords, Pairs):
            self.hooks("a new object", keywords.odd)

    def _inst(self, opcode: int) -> None:
        args = self._pop_mark()
        self._global(opcode)
        self._stack[-1] = self.call(self._stack[-1], tuple(args))

    def _obj(self, opcode: int) -> None:
        args = self._pop_mark()
        if not args:
            raise Stopped("takes from an empty stack")
        self._stack.append(self.call(args[0], tuple(args[1:])))

    def _build(self, opcode: int) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Name):
            self.doubt(f"sets attributes of {target.label}")
        elif isinstance(target, Made):
            for part in state if isinstance(state, tuple) else (state,):
                if isinstance(part, Pairs):
                    self.hooks(target.label, part.odd)
                elif isinstance(part, Made) and not part.blank and not part.label.startswith(_NO_DICTS):
                    self.doubt(f"sets attributes of {target.label or 'an object'} whose names are not known")
        # Of other values an empty state is taken, and any other ends the loading.


_U8, _U16, _U32, _U64 = map(Struct, ("<B", "<H", "<I", "<Q"))
_I32, _F64 = Struct("<i"), Struct(">d")
_NUMBERS = {0x4B: _U8, 0x4D: _U16, 0x4A: _I32, 0x47: _F64}
_COUNTED = {
    0x54: _I32, 0x55: _U8, 0x58: _U32, 0x8C: _U8, 0x8D: _U64,
    0x42: _U32, 0x43: _U8, 0x8E: _U64, 0x96: _U64,
}  # fmt: skip
_STRINGS = frozenset((0x54, 0x55))  # of Python 2
_CONSTANTS = {0x4E: None, 0x88: True, 0x89: False, 0x29: ()}


def _table() -> dict[int, str]:
    rows = {
        "_constant": (0x4E, 0x88, 0x89, 0x29),
        "_number": tuple(_NUMBERS),
        "_long": (0x8A, 0x8B),
        "_int_line": (0x49, 0x4C),
        "_float_line": (0x46,),
        "_string_line": (0x53,),
        "_unicode_line": (0x56,),
        "_counted_text": (0x54, 0x55, 0x58, 0x8C, 0x8D),
        "_bytes": (0x42, 0x43, 0x8E, 0x96),
        "_buffer": (0x97, 0x98),
        "_proto": (0x80,),
        "_frame": (0x95,),
        "_mark": (0x28,),
        "_pop_mark": (0x31,),
        "_pop": (0x30,),
        "_dup": (0x32,),
        "_get": (0x68,),
        "_get_far": (0x67, 0x6A),
        "_memoize": (0x94,),
        "_put": (0x71,),
        "_put_far": (0x70, 0x72),
        "_new": (0x5D, 0x7D, 0x8F),
        "_filled": (0x6C, 0x64, 0x91),
        "_tuple": (0x74, 0x85, 0x86, 0x87),
        "_append": (0x61, 0x65, 0x90),
        "_setitem": (0x73, 0x75),
        "_global": (0x63,),
        "_stack_global": (0x93,),
        "_extension": (0x82, 0x83, 0x84),
        "_persistent": (0x50, 0x51),
        "_reduce": (0x52,),
        "_newobj": (0x81, 0x92),
        "_inst": (0x69,),
        "_obj": (0x6F,),
        "_build": (0x62,),
    }
    return {code: name for name, codes in rows.items() for code in codes}


_OPCODES = _table()
