"""``scan`` on files that really run something, and on harmless ones: every one of the first kind is found, and none
of the second.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import warnings
import zlib

import numpy as np
import pytest
import torch
from attacks import Watch
from harmless_objects import NAMES, harmless
from pickle_builder import Memory, call, dict_of, name, pickled
from scan_corpus import hostile, run_all
from sdsurgery.formats.scan import scan_source

HOSTILE = hostile("/canary")


@pytest.mark.parametrize("name", HOSTILE)
def test_every_hostile_file_is_named(name):
    _, data = HOSTILE[name]
    with Watch():
        found = scan_source("x", Memory(data))
    assert found.verdict != "clean"
    assert list(found.findings())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each file gets a process of its own by fork")
def test_the_hostile_files_are_real(tmp_path):
    canary = tmp_path / "canary"
    ran = run_all(hostile(str(canary)), tmp_path, canary)
    assert sorted(set(HOSTILE) - ran) == []


def saved(value: object) -> dict[str, bytes]:
    """A value in every form in which it may lie on a disk."""
    forms = {}
    for protocol in range(6):
        forms[f"pickle {protocol}"] = pickle.dumps(value, protocol)
    for protocol in (2, 4, 5):
        for zipped in (True, False):
            out = io.BytesIO()
            torch.save(value, out, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
            forms[f"torch {protocol} {zipped}"] = out.getvalue()
    plain = forms["pickle 4"]
    forms |= {"gzip": gzip.compress(plain), "bz2": bz2.compress(plain), "xz": lzma.compress(plain)}
    forms |= {"zlib": zlib.compress(plain), "twice": plain + plain}
    boxed = np.empty(1, dtype=object)
    boxed[0] = value
    for form, save in {"npy": np.save, "npz": np.savez}.items():
        out = io.BytesIO()
        save(out, boxed)
        forms[form] = out.getvalue()
    return forms


@pytest.mark.parametrize("name", NAMES)
def test_harmless_objects_raise_no_alarm_in_any_form(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forms = saved(harmless()[name])
    findings = {form: list(scan_source("x", Memory(data)).findings()) for form, data in forms.items()}
    assert {form: found for form, found in findings.items() if found} == {}


def test_every_harmless_object_has_its_test() -> None:
    assert tuple(harmless()) == NAMES


def test_torchscript_raises_no_alarm():
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sizes = torch.jit.Attribute([1, 2], list[int])
            self.names = torch.jit.Attribute(["a"], list[str])
            self.table = torch.jit.Attribute({"b": 1.5}, dict[str, float])
            self.tensors = torch.jit.Attribute([torch.ones(2)], list[torch.Tensor])
            self.linear = torch.nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) + self.sizes[0]

    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Net()), out)
    found = scan_source("x", Memory(out.getvalue()))
    assert (found.kind, list(found.findings())) == ("TorchScript archive", [])


@pytest.mark.parametrize(
    ("module", "name"),
    [("mypackage.layers", "Block"), ("sklearn.tree._tree", "Tree"), ("operator", "add"), ("a", "b.c")],
)
def test_calls_of_what_is_not_known_cannot_be_judged(module, name):
    found = scan_source("x", Memory(pickled(call(module, name), protocol=4)))
    assert (found.verdict, found.unjudged, found.suspicious) == ("unjudged", [f"calls {module}.{name}"], False)
    named = scan_source("x", Memory(pickled(f"c{module}\n{name}\n".encode(), protocol=4)))
    assert named.verdict == "clean" and named.unknown == [f"{module}.{name}"]


def test_an_optimizer_s_state_that_is_a_named_object_cannot_be_judged():
    """torch calls ``state.get(parameter, [])`` of what the file names: ``requests.get`` for instance."""
    state = dict_of({"state": name("huggingface_hub.utils._http", "requests"), "defaults": b"}", "param_groups": b"]"})
    found = scan_source("x", Memory(pickled(name("torch.optim.adam", "Adam") + b")\x81" + state + b"b")))
    assert found.unjudged == ["sets the attribute state of torch.optim.adam.Adam"]
