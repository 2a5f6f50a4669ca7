"""Lists the names in a pickle without interpreting it: for ``scan``, on pickles that the machine refuses to follow.

A malicious pickle may use any opcode, so this walk knows the argument lengths of all of them, protocols 0 to 5 (as in
CPython's ``pickletools``), and goes on until STOP, damage or the end. It keeps just enough text to name what
STACK_GLOBAL takes.
"""

from __future__ import annotations

from contextlib import suppress
from struct import unpack_from

from .pickle_machine import MAX_GLOBAL, MAX_OPCODES
from .pickle_names import modern_name

_PLAIN = frozenset(b"()012NQRbdlotsuae]}\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97\x98")
_LINES = {ord(char): 1 for char in "FILSVPgp"} | {ord(char): 2 for char in "ci"}
_FIXED = {ord("K"): 1, ord("M"): 2, ord("J"): 4, ord("G"): 8, ord("h"): 1, ord("j"): 4, ord("q"): 1, ord("r"): 4,
          0x80: 1, 0x82: 1, 0x83: 2, 0x84: 4, 0x95: 8}  # fmt: skip
_COUNTED = {ord("T"): "<I", ord("U"): "<B", ord("X"): "<I", ord("B"): "<I", ord("C"): "<B", 0x8A: "<B", 0x8B: "<I",
            0x8C: "<B", 0x8D: "<Q", 0x8E: "<Q", 0x96: "<Q"}  # fmt: skip
_TEXTS = frozenset(b"TUXSV\x8c\x8d")
_EXTENSIONS = frozenset((0x82, 0x83, 0x84))
_STACK_GLOBAL = 0x93
_CALLS = frozenset(b"Riob\x81\x92")
_OLD_MAGIC = b"L119547037146038801333356L\n."  # torch's legacy stream under these protocols begins with this pickle
_STREAM = 5  # and has so many


class Walk:
    """One walk. ``names``: global name -> times it was named; ``opcodes``: all that occur; ``ended``: STOP was reached;
    ``exhausted``: the limit of opcodes was; ``pos``: where it ended, at or behind the end of data that were too short.
    """

    def __init__(self, data: bytes | bytearray, start: int = 0, max_opcodes: int = MAX_OPCODES) -> None:
        self.data = data
        self.left = max_opcodes
        self.pos = start
        self.names: dict[str, int] = {}
        self.opcodes: set[int] = set()
        self.ended = self.exhausted = False
        self._recent = ["", ""]  # the last two texts pushed
        self._memo: dict[int, str] = {}
        with suppress(IndexError, ValueError):  # damaged or cut off: what was found so far counts
            self._run()

    @property
    def hides(self) -> bool:
        """Whether it could call what ``names`` lacks: a walk does not follow the stack and can be fooled about what
        STACK_GLOBAL takes, and extensions have numbers for names.
        """
        return bool(self.opcodes & {_STACK_GLOBAL, *_EXTENSIONS}) and bool(self.opcodes & _CALLS)

    def _run(self) -> None:
        while self.left > 0:
            self.left -= 1
            opcode = self.data[self.pos]
            self.pos += 1
            self.opcodes.add(opcode)
            if opcode == 0x2E:
                self.ended = True
                return
            self._step(opcode)
        self.exhausted = True

    def _step(self, opcode: int) -> None:
        if opcode in _FIXED:
            at = self.pos
            self.pos += _FIXED[opcode]
            self._fixed(opcode, self.data[at : self.pos])
        elif opcode in _COUNTED:
            code = _COUNTED[opcode]
            width = {"<B": 1, "<I": 4, "<Q": 8}[code]
            if self.pos + width > len(self.data):
                raise self._too_short()
            length = unpack_from(code, self.data, self.pos)[0]
            self.pos += width + length
            if opcode in _TEXTS:
                self._push(bytes(self.data[self.pos - length : self.pos][:MAX_GLOBAL]))
        elif opcode in _LINES:
            self._lines(opcode, [self._line() for _ in range(_LINES[opcode])])
        elif opcode == _STACK_GLOBAL:
            self._name(*self._recent)
        elif opcode == 0x94:
            self._memo[len(self._memo)] = self._recent[1]
        elif opcode not in _PLAIN:
            raise ValueError

    def _fixed(self, opcode: int, raw: bytes | bytearray) -> None:
        if opcode in b"hj":
            self._recent = [self._recent[1], self._memo.get(int.from_bytes(raw, "little"), "")]
        elif opcode in b"qr":
            self._memo[int.from_bytes(raw, "little")] = self._recent[1]
        elif opcode in _EXTENSIONS:
            self._name("copyreg", f"extension_{int.from_bytes(raw, 'little')}")

    def _lines(self, opcode: int, lines: list[bytes]) -> None:
        if opcode in b"ci":
            self._name(*(line.decode("utf-8", "backslashreplace") for line in lines))
        elif opcode in b"gp":
            index = int(lines[0][:20])
            if opcode == ord("p"):
                self._memo[index] = self._recent[1]
            else:
                self._recent = [self._recent[1], self._memo.get(index, "")]
        elif opcode in _TEXTS:
            self._push(lines[0].strip(b"'\"") if opcode == ord("S") else lines[0])

    def _line(self) -> bytes:
        end = self.data.find(b"\n", self.pos)
        if end < 0:
            raise self._too_short()
        line = bytes(self.data[self.pos : min(end, self.pos + MAX_GLOBAL)])
        self.pos = end + 1
        return line

    def _too_short(self) -> ValueError:
        self.pos = len(self.data)
        return ValueError()

    def _push(self, raw: bytes) -> None:
        self._recent = [self._recent[1], raw.decode("utf-8", "backslashreplace")]

    def _name(self, module: str, name: str) -> None:
        label = modern_name(module, name)
        if label in self.names or len(self.names) < 1000:
            self.names[label] = self.names.get(label, 0) + 1


class TextPickles:
    """What may be pickles of protocol 0 or 1, which have no mark of their own, one after the other: torch's old streams
    are several. ``data`` is a file (``complete``) or its beginning.

    ``names`` and ``opcodes`` are those of all, ``hides`` as of one; ``likely``: the file looks like a pickle, not only
    begins like one; ``cut``: such a one could not be followed to its end.
    """

    def __init__(self, data: bytes, *, complete: bool) -> None:
        self.names: dict[str, int] = {}
        self.opcodes: set[int] = set()
        self.likely = self.hides = self.cut = False
        pos, left = 0, MAX_OPCODES
        for number in range(_STREAM):
            walk = Walk(data, pos, left)
            pos, left = walk.pos, walk.left
            for name, count in walk.names.items():
                self.names[name] = self.names.get(name, 0) + count
            self.opcodes |= walk.opcodes
            self.hides |= walk.hides
            if number == 0:
                self.likely = _likely(walk, data, complete)
            self.cut |= self.likely and not walk.ended and (walk.exhausted or not complete)
            if not walk.ended or pos >= len(data):
                break


def _likely(walk: Walk, data: bytes, complete: bool) -> bool:
    if not walk.ended:
        return walk.exhausted or (not complete and walk.pos >= len(data))
    named = all(part.isidentifier() for label in walk.names for part in label.split("."))
    return (named or walk.hides) and (bool(walk.names) or walk.pos == len(data) or data.startswith(_OLD_MAGIC))
