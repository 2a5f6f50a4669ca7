"""Tensors that are computed one after the other, kept in a temporary file until the output is laid out."""

from __future__ import annotations

import os
import tempfile
import time
from types import TracebackType
from typing import Any

import numpy as np

from ..checkpoint import Checkpoint, Contents, Form, TensorInfo
from ..dtypes import BY_NAME, F32, F64
from ..files import open_temporary


class Spool:
    """``add`` arrays, then ``checkpoint`` is all of them as an input of an outline. In a file in TMPDIR, which is gone
    with this process. ``seconds``: how long it was filled."""

    def __init__(self) -> None:
        self._file = tempfile.NamedTemporaryFile(prefix="sdsurgery-", delete=False)  # noqa: SIM115
        self._infos: list[TensorInfo] = []
        self._at, self._taken = 0, False
        self._started, self.seconds = time.perf_counter(), 0.0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        self.seconds = time.perf_counter() - self._started
        if not self._taken:  # by an error
            os.unlink(self._file.name)

    def __len__(self) -> int:
        return len(self._infos)

    def add(self, name: str, array: Any, dtype: str = "") -> None:
        """An array: float32 or float64, or of integers whose name is given."""
        array = np.asarray(array)
        kind = BY_NAME[dtype] if dtype else F64 if array.dtype == np.float64 else F32
        data = array.copy(order="C").data.cast("B") if array.ndim else array.tobytes()
        self.raw(name, data, TensorInfo(name, 0, Form(kind, tuple(array.shape), len(data))))

    def raw(self, name: str, data: Any, info: TensorInfo) -> None:
        """The bytes of another file's tensor, unchanged."""
        self._file.write(data)
        form = info.form._replace(nbytes=len(data), strides=None, file=0)
        self._infos.append(TensorInfo(name, self._at, form))
        self._at += len(data)

    def checkpoint(self) -> Checkpoint:
        """What was added. The file's name is removed; close the checkpoint when it has been read."""
        self._file.close()
        self._taken = True
        source = open_temporary(self._file.name)
        return Checkpoint("computed", source, Contents("memory", self._infos, files=["computed"]), [source])
