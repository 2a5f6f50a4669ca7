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


class Walk:
    """One walk. ``names``: global name -> times it was named; ``ended``: STOP was reached; ``pos``: where it ended."""

    def __init__(self, data: bytes | bytearray, start: int = 0) -> None:
        self.data = data
        self.pos = start
        self.names: dict[str, int] = {}
        self.ended = False
        self._recent = ["", ""]  # the last two texts pushed
        self._memo: dict[int, str] = {}
        with suppress(IndexError, ValueError):  # damaged or cut off: what was found so far counts
            self._run()

    def _run(self) -> None:
        for _ in range(MAX_OPCODES):
            opcode = self.data[self.pos]
            self.pos += 1
            if opcode == 0x2E:
                self.ended = True
                return
            self._step(opcode)

    def _step(self, opcode: int) -> None:
        if opcode in _FIXED:
            at = self.pos
            self.pos += _FIXED[opcode]
            self._fixed(opcode, self.data[at : self.pos])
        elif opcode in _COUNTED:
            code = _COUNTED[opcode]
            width = {"<B": 1, "<I": 4, "<Q": 8}[code]
            if self.pos + width > len(self.data):
                raise ValueError
            length = unpack_from(code, self.data, self.pos)[0]
            self.pos += width + length
            if opcode in _TEXTS:
                self._push(bytes(self.data[self.pos - length : self.pos][:MAX_GLOBAL]))
        elif opcode in _LINES:
            self._lines(opcode, [self._line() for _ in range(_LINES[opcode])])
        elif opcode == 0x93:
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
            raise ValueError
        line = bytes(self.data[self.pos : min(end, self.pos + MAX_GLOBAL)])
        self.pos = end + 1
        return line

    def _push(self, raw: bytes) -> None:
        self._recent = [self._recent[1], raw.decode("utf-8", "backslashreplace")]

    def _name(self, module: str, name: str) -> None:
        label = modern_name(module, name)
        if label in self.names or len(self.names) < 1000:
            self.names[label] = self.names.get(label, 0) + 1
