"""The follower against CPython's own unpicklers: whatever they call in a mutated pickle, it has seen called."""

from __future__ import annotations

import os
import pickle
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacks import attacks
from harmless_objects import harmless
from pickle_builder import Memory, pickled
from scan_corpus import hostile
from sdsurgery.formats.pickle_follow import Pickle
from unpickler_oracle import calls

ROUNDS = int(os.environ.get("SDS_DIFFERENTIAL_ROUNDS", "6000"))


def starts() -> list[bytes]:
    """Pickles of every kind, short ones."""
    found = [pickled(body, protocol=protocol) for body in attacks("/canary").values() for protocol in (2, 4)]
    found += [data for name, (loader, data) in hostile("/canary").items() if loader == "pickle" and len(data) < 2000]
    for value in harmless().values():
        for protocol in range(6):
            data = pickle.dumps(value, protocol)
            if len(data) < 3000:
                found.append(data)
    return found


def mutated(rng: random.Random, pool: list[bytes]) -> bytes:
    out = bytearray(rng.choice(pool))
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        at = rng.randrange(len(out) + 1)
        kind = rng.random()
        if kind < 0.3:  # an opcode or an argument becomes another
            out[at : at + 1] = bytes((rng.randrange(256),))
        elif kind < 0.5:
            out[at:at] = rng.choice(
                (b"0", b"1", b"(", b"2", b"N", b")", b"R", b"t", b"\x94", b"h\x00", b"b", b"I1\n", b"o")
            )
        elif kind < 0.7:
            del out[at : at + rng.randrange(1, 6)]
        else:  # a piece of another
            other = rng.choice(pool)
            start = rng.randrange(len(other))
            out[at:at] = other[start : start + rng.randrange(1, 60)]
    return bytes(out)


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """CPython makes room for a memo of whatever size a mutated pickle asks for."""
    if sys.platform != "linux":
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("seed", range(3))
def test_all_that_cpython_calls_is_seen(seed: int) -> None:
    rng = random.Random(seed)
    pool = starts()
    ran = 0
    for number in range(2 * ROUNDS):
        if number >= ROUNDS and ran > ROUNDS // 3:
            break
        data = mutated(rng, pool)
        want = calls(data)
        found = Pickle(Memory(data))
        assert found.exhausted or found.odd or all(names & found.calls.keys() for names in want), (number, data)
        ran += bool(want)
    assert ran > ROUNDS // 3
