"""The pickle machine: turns the bytes of a pickle into a graph of plain values, and never runs anything.

The real unpickler is a program interpreter: ``GLOBAL`` imports, ``REDUCE`` calls. This machine has the same stack,
marks and memo, but ``GLOBAL`` only makes a label (a text), and ``REDUCE``, ``NEWOBJ``, ``BUILD`` and ``BINPERSID`` act
on the closed table that the caller passes in (``torch_values.TABLE``). Whatever is not in the table becomes an opaque
value that keeps its name and arguments for listing. No name from the file is ever imported or looked up.

Values live in an arena (``pickle_graph.Graph``).

Accepted are the opcodes that ``torch.save`` emits under the protocols 2 to 5. All limits are checked before allocating.
The opcodes are those of CPython's ``pickletools``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from struct import Struct
from typing import Any, NoReturn

from ..errors import InputRefused
from .pickle_graph import (
    BYTES,
    DICT,
    EMPTY_TUPLE_NODE,
    FALSE_NODE,
    FLOAT,
    GLOBAL,
    LIST,
    MAX_BYTES,
    MAX_GLOBAL,
    MAX_MARKS,
    MAX_MEMO,
    MAX_OPCODES,
    MAX_PICKLE,
    MAX_TEXT,
    NONE_NODE,
    OMITTED,
    OPAQUE,
    SET,
    TENSOR,
    TEXT,
    TRUE_NODE,
    TUPLE,
    Graph,
    Handler,
    TruncatedPickle,
)


class Machine:
    """One run over one pickle. ``run()`` gives the graph; afterwards ``pos`` is the byte behind the pickle's end."""

    def __init__(
        self,
        data: bytes | bytearray,
        start: int,
        table: Mapping[str, Handler],
        persistent: Callable[[Graph, int], int],
        max_opcodes: int = MAX_OPCODES,
    ) -> None:
        self.data = data
        self.start = self.pos = start
        self.end = len(data)
        self.table = table
        self.persistent = persistent
        self.max_opcodes = max_opcodes
        self.graph = Graph()
        self.stack: list[int] = []
        self.below: list[list[int]] = []  # the stacks under each mark
        self.memo: dict[int, int] = {}

    def run(self) -> Graph:
        """Interpret up to STOP. Raises InputRefused (TruncatedPickle when bytes are missing), nothing else."""
        data = self.data
        if len(data) - self.start < 2:
            raise TruncatedPickle("pickle: cut off before its first opcode")
        if data[self.start] != 0x80 or not 2 <= data[self.start + 1] <= 5:
            found = f"protocol {data[self.start + 1]}" if data[self.start] == 0x80 else "protocol 0 or 1"
            raise InputRefused(
                f"pickle: of {found}, not of those that torch.save writes (2 to 5); save it again with torch.save"
            )
        self.pos += 2
        actions: list[Callable[[], None] | None] = [None] * 256
        for opcode, (name, *argument) in _ACCEPTED.items():
            method = getattr(self, name)
            actions[opcode] = partial(method, *argument) if argument else method
        try:
            for _ in range(self.max_opcodes):
                opcode = data[self.pos]
                self.pos += 1
                if opcode == 0x2E:
                    return self._stop()
                action = actions[opcode]
                if action is None:
                    self._refuse_opcode(opcode)
                action()
        except IndexError:
            if self.pos >= len(data):
                raise TruncatedPickle(f"pickle: cut off at byte {len(data) - self.start}") from None
            self._refuse("takes from an empty stack")
        except KeyError:
            self._refuse("asks the memo for a value that was never put there")
        except UnicodeDecodeError:
            self._refuse("holds a text that is not UTF-8")
        self._refuse(f"more than {self.max_opcodes} opcodes")

    def _refuse(self, reason: str) -> NoReturn:
        raise InputRefused(f"pickle: {reason} (byte {self.pos - self.start})")

    def _refuse_opcode(self, opcode: int) -> NoReturn:
        name = REFUSED.get(opcode)
        if name is None:
            self._refuse(f"0x{opcode:02x} is not an opcode")
        self._refuse(f"the opcode {name} is not accepted: torch.save never writes it")

    def _stop(self) -> Graph:
        if len(self.stack) != 1 or self.below:
            self._refuse("ends with more or less than one value")
        self.graph.root = self.stack.pop()
        self.memo.clear()
        return self.graph

    # --- reading arguments -------------------------------------------------------------------------------------------

    def _number(self, code: Struct) -> Any:
        """The next fixed-size argument."""
        pos = self.pos
        self.pos = end = pos + code.size
        if end > self.end:
            self._cut()
        return code.unpack_from(self.data, pos)[0]

    def _cut(self) -> NoReturn:
        raise TruncatedPickle(f"pickle: cut off at byte {len(self.data) - self.start}")

    def _span(self, length: int) -> int:
        """Skip ``length`` bytes and return where they begin."""
        pos = self.pos
        if length > MAX_PICKLE:
            self._refuse(f"a value of {length} bytes, more than the limit of {MAX_PICKLE}")
        if pos + length > len(self.data):
            self._cut()
        self.pos = pos + length
        return pos

    def _line(self) -> str:
        end = self.data.find(b"\n", self.pos, self.pos + MAX_GLOBAL + 1)
        if end < 0:
            if len(self.data) - self.pos <= MAX_GLOBAL:
                self._cut()
            self._refuse(f"a class name longer than {MAX_GLOBAL} bytes")
        line = str(self.data[self.pos : end], "utf-8")
        self.pos = end + 1
        return line

    def _pop_mark(self) -> list[int]:
        if not self.below:
            self._refuse("takes back a mark that was never set")
        items = self.stack
        self.stack = self.below.pop()
        return items

    # --- constants ---------------------------------------------------------------------------------------------------

    def _none(self) -> None:
        self.stack.append(NONE_NODE)

    def _true(self) -> None:
        self.stack.append(TRUE_NODE)

    def _false(self) -> None:
        self.stack.append(FALSE_NODE)

    def _int(self, code: Struct) -> None:
        self.stack.append(self.graph.integer(self._number(code)))

    def _long(self, code: Struct) -> None:
        length = self._number(code)
        if length < 0:
            self._refuse("an integer of negative length")
        pos = self._span(length)
        if length > 8:
            self.stack.append(self.graph.add(OMITTED, f"an integer of {length} bytes"))
            return
        value = int.from_bytes(self.data[pos : pos + length], "little", signed=True)
        self.stack.append(self.graph.integer(value))

    def _float(self) -> None:
        self.stack.append(self.graph.add(FLOAT, self._number(_F64)))

    def _text(self, code: Struct) -> None:
        length = self._number(code)
        pos = self._span(length)
        if length > MAX_TEXT:
            self.stack.append(self.graph.add(OMITTED, f"a text of {length} bytes"))
            return
        self.stack.append(self.graph.text(self.data[pos : pos + length]))

    def _string(self, code: Struct) -> None:
        """A string of Python 2: text when it is ASCII (names), bytes otherwise (packed numbers)."""
        length = self._number(code)
        if length < 0:
            self._refuse("a string of negative length")
        pos = self._span(length)
        if length <= MAX_TEXT and self.data[pos : pos + length].isascii():
            self.stack.append(self.graph.text(self.data[pos : pos + length]))
        else:
            self._keep_bytes(pos, length)

    def _bytes(self, code: Struct) -> None:
        length = self._number(code)
        self._keep_bytes(self._span(length), length)

    def _keep_bytes(self, pos: int, length: int) -> None:
        if length > MAX_BYTES:
            self.stack.append(self.graph.add(OMITTED, f"{length} bytes"))
        else:
            self.stack.append(self.graph.add(BYTES, bytes(self.data[pos : pos + length])))

    # --- containers --------------------------------------------------------------------------------------------------

    def _empty_tuple(self) -> None:
        self.stack.append(EMPTY_TUPLE_NODE)

    def _empty_list(self) -> None:
        self.stack.append(self.graph.add(LIST, []))

    def _empty_dict(self) -> None:
        self.stack.append(self.graph.add(DICT, []))

    def _empty_set(self) -> None:
        self.stack.append(self.graph.add(SET, []))

    def _mark(self) -> None:
        if len(self.below) >= MAX_MARKS:
            self._refuse(f"more than {MAX_MARKS} marks")
        self.below.append(self.stack)
        self.stack = []

    def _tuple(self) -> None:
        items = self._pop_mark()
        self.stack.append(self.graph.add(TUPLE, items))

    def _short_tuple(self, length: int) -> None:
        stack = self.stack
        if len(stack) < length:
            self._refuse("takes from an empty stack")
        items = stack[-length:]
        del stack[-length:]
        stack.append(self.graph.add(TUPLE, items))

    def _frozenset(self) -> None:
        items = self._pop_mark()
        self.stack.append(self.graph.add(SET, items))

    def _append(self) -> None:
        self._extend([self.stack.pop()], LIST, "APPEND")

    def _appends(self) -> None:
        self._extend(self._pop_mark(), LIST, "APPENDS")

    def _additems(self) -> None:
        self._extend(self._pop_mark(), SET, "ADDITEMS")

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._extend([key, value], DICT, "SETITEM")

    def _setitems(self) -> None:
        items = self._pop_mark()
        if len(items) % 2:
            self._refuse("SETITEMS with a key but no value")
        self._extend(items, DICT, "SETITEMS")

    def _extend(self, items: list[int], kind: int, opcode: str) -> None:
        graph, target = self.graph, self.stack[-1]
        if graph.kinds[target] == kind:
            graph.values[target].extend(items)
        elif graph.kinds[target] == OPAQUE:
            opaque = graph.values[target]
            if opaque.items is None:
                opaque.items = items
            else:
                opaque.items.extend(items)
        else:
            self._refuse(f"{opcode} on a {graph.describe(target)}")

    def _pop(self) -> None:
        # A mark may be what POP takes: the pickler does so for a tuple that contains itself.
        if self.stack:
            self.stack.pop()
        else:
            self._pop_mark()

    # --- memo --------------------------------------------------------------------------------------------------------

    def _get(self, code: Struct) -> None:
        self.stack.append(self.memo[self._number(code)])

    def _put(self, code: Struct) -> None:
        self._remember(self._number(code))

    def _memoize(self) -> None:
        self._remember(len(self.memo))

    def _remember(self, index: int) -> None:
        if len(self.memo) >= MAX_MEMO:
            self._refuse(f"more than {MAX_MEMO} memo entries")
        self.memo[index] = self.stack[-1]

    # --- what would run code, and here only makes labels and opaque values -------------------------------------------

    def _global(self) -> None:
        module = self._line()
        self.stack.append(self.graph.label(module, self._line()))

    def _stack_global(self) -> None:
        graph = self.graph
        name, module = self.stack.pop(), self.stack.pop()
        if graph.kinds[name] != TEXT or graph.kinds[module] != TEXT:
            self._refuse("STACK_GLOBAL of something that is not a text")
        if max(len(graph.values[name]), len(graph.values[module])) > MAX_GLOBAL:
            self._refuse(f"a class name longer than {MAX_GLOBAL} characters")
        self.stack.append(graph.label(graph.values[module], graph.values[name]))

    def _reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args, "REDUCE")

    def _newobj(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args, "NEWOBJ")

    def _newobj_ex(self) -> None:
        keywords, args = self.stack.pop(), self.stack.pop()
        if self.graph.kinds[keywords] != DICT:
            self._refuse("NEWOBJ_EX whose keywords are not a dict")
        if self.graph.values[keywords]:
            args = self.graph.add(TUPLE, [args, keywords])
            self.stack[-1] = self._call(self.stack[-1], args, "NEWOBJ_EX", known=False)
        else:
            self.stack[-1] = self._call(self.stack[-1], args, "NEWOBJ_EX")

    def _call(self, function: int, args: int, opcode: str, known: bool = True) -> int:
        graph = self.graph
        kind, value = graph.kinds[function], graph.values[function]
        if graph.kinds[args] != TUPLE:
            self._refuse(f"{opcode} whose arguments are not a tuple")
        if kind == OPAQUE:  # the result of an unknown call is called in turn
            return graph.opaque(value.name, args)
        if kind != GLOBAL:
            self._refuse(f"{opcode} of a {graph.describe(function)}")
        graph.called[value] = graph.called.get(value, 0) + 1
        handler = self.table.get(value) if known else None
        return handler(graph, graph.values[args]) if handler else graph.opaque(value, args)

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        kind = self.graph.kinds[target]
        if kind == OPAQUE:
            self.graph.values[target].state = state
        elif kind not in (DICT, TENSOR, LIST, SET):  # their attributes are not data
            self._refuse(f"BUILD on a {self.graph.describe(target)}")

    def _persistent(self) -> None:
        self.stack[-1] = self.persistent(self.graph, self.stack[-1])

    def _frame(self) -> None:
        self._number(_U64)  # frames are an optimisation for reading; their length binds nothing


