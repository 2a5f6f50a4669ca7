"""Times of work on a GPU without the host's part, and what a device-to-device copy of as many bytes takes."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

DEVICE = "cuda"
COLD_BYTES = 512 << 20  # go by before an operand is met again: more than any cache holds
MOST_SETS = 64
MOST_CALLS = 128  # queued at once: a queue takes about a thousand launches, and a contender may need several a call
CYCLES = 2.5e9  # a second, on no GPU fewer than are asked for

Work = Callable[[], Any]


@dataclass(frozen=True)
class Timed:
    """Seconds of one call: of the GPU, when the calls are queued behind each other, and of the host to queue it."""

    gpu: float
    host: float


def sets_for(nbytes: int) -> int:
    """How many sets of operands of so many bytes take turns, so that none is found in a cache."""
    return max(1, min(MOST_SETS, COLD_BYTES // max(nbytes, 1)))


def timed(works: Sequence[Work], repeats: int = 5, most_calls: int = MOST_CALLS) -> Timed:
    """Medians over ``repeats``. The works (one and the same on several sets of operands) take turns. The GPU is kept
    waiting until all calls of a repeat are queued, so that it never waits for the host between two of them."""
    import torch

    turn = itertools.cycle(works)
    for _ in range(3):  # compilation, and what is allocated once
        next(turn)()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(4):
        next(turn)()
    host = (time.perf_counter() - started) / 4
    torch.cuda.synchronize()
    whole = (time.perf_counter() - started) / 4
    calls = max(2, min(most_calls, int(0.02 / whole)))
    gpus, hosts = [], []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int((2 * calls * host + 1e-3) * CYCLES))
        start.record()
        started = time.perf_counter()
        for _ in range(calls):
            next(turn)()
        hosts.append((time.perf_counter() - started) / calls)
        end.record()
        end.synchronize()
        gpus.append(start.elapsed_time(end) / 1e3 / calls)  # it is in milliseconds
    return Timed(statistics.median(gpus), statistics.median(hosts))


class Copies:
    """Seconds of device-to-device copies, measured once for every size."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def seconds(self, nbytes: int) -> float:
        """Of a copy that reads and writes ``nbytes`` together."""
        import torch

        if nbytes not in self._seconds:
            half = max(nbytes // 2, 1)
            pairs = [
                [torch.empty(half, dtype=torch.uint8, device=DEVICE) for _ in range(2)] for _ in range(sets_for(nbytes))
            ]
            self._seconds[nbytes] = timed([lambda to=to, source=source: to.copy_(source) for to, source in pairs]).gpu
        return self._seconds[nbytes]

    def rates(self) -> dict[str, float]:
        """Bytes a second, read and written, by the bytes of a copy."""
        return {str(nbytes): nbytes / seconds for nbytes, seconds in sorted(self._seconds.items())}
