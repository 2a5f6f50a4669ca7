"""Scaled fp8 of what a formula gives: its codes and its scale, as formulas.

    scale = max|W| ⁄ 448 (1 for zeros), float32        code = e4m3(clip(W · (1 ⁄ scale), ±448))

as comfy-kitchen 0.2.40 computes it (``TensorCoreFP8Layout``), from the float32 weights W.
"""

from __future__ import annotations

from . import ALL, CONSTANT, TEMP, VALUE, Formula, Program, Ref, Stage, Step

CODES, SCALE = "codes", "scale"
_LARGEST = 448.0


def finished(formula: Formula, finish: str) -> Formula:
    """The codes, before they are rounded to E4M3, or the scale of what the formula gives: one stage more, which finds
    the largest magnitude."""
    codes, scale = _formulas(formula)
    return {CODES: codes, SCALE: scale}[finish]


def _formulas(formula: Formula) -> tuple[Formula, Formula]:
    program, numbers = formula
    largest, one, zero, least = ((CONSTANT, program.constants + k) for k in range(4))
    magnitude = (VALUE, program.values)
    ratio, none, scale = ((VALUE, program.values + k) for k in range(1, 4))
    free = 1 + max((to for _, _, to in program.steps), default=-1)
    result: Ref = program.result
    stage = Stage(
        (*program.steps, ("abs", (result,), free)),
        (("maximum", ALL, ((TEMP, free),)),),
        (
            ("div", (magnitude, largest)),
            ("eq", (magnitude, zero)),
            ("where", (none, one, ratio)),
        ),
    )
    steps: tuple[Step, ...] = (
        *program.steps,
        ("div", (one, scale), free),
        ("mul", (result, (TEMP, free)), free + 1),
        ("maximum", ((TEMP, free + 1), least), free + 2),
        ("minimum", ((TEMP, free + 2), largest), free + 3),
    )
    stages = (*program.stages, stage)
    constants = program.constants + 4
    all_numbers = (*numbers, _LARGEST, 1.0, 0.0, -_LARGEST)
    codes = Program(
        program.inputs, constants, steps, (TEMP, free + 3), stages, program.made, functions=program.functions
    )
    return Formula(codes, all_numbers), Formula(
        Program(program.inputs, constants, (), scale, stages, program.made, functions=program.functions), all_numbers
    )
