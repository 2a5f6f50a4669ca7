"""``records.dataclass`` means what the standard library's means, for everything that it is used for here."""

from __future__ import annotations

import dataclasses
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from sdsurgery import records

OURS = SimpleNamespace(dataclass=records.dataclass, field=records.field, replace=records.replace, asdict=records.asdict)


def _classes(of: Any) -> tuple[type, type]:
    @of.dataclass(frozen=True)
    class Base:
        a: int
        b: str = "b"
        c: list = of.field(default_factory=list)

    @of.dataclass(frozen=True)
    class Derived(Base):
        d: int = of.field(init=False, default=7)
        e: int = 5

        def __post_init__(self) -> None:
            object.__setattr__(self, "d", self.a * 2)

    return Base, Derived


def test_help_shows_the_fields_as_of_the_standard_library() -> None:
    for ours, standard in zip(_classes(OURS), _classes(dataclasses), strict=True):
        shown, right = (inspect.signature(cls).parameters.values() for cls in (ours, standard))
        for mine, expected in zip(shown, right, strict=True):
            factory = expected.name == "c"  # theirs has an object of its own as default
            assert mine.replace(default=list) == expected.replace(default=list) if factory else mine == expected


GIVEN: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((1,), {}),
    ((1, "x"), {}),
    ((1, "x", [3]), {}),
    ((), {"a": 1}),
    ((1,), {"c": [2], "b": "y"}),
    ((), {}),  # from here on: mistakes
    ((), {"b": "x"}),
    ((1,), {"a": 2}),
    ((1,), {"nonsense": 2}),
    ((1, "x", [], 4, 5, 6), {}),
    ((1,), {"d": 3}),
]


@pytest.mark.parametrize("which", [0, 1], ids=["base", "derived"])
@pytest.mark.parametrize(("given", "named"), GIVEN)
def test_instances_are_made_as_by_the_standard_library(which: int, given: Any, named: Any) -> None:
    made = []
    for of in (OURS, dataclasses):
        cls = _classes(of)[which]
        try:
            record = cls(*given, **dict(named))
        except TypeError:
            made.append(None)
            continue
        assert record == cls(*given, **dict(named))
        made.append((of.asdict(record), of.asdict(of.replace(record, a=3))))
    assert made[0] == made[1]


def test_every_instance_has_a_list_of_its_own() -> None:
    base, _ = _classes(OURS)
    assert base(1).c is not base(1).c


def test_frozen_records_refuse_changes() -> None:
    base, _ = _classes(OURS)
    with pytest.raises(AttributeError):
        base(1).a = 2
    with pytest.raises(AttributeError):
        del base(1).a
