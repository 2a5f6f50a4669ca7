"""Adapters' products in the engine's loop: the values of definitions/products.py on any target, tiles and threads."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
import pytest
from numeric_tools import TARGETS
from sdsurgery import _native
from sdsurgery.backends import Options, cpu, reference
from sdsurgery.definitions.products import Effect
from sdsurgery.dtypes import F16, F32
from sdsurgery.operands.modules import expressed
from sdsurgery.plan import Factor, Job, Module, Operand, Plan

LINEAR, CONV = (67, 83), (24, 10, 3, 3)

# Kind -> the weight's shape, and the factors' names and shapes.
KINDS: dict[str, tuple[str, tuple[int, ...], dict[str, tuple[int, ...]]]] = {
    "lora": ("lora", LINEAR, {"up": (67, 5), "down": (5, 83)}),
    "lora of rank 1": ("lora", LINEAR, {"up": (67, 1), "down": (1, 83)}),
    "lora with a bias": ("lora", LINEAR, {"up": (67, 5), "down": (5, 83), "bias": LINEAR}),
    "locon": ("lora", CONV, {"up": (24, 7, 1, 1), "down": (7, 10, 3, 3)}),
    "tucker": ("lora", CONV, {"up": (24, 6, 1, 1), "down": (4, 10, 1, 1), "mid": (6, 4, 3, 3)}),
    "loha": (
        "loha", LINEAR,
        {"hada_w1_a": (67, 3), "hada_w1_b": (3, 83), "hada_w2_a": (67, 4), "hada_w2_b": (4, 83)},
    ),
    "loha, tucker": (
        "loha", CONV,
        {
            "hada_w1_a": (3, 24), "hada_w1_b": (3, 10), "hada_t1": (3, 3, 3, 3),
            "hada_w2_a": (3, 24), "hada_w2_b": (3, 10), "hada_t2": (3, 3, 3, 3),
        },
    ),
    "lokr": ("lokr", (60, 84), {"lokr_w1": (4, 7), "lokr_w2": (15, 12)}),
    "lokr of products": (
        "lokr", (60, 84), {"lokr_w1_a": (4, 2), "lokr_w1_b": (2, 7), "lokr_w2_a": (15, 3), "lokr_w2_b": (3, 12)},
    ),
    "lokr, tucker": (
        "lokr", CONV, {"lokr_w1": (4, 5), "lokr_t2": (2, 2, 3, 3), "lokr_w2_a": (2, 6), "lokr_w2_b": (2, 2)},
    ),
    "full": ("full", CONV, {"diff": CONV}),
    "ia3 of outputs": ("ia3", CONV, {"weight": (24,)}),
    "ia3 of inputs": ("ia3", CONV, {"weight": (10,)}),
    "dora of outputs": ("lora", LINEAR, {"up": (67, 5), "down": (5, 83), "dora_out": (67, 1)}),
    "dora of outputs, conv": (
        "lora", CONV, {"up": (24, 7, 1, 1), "down": (7, 10, 3, 3), "dora_out": (24, 1, 1, 1)},
    ),
    "dora of inputs": ("lora", LINEAR, {"up": (67, 5), "down": (5, 83), "dora_in": (1, 83)}),
    "set": ("set", LINEAR, {"set_weight": LINEAR}),
}  # fmt: skip


class Case:
    """Two modules of a kind, one after the other, on a weight in half precision; factors of both float dtypes."""

    def __init__(self, name: str) -> None:
        kind, self.shape, factors = KINDS[name]
        rng = np.random.default_rng(11)
        self.weight = rng.normal(size=prod(self.shape)).astype(np.float16)
        data, parts, self.effects, modules = self.weight.tobytes(), [], [], []
        for number, strength in enumerate((0.7, -1.3)):
            entries, values = [], {}
            for part, shape in factors.items():
                stored = rng.normal(size=shape).astype(np.float16 if number else np.float32)
                operand = Operand(0, F16 if number else F32, len(data))
                entries.append((part, len(parts), shape))
                parts.append(Factor(operand, stored.size))
                values[part] = stored.astype(np.float32)
                data += stored.tobytes()
            module = Module(kind, self.shape, strength, tuple(entries), scale=0.25, on_input=name.endswith("inputs"))
            modules.append(module)
            self.effects.append(Effect(module, values, np.float32))
        self.data = data
        count = self.weight.size
        job = Job(None, F32, 0, count, (Operand(0, F16, 0),), 0, modules=tuple(modules), factors=tuple(parts))
        self.plan = expressed(Plan((data,), (), (job,), 0, 4 * count), wide=False).plan

    def expected(self) -> np.ndarray:
        values = self.weight.astype(np.float32).reshape(self.shape[0], -1)
        for effect in self.effects:
            values = effect(values, 0)
        return np.ascontiguousarray(values).reshape(-1)

    def run(self, path: Path, prepare: object, options: Options) -> np.ndarray:
        source, sink = _native.Source.memory(self.data), _native.Sink(str(path).encode(), self.plan.size)
        run = prepare(self.plan, [source], sink, options)  # type: ignore[operator]
        run.start()
        while not run.wait(1):
            pass
        run.finish()
        sink.commit(True, False)
        return np.fromfile(path, np.float32)


def bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


@pytest.mark.parametrize("name", KINDS)
def test_every_target_thread_count_and_tile_gives_the_definition_s_values(tmp_path: Path, name: str) -> None:
    case = Case(name)
    assert not case.plan.adapted
    expected = bits(case.expected())
    assert np.array_equal(bits(case.run(tmp_path / "r", reference.BACKEND.prepare, Options())), expected)
    for target in TARGETS:
        for options in (Options(cpu=target, threads=1), Options(cpu=target, threads=3, tile_bytes=4096)):
            assert np.array_equal(bits(case.run(tmp_path / "n", cpu.prepare, options)), expected)


@pytest.mark.parametrize("name", KINDS)
def test_any_stretch_of_a_product_is_that_of_the_whole(name: str) -> None:
    case = Case(name)
    source = _native.Source.memory(case.data)
    computed = [operand for operand in case.plan.jobs[0].operands if operand.computed]
    rng = np.random.default_rng(3)
    for operand in computed:
        whole = np.empty(case.weight.size, np.float32)
        cpu.compute_into(operand, [source], 0, whole)
        for _ in range(20):
            start, first = (int(at) for at in rng.integers(0, whole.size // 3, 2))
            part = np.empty(int(rng.integers(1, whole.size - start - first + 1)), np.float32)
            cpu.compute_into(operand.at(start), [source], first, part)
            assert np.array_equal(bits(part), bits(whole[start + first :][: part.size]))


def test_factors_that_do_not_fit_are_refused() -> None:
    case = Case("lora")
    operand = next(operand for operand in case.plan.jobs[0].operands if operand.computed)
    assert operand.low_rank is not None and operand.low_rank.right is not None
    source = _native.Source.memory(case.data)
    wrong = operand.low_rank._replace(right=operand.low_rank.right._replace(rows=4))
    with pytest.raises(_native.Error, match="do not fit"):
        cpu.compute_into(operand._replace(low_rank=wrong), [source], 0, np.empty(8, np.float32))
