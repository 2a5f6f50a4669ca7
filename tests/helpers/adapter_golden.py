"""The golden values of adapters: every case with its inputs, strengths and what must come out."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


def tensors(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Dtype and values (float64) of every tensor; BF16 has no dtype in NumPy."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    kinds = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "u2", "I64": "i8", "I32": "i4", "I16": "i2"}
    found = {}
    for name, entry in header.items():
        first, last = (8 + length + at for at in entry["data_offsets"])
        values = np.frombuffer(data[first:last], kinds[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            values = (values.astype("u4") << 16).view("f4")
        found[name] = entry["dtype"], values
    return found


@dataclass
class Case:
    """``adapters``: (strength, parts by suffix) in order. ``expected``: of the weight, and of the bias or None."""

    name: str
    dtype: str
    weight: np.ndarray
    bias: np.ndarray | None
    adapters: list[tuple[float, dict[str, tuple[str, np.ndarray]]]]
    expected: np.ndarray
    expected_bias: np.ndarray | None
    tolerance: float
    peft: dict[str, Any]


def cases(folder: Path) -> Iterator[Case]:
    with (folder / "index.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    files = {name: tensors(folder / name) for name in sorted({row["file"] for row in rows})}
    done = set()
    for row in rows:
        key = (row["file"], row["case"], row["strength"])
        if key in done or row["case"] == "qkv":
            continue
        done.add(key)
        held, name = files[row["file"]], row["case"]
        peft = dict(
            word.rstrip(";").split("=") for word in row["note"].split() if word.startswith(("lora_alpha=", "use_"))
        )
        if "+" in row["strength"]:
            strengths = [float(word) for word in row["strength"].split("+")]
            expected = held[f"{name}/canonical64"][1]
            inputs = [_inputs(held, f"{name}/in{number}/") for number in (1, 2)]
            both = list(zip(strengths, inputs, strict=True))
            dtype, weight = held[f"{name}/W"]
            yield Case(name, dtype, weight, None, both, expected, None, float(row["tolerance"]), peft)
            continue
        stem = f"{name}/s={row['strength']}/canonical64"
        bias, expected_bias = (held.get(key, (None, None))[1] for key in (f"{name}/b", f"{stem}.bias"))
        yield Case(name, held[f"{name}/W"][0], held[f"{name}/W"][1], bias,
                   [(float(row["strength"]), _inputs(held, f"{name}/in/"))], held[stem][1], expected_bias,
                   float(row["tolerance"]), peft)  # fmt: skip


def _inputs(held: dict[str, tuple[str, np.ndarray]], prefix: str) -> dict[str, tuple[str, np.ndarray]]:
    return {name.removeprefix(prefix): value for name, value in held.items() if name.startswith(prefix)}
