"""Adapters in the engine's loop: the values of definitions/effects.py on any target, tiles and threads."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numeric_tools import TARGETS
from sdsurgery import _native
from sdsurgery.backends import Options, cpu, reference
from sdsurgery.definitions.effects import changed
from sdsurgery.definitions.mixing import rotations
from sdsurgery.dtypes import F16, F32
from sdsurgery.operands.modules import Adapted, Factor, Module, adapted
from sdsurgery.plan import Job, Jobs, Operand, Plan
from sdsurgery.program import Formula, identity

LINEAR, CONV = (67, 83), (24, 10, 3, 3)
LORA = {"up": (67, 5), "down": (5, 83)}
LOCON = {"up": (24, 7, 1, 1), "down": (7, 10, 3, 3)}


class Kind(NamedTuple):
    """A kind of module, the weight's shape as it is stored, the factors' names and shapes, and more of the module."""

    formula: str
    shape: tuple[int, ...]
    factors: dict[str, tuple[int, ...]]
    more: dict[str, Any] = {}  # noqa: RUF012


KINDS = {
    "lora": Kind("lora", LINEAR, LORA),
    "lora of rank 1": Kind("lora", LINEAR, {"up": (67, 1), "down": (1, 83)}),
    "lora with a bias": Kind("lora", LINEAR, {**LORA, "bias": LINEAR}),
    "lora with a sparse rest": Kind("lora", LINEAR, {**LORA, "bias_indices": (2, 9), "bias_values": (9,)}),
    "locon": Kind("lora", CONV, LOCON),
    "tucker": Kind("lora", CONV, {"up": (24, 6, 1, 1), "down": (4, 10, 1, 1), "mid": (6, 4, 3, 3)}),
    "loha": Kind(
        "loha", LINEAR, {"hada_w1_a": (67, 3), "hada_w1_b": (3, 83), "hada_w2_a": (67, 4), "hada_w2_b": (4, 83)}
    ),
    "loha, tucker": Kind(
        "loha", CONV,
        {
            "hada_w1_a": (3, 24), "hada_w1_b": (3, 10), "hada_t1": (3, 3, 3, 3),
            "hada_w2_a": (3, 24), "hada_w2_b": (3, 10), "hada_t2": (3, 3, 3, 3),
        },
    ),
    "lokr": Kind("lokr", (60, 84), {"lokr_w1": (4, 7), "lokr_w2": (15, 12)}),
    "lokr of products": Kind(
        "lokr", (60, 84), {"lokr_w1_a": (4, 2), "lokr_w1_b": (2, 7), "lokr_w2_a": (15, 3), "lokr_w2_b": (3, 12)},
    ),
    "lokr, tucker": Kind(
        "lokr", CONV, {"lokr_w1": (4, 5), "lokr_t2": (2, 2, 3, 3), "lokr_w2_a": (2, 6), "lokr_w2_b": (2, 2)},
    ),
    "glora": Kind("glora", LINEAR, {"a1": (83, 4), "a2": (4, 83), "b1": (67, 3), "b2": (3, 83)}),
    "glora, conv": Kind("glora", CONV, {"a1": (10, 4), "a2": (4, 10), "b1": (24, 3), "b2": (3, 90)}),
    "full": Kind("full", CONV, {"diff": CONV}),
    "full, of a bias": Kind("full", (67,), {"diff": (67,)}),
    "ia3 of outputs": Kind("ia3", CONV, {"weight": (24,)}),
    "ia3 of inputs": Kind("ia3", CONV, {"weight": (10,)}, {"on_input": True}),
    "oft": Kind("oft", (24, 31), {"oft_blocks": (4, 6, 6)}),
    "oft with a constraint": Kind("oft", CONV, {"oft_blocks": (3, 8, 8), "rescale": (24, 1)}, {"constraint": 0.02}),
    "oft_diag": Kind("oft", (24, 31), {"oft_diag": (4, 6, 6)}),
    "boft": Kind("boft", (24, 31), {"oft_blocks": (2, 6, 4, 4), "rescale": (24, 1)}),
    "dora of outputs": Kind("lora", LINEAR, {**LORA, "dora_out": (67, 1)}),
    "dora of outputs, conv": Kind("lora", CONV, {**LOCON, "dora_out": (24, 1, 1, 1)}),
    "dora of inputs": Kind("lora", LINEAR, {**LORA, "dora_in": (1, 83)}),
    "dora of inputs, conv": Kind("lora", CONV, {**LOCON, "dora_in": (1, 10, 1, 1)}),
    "set": Kind("set", LINEAR, {"set_weight": LINEAR}),
    "transposed lora": Kind("lora", LINEAR[::-1], LORA, {"transposed": True}),
    "transposed lokr": Kind(
        "lokr", (84, 60), {"lokr_w1_a": (4, 2), "lokr_w1_b": (2, 7), "lokr_w2": (15, 12)}, {"transposed": True},
    ),
    "transposed full": Kind("full", LINEAR[::-1], {"diff": LINEAR}, {"transposed": True}),
    "transposed ia3": Kind("ia3", LINEAR[::-1], {"weight": (83,)}, {"transposed": True, "on_input": True}),
    "transposed dora of outputs": Kind("lora", LINEAR[::-1], {**LORA, "dora_out": (67,)}, {"transposed": True}),
    "transposed dora of inputs": Kind("lora", LINEAR[::-1], {**LORA, "dora_in": (83,)}, {"transposed": True}),
    "transposed glora": Kind(
        "glora", LINEAR[::-1], {"a1": (83, 4), "a2": (4, 83), "b1": (67, 3), "b2": (3, 83)}, {"transposed": True},
    ),
    "transposed boft": Kind("boft", (31, 24), {"oft_blocks": (2, 6, 4, 4)}, {"transposed": True}),
    "four channels of ten": Kind("lora", CONV, {"up": (24, 7), "down": (7, 36)}, {"channels": 4}),
    "four channels of ten, dora": Kind(
        "lora", CONV, {"up": (24, 7), "down": (7, 36), "dora_in": (4,)}, {"channels": 4}
    ),
    "four channels of ten, full": Kind("full", CONV, {"diff": (24, 4, 3, 3)}, {"channels": 4}),
    "four channels of ten, oft": Kind("oft", CONV, {"oft_blocks": (4, 6, 6)}, {"channels": 4}),
}  # fmt: skip


class Case:
    """Two modules of a kind, one after the other, on a weight in half precision; factors of both float dtypes."""

    def __init__(self, name: str, rows: int = 0, first: int = 0) -> None:
        kind = KINDS[name]
        self.shape = (rows or kind.shape[0], *kind.shape[1:])
        self.rows = slice(first, first + kind.shape[0])
        rng = np.random.default_rng(11)
        self.weight = rng.normal(size=prod(self.shape)).astype(np.float16)
        self.weight[:3] = -0.0
        self.data, self.factors, self.modules, self.values = self.weight.tobytes(), [], [], []
        for number, strength in enumerate((0.7, -1.3)):
            entries, values = [], {}
            for part, shape in kind.factors.items():
                stored = rng.normal(size=shape).astype(np.float16 if number else np.float32)
                if part == "bias_indices":
                    stored = np.abs(stored * 17 % 60).round().astype(stored.dtype)
                operand = Operand(0, F16 if number else F32, len(self.data))
                entries.append((part, len(self.factors), shape))
                self.factors.append(Factor(operand, stored.size))
                values[part] = stored.astype(np.float32)
                self.data += stored.tobytes()
            self.modules.append(
                Module(kind.formula, kind.shape, strength, tuple(entries), scale=0.25, first=first, **kind.more)
            )
            self.values.append(values)

    def plan(self, made: Adapted) -> Plan:
        formula, operands, mixings = made
        count = self.weight.size
        shape = self.shape if formula.program.in_stages else ()
        job = Job(0, F32, 0, count, operands, 0, formula.numbers, shape, mixings)
        return Plan((self.data,), (formula.program,), Jobs((job,)), 0, 4 * count)

    def adapted(self, formula: Formula, inputs: int = 1, **of_module: Any) -> Adapted:
        modules = [module._replace(**of_module) for module in self.modules]
        return adapted(formula, (Operand(0, F16, 0),) * inputs, modules, self.factors, self.shape)

    def expected(self) -> np.ndarray:
        values = self.weight.astype(np.float32).reshape(self.shape[0], -1)
        for module, factors in zip(self.modules, self.values, strict=True):
            values[self.rows] = changed(module, factors, values[self.rows].copy())
        return values.reshape(-1)

    def run(self, path: Path, plan: Plan, prepare: Any, options: Options) -> np.ndarray:
        source, sink = _native.Source.memory(self.data), _native.Sink(str(path).encode(), plan.size)
        run = prepare(plan, [source], sink, options)
        run.start()
        while not run.wait(1):
            pass
        run.finish()
        sink.commit(True, False)
        return np.fromfile(path, np.float32)

    def same_everywhere(self, tmp_path: Path, plan: Plan) -> np.ndarray:
        """What the reference gives, and every target, with tiles and threads."""
        found = self.run(tmp_path / "r", plan, reference.BACKEND.prepare, Options())
        for target in TARGETS:
            for options in (Options(cpu=target, threads=1), Options(cpu=target, threads=3, tile_bytes=4096)):
                assert np.array_equal(bits(self.run(tmp_path / "n", plan, cpu.prepare, options)), bits(found)), target
        return found


def bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


@pytest.mark.parametrize("name", KINDS)
def test_every_target_thread_count_and_tile_gives_the_definition_s_values(tmp_path: Path, name: str) -> None:
    case = Case(name)
    found = case.same_everywhere(tmp_path, case.plan(case.adapted(identity())))
    assert np.array_equal(bits(found), bits(case.expected()))


@pytest.mark.parametrize("name", ["lora", "loha, tucker", "full", "oft", "boft", "dora of outputs", "ia3 of outputs"])
def test_only_the_rows_of_a_module_are_changed_where_a_formula_needs_the_whole_tensor(
    tmp_path: Path, name: str
) -> None:
    case = Case(name, rows=KINDS[name].shape[0] + 30, first=17)
    found = case.same_everywhere(tmp_path, case.plan(case.adapted(identity())))
    assert np.array_equal(bits(found), bits(case.expected()))


@pytest.mark.parametrize("name", ["lora", "glora", "boft", "dora of inputs, conv", "four channels of ten"])
@pytest.mark.parametrize("method", ["weighted-sum", "slerp", "ties"])
def test_an_input_of_a_formula_is_what_its_adapters_make_of_it(tmp_path: Path, name: str, method: str) -> None:
    from sdsurgery.methods.registry import get
    from sdsurgery.program.tracing import trace

    case, chosen = Case(name), get(method)
    formula = trace(chosen, 2, chosen.bind(2, {}))
    found = case.same_everywhere(tmp_path, case.plan(case.adapted(formula, inputs=2, input=1)))
    # the same of two files, one of them already adapted
    other = case.expected()
    case.data += other.tobytes()
    operands = (Operand(0, F16, 0), Operand(0, F32, len(case.data) - other.nbytes))
    plan = case.plan(Adapted(formula, operands, ()))
    assert np.array_equal(bits(found), bits(case.run(tmp_path / "2", plan, cpu.prepare, Options())))


def test_the_numbers_of_modules_change_no_program() -> None:
    case = Case("dora of outputs")
    one, other = (case.adapted(identity(), strength=strength) for strength in (0.25, 0.5))
    assert one.formula.program == other.formula.program and one.formula.numbers != other.formula.numbers


@pytest.mark.parametrize("name", KINDS)
def test_any_stretch_of_a_product_is_that_of_the_whole(name: str) -> None:
    case = Case(name, rows=KINDS[name].shape[0] + 9, first=4)
    source = _native.Source.memory(case.data)
    rng = np.random.default_rng(3)
    for operand in case.adapted(identity()).operands:
        if not operand.computed:
            continue
        whole = np.empty(case.weight.size, np.float32)
        cpu.compute_into(operand, [source], 0, whole)
        for _ in range(20):
            start, first = (int(at) for at in rng.integers(0, whole.size // 3, 2))
            part = np.empty(int(rng.integers(1, whole.size - start - first + 1)), np.float32)
            cpu.compute_into(operand.at(start), [source], first, part)
            assert np.array_equal(bits(part), bits(whole[start + first :][: part.size]))


@pytest.mark.parametrize("limit", [0.0, 0.3])
def test_rotations_are_orthogonal_and_those_of_linear_algebra(limit: float) -> None:
    blocks = np.random.default_rng(5).normal(size=(3, 40, 40))
    found = rotations(blocks, limit)
    skew = blocks - np.swapaxes(blocks, 1, 2)
    if limit:
        skew *= limit / np.sqrt(np.sum(skew**2))
    assert np.abs(found - (np.eye(40) + skew) @ np.linalg.inv(np.eye(40) - skew)).max() < 1e-9
    assert np.abs(found @ np.swapaxes(found, 1, 2) - np.eye(40)).max() < 1e-12


def test_factors_that_do_not_fit_are_refused() -> None:
    case = Case("lora")
    operand = next(operand for operand in case.adapted(identity()).operands if operand.computed)
    assert operand.low_rank is not None and operand.low_rank.right is not None
    source = _native.Source.memory(case.data)
    place = operand.low_rank.place
    for wrong in (
        operand.low_rank._replace(right=operand.low_rank.right._replace(rows=4)),
        operand.low_rank._replace(place=place._replace(first=1)),
        operand.low_rank._replace(place=place._replace(columns=82)),
    ):
        with pytest.raises(_native.Error, match="do not fit"):
            cpu.compute_into(operand._replace(low_rank=wrong), [source], 0, np.empty(8, np.float32))


def test_places_outside_the_weight_are_refused() -> None:
    case = Case("lora with a sparse rest")
    made = case.adapted(identity())
    plan = case.plan(made)
    data = bytearray(case.data)
    at = made.operands[2].low_rank.left.parts[0].offset  # type: ignore[union-attr]
    data[at : at + 4] = np.float32(67).tobytes()
    run = cpu.prepare(plan, [_native.Source.memory(bytes(data))], None, Options())
    run.start()
    with pytest.raises(_native.Error, match="do not fit"):
        while not run.wait(1):
            pass
        run.finish()
