"""A backend for tests: it lets another one do the work ($INNER, or the CPU's, in small tiles), and does $ACTION when
everything is checked and the first byte is about to be read, or $DELAY seconds after that.

    from sdsurgery import backends
    backends.__path__.append(".../tests/helpers/backends")  # then: --backend meddling
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

from sdsurgery import backends
from sdsurgery.backends import Backend, Options
from sdsurgery.plan import Plan

VICTIM = "b.safetensors"


def rewrite(plan: Plan) -> None:
    with open(VICTIM, "r+b") as file:
        file.seek(os.path.getsize(VICTIM) // 2)
        file.write(b"changed")


def cut(bytes_of: Any) -> Any:
    return lambda plan: os.truncate(VICTIM, bytes_of(os.path.getsize(VICTIM)))


def fill_up(plan: Plan) -> None:
    """A disk that is full in the middle although the space was reserved: a quota, a snapshot, a network file system."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (plan.size // 2, plan.size))


ACTIONS = {
    "rewrite": rewrite,
    "empty": cut(lambda size: 0),
    "half": cut(lambda size: size // 2),
    "a little": cut(lambda size: size - 100),
    "unaligned": cut(lambda size: size // 3 | 1),
    "fill up": fill_up,
    "hang up": lambda plan: os.kill(os.getpid(), signal.SIGHUP),
}


class Meddled:
    """A run of the other backend."""

    def __init__(self, run: Any, plan: Plan) -> None:
        self.run, self.plan = run, plan
        self.later: threading.Thread | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run, name)

    def start(self) -> None:
        act, delay = ACTIONS[os.environ["ACTION"]], os.environ.get("DELAY")
        if delay is None:
            act(self.plan)
        else:
            self.later = threading.Thread(target=lambda: (time.sleep(float(delay)), act(self.plan)))
            self.later.start()
        self.run.start()

    def finish(self) -> None:
        if self.later is not None:
            self.later.join()
        self.run.finish()


def inner() -> Backend:
    return backends.get(os.environ.get("INNER", "cpu"))


def prepare(plan: Plan, sources: Sequence[Any], sink: Any, options: Options, *further: Any) -> Meddled:
    return Meddled(inner().prepare(plan, sources, sink, options._replace(tile_bytes=4096), *further), plan)


BACKEND = Backend("meddling", lambda: None, prepare, lambda run: inner().describe(run.run))