_U8, _U16, _I32, _U32, _U64, _F64 = map(Struct, ("<B", "<H", "<i", "<I", "<Q", ">d"))

# opcode -> method of the machine, and its argument
_ACCEPTED: dict[int, tuple[Any, ...]] = {
    0x28: ("_mark",), 0x30: ("_pop",), 0x31: ("_pop_mark",),
    0x4E: ("_none",), 0x88: ("_true",), 0x89: ("_false",),
    0x4B: ("_int", _U8), 0x4D: ("_int", _U16), 0x4A: ("_int", _I32), 0x8A: ("_long", _U8), 0x8B: ("_long", _I32),
    0x47: ("_float",),
    0x8C: ("_text", _U8), 0x58: ("_text", _U32), 0x8D: ("_text", _U64),
    0x55: ("_string", _U8), 0x54: ("_string", _I32),
    0x43: ("_bytes", _U8), 0x42: ("_bytes", _U32), 0x8E: ("_bytes", _U64), 0x96: ("_bytes", _U64),
    0x29: ("_empty_tuple",), 0x5D: ("_empty_list",), 0x7D: ("_empty_dict",), 0x8F: ("_empty_set",),
    0x74: ("_tuple",), 0x85: ("_short_tuple", 1), 0x86: ("_short_tuple", 2), 0x87: ("_short_tuple", 3),
    0x61: ("_append",), 0x65: ("_appends",), 0x73: ("_setitem",), 0x75: ("_setitems",), 0x90: ("_additems",),
    0x91: ("_frozenset",),
    0x68: ("_get", _U8), 0x6A: ("_get", _U32), 0x71: ("_put", _U8), 0x72: ("_put", _U32), 0x94: ("_memoize",),
    0x63: ("_global",), 0x93: ("_stack_global",), 0x52: ("_reduce",), 0x81: ("_newobj",), 0x92: ("_newobj_ex",),
    0x62: ("_build",), 0x51: ("_persistent",), 0x95: ("_frame",),
}  # fmt: skip

REFUSED = {
    0x32: "DUP", 0x46: "FLOAT", 0x49: "INT", 0x4C: "LONG", 0x50: "PERSID", 0x53: "STRING", 0x56: "UNICODE",
    0x64: "DICT", 0x67: "GET", 0x69: "INST", 0x6C: "LIST", 0x6F: "OBJ", 0x70: "PUT", 0x80: "PROTO (a second time)",
    0x82: "EXT1", 0x83: "EXT2", 0x84: "EXT4", 0x97: "NEXT_BUFFER", 0x98: "READONLY_BUFFER",
}  # fmt: skip
