"""What CPython's own unpicklers call when they load a pickle, with harmless classes in place of all that it names."""

from __future__ import annotations

import contextlib
import io
import pickle

from sdsurgery.formats.pickle_names import modern_name, original_name


class _Watched:
    """Mixed into an unpickler: ``called`` are the names of what it has called."""

    called: set[frozenset[str]]

    def find_class(self, module: str, name: str) -> object:
        called = self.called
        # The unpickler in C doesn't say which protocol it has found; the names differ in Python 2's only.
        labels = frozenset((modern_name(module, name), original_name(module, name)))
        if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
            raise ImportError(module)

        class Named:
            """Takes any arguments, state and items, so that as much of the pickle as possible is loaded."""

            def __new__(cls, *given: object, **more: object) -> Named:
                called.add(labels)
                return object.__new__(cls)

            def __setstate__(self, state: object) -> None: ...

            def __setitem__(self, key: object, value: object) -> None: ...

            def append(self, item: object) -> None: ...

            def extend(self, items: object) -> None: ...

            def add(self, item: object) -> None: ...

        return Named

    def persistent_load(self, pid: object) -> object:
        return None


class _Pure(_Watched, pickle._Unpickler):  # type: ignore[misc,name-defined]
    pass


class _Fast(_Watched, pickle.Unpickler):
    pass


def calls(data: bytes) -> set[frozenset[str]]:
    """What loading these bytes as one pickle calls, by either unpickler of CPython: each with its possible names."""
    found: set[frozenset[str]] = set()
    for kind in (_Pure, _Fast):
        loader = kind(io.BytesIO(data))
        loader.called = found
        with contextlib.suppress(Exception):
            loader.load()
    return found
