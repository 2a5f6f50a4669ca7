"""Objects for ``scan`` in which there is no harm."""

from __future__ import annotations

import argparse
import array
import collections
import datetime
import decimal
import fractions
import functools
import logging
import pathlib
import random
import re
import types
import uuid
import warnings

import numpy as np
import torch

NAMES = (
    "plain",
    "numbers",
    "collections",
    "user collections",
    "times",
    "paths",
    "identifiers",
    "settings",
    "patterns",
    "arrays of bytes",
    "exceptions",
    "classes",
    "functions",
    "ellipsis",
    "logger",
    "random numbers",
    "NumPy",
    "NumPy, others",
    "records",
    "tensors",
    "torch",
    "sparse and quantised",
    "uninitialised",
    "state dict",
    "module",
    "optimizer",
    "nested",
    "attributes of a dict",
)


@functools.cache
def harmless() -> dict[str, object]:
    """Objects as checkpoints, datasets and settings hold them. Their names stand above so that listing the tests needs
    no optimizer, for which torch loads its compiler."""
    stamp = datetime.datetime(2020, 1, 2, 3, 4, 5, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))
    tensor = torch.arange(6.0).reshape(2, 3)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.ReLU(), torch.nn.LSTM(2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    optimizer = torch.optim.AdamW(model.parameters())
    bag = collections.deque([1, 2], maxlen=3)
    return {
        "plain": [
            None,
            True,
            1,
            -(2**70),
            1.5,
            "x" * 2000,
            b"y" * 2000,
            bytearray(b"z"),
            (),
            [],
            {},
            set(),
            frozenset("a"),
        ],
        "numbers": [
            complex(1, 2),
            decimal.Decimal("1.5"),
            fractions.Fraction(1, 3),
            range(3),
            slice(1, 2),
            float("nan"),
        ],
        "collections": [
            collections.OrderedDict(a=1),
            collections.Counter("aab"),
            collections.defaultdict(list, a=[1]),
            bag,
        ],
        "user collections": [collections.UserDict(a=1), collections.UserList([1])],
        "times": [stamp, stamp.date(), stamp.time(), datetime.timedelta(1)],
        "paths": [pathlib.Path("a/b"), pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("b")],
        "identifiers": [uuid.UUID(int=5)],
        "settings": [argparse.Namespace(lr=0.1, name="x"), types.SimpleNamespace(a=1)],
        "patterns": [re.compile("a+", re.IGNORECASE)],
        "arrays of bytes": [array.array("d", [1.0, 2.0])],
        "exceptions": [ValueError("x"), KeyError("y"), RuntimeError()],
        "classes": [int, dict, type(None), torch.nn.Linear, torch.optim.SGD, collections.OrderedDict],
        "functions": [len, torch.relu, functools.partial(torch.optim.Adam, lr=0.1)],
        "ellipsis": [..., NotImplemented],
        "logger": logging.getLogger("a.b"),
        "random numbers": [
            random.Random(3),
            np.random.RandomState(3),
            np.random.default_rng(3),
            np.random.SeedSequence(3),
        ],
        "NumPy": [
            np.arange(3),
            np.float32(1.5),
            np.array(["a", "bc"]),
            np.array([1, None], dtype=object),
            np.dtype("f4"),
        ],
        "NumPy, others": [
            np.ma.array([1, 2], mask=[0, 1]),
            np.zeros(2, [("a", "i4")]),
            np.datetime64("2020-01-01"),
            np.ones((1, 1)).view(np.matrix),
        ],
        "records": np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        "tensors": [tensor, tensor.t(), tensor.half(), torch.nn.Parameter(tensor), torch.tensor(1), torch.empty(0)],
        "torch": [torch.Size([1, 2]), torch.float16, torch.device("cpu"), torch.strided, torch.Generator().get_state()],
        "sparse and quantised": [
            torch.eye(2).to_sparse(),
            quantised,
        ],
        "uninitialised": torch.nn.LazyLinear(2).state_dict(),
        "state dict": model.state_dict(),
        "module": model,
        "optimizer": optimizer.state_dict(),
        "nested": {
            "state_dict": {"w": tensor},
            "epoch": 3,
            "hyper_parameters": {"path": pathlib.Path("a"), "n": np.int64(4)},
        },
        "attributes of a dict": with_metadata(),
    }


def with_metadata() -> object:
    found = collections.OrderedDict(w=torch.zeros(2))
    found._metadata = collections.OrderedDict(version=1)  # type: ignore[attr-defined]
    return found
