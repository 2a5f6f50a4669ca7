"""The joints: an outline is placed once by its format, and the Plan is a value that knows numbers only."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import pytest
import sdsurgery
from sdsurgery import plan as plan_module
from sdsurgery.errors import InputRefused
from sdsurgery.formats import Writer, writers
from sdsurgery.methods import get
from sdsurgery.outline import Outline
from sdsurgery.surgery.common import Settings, open_all
from sdsurgery.surgery.merge import plan_merge


@pytest.fixture
def outline(trio: list[Path]) -> Outline:
    settings = Settings()
    method = get("add-diff")
    return plan_merge(
        method, open_all(trio, settings), method.bind(3, {"alpha": 0.3}), settings, recipe={}, blocks="GRAD_V"
    )


@pytest.mark.parametrize("writer", list(writers()), ids=lambda writer: writer.name)
def test_a_plan_is_a_value(outline: Outline, writer: Writer) -> None:
    plan = outline.placed(writer).plan
    again = pickle.loads(pickle.dumps(plan))
    assert again == plan and hash(again) == hash(plan) and again == outline.placed(writer).plan
    assert "Job(" in repr(plan) and "lambda" not in repr(plan)
    with pytest.raises(AttributeError):
        plan.size = 1  # type: ignore[misc]


def test_a_plan_holds_no_names(outline: Outline) -> None:
    text = repr(outline.placed(next(writers())).plan)
    assert all(piece.name not in text for piece in outline.pieces)


def test_block_weights_share_one_program_and_each_job_has_its_numbers(outline: Outline) -> None:
    plan = outline.placed(next(writers())).plan
    assert len([program for program in plan.programs if isinstance(program, plan_module.Program)]) == 1
    numbers = {job.numbers for job in plan.jobs if job.program is not None}
    assert len(numbers) > 5 and all(len(each) == 1 for each in numbers)


def test_the_plan_s_module_knows_no_outline_no_checkpoint_and_no_layout() -> None:
    tree = ast.parse(Path(plan_module.__file__).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level}
    assert imported == {
        "dtypes",
        "operands.encoding",
        "operands.low_rank",
        "operands.mixing",
        "operands.view",
        "program",
    }


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_every_backend_names_the_tensor_of_a_failure_in_the_same_words(tmp_path: Path, backend: str) -> None:
    import numpy as np
    import safetensors.numpy as numpy_files

    for name in "ab":
        numpy_files.save_file({"w": np.array([1, np.inf], np.float32)}, tmp_path / f"{name}.safetensors")
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    with pytest.raises(InputRefused) as caught:
        sdsurgery.merge("weighted-sum", files, out=tmp_path / "c.safetensors", on_nonfinite="error", backend=backend)
    assert str(caught.value).startswith("tensor 'w': NaN or Inf in an input")
