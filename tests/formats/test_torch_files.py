"""Torch's files, in every form that torch writes: the tensors found are the tensors saved, byte for byte."""

from __future__ import annotations

import argparse
import collections
import os
import struct
import subprocess
import sys

import pytest
from pickle_builder import (
    MAGIC,
    Memory,
    call,
    dict_of,
    integer,
    legacy,
    name,
    pickled,
    storage,
    tensor,
    text,
    torch_zip,
    tuple_of,
    zipped,
)
from sdsurgery import formats
from sdsurgery.checkpoint import open_checkpoint
from sdsurgery.dtypes import BY_NAME
from sdsurgery.errors import InputRefused
from sdsurgery.formats import torch_zip_writer
from sdsurgery.formats.kinds import torch_legacy
from sdsurgery.formats.torch_tensors import MAX_BLOWUP
from torch_support import DTYPES, RECORD, check, elements, read, sample, saved, torch

FORMS = [("zip", 2), ("zip", 3), ("zip", 4), ("zip", 5), ("legacy", 2), ("legacy", 4), ("legacy", 5)]


@pytest.mark.parametrize(("form", "protocol"), FORMS)
def test_every_dtype_is_read_in_place(form, protocol):
    expected = {ours: sample(theirs, 3, 5) for ours, theirs in DTYPES.items()}
    found = check(saved(expected, form, protocol), expected)
    assert [info.dtype.name for info in found.tensors] == list(DTYPES)
    assert found.format == f"torch-{form}"


@pytest.mark.parametrize(("form", "protocol"), FORMS)
def test_views_parameters_and_odd_shapes_are_read_as_they_are(form, protocol):
    base = sample(torch.float32, 6, 8)
    base[:] = torch.arange(48.0).reshape(6, 8)
    tied = torch.nn.Parameter(torch.arange(4.0))
    expected = {
        "base": base,
        "transposed": base.t(),
        "rows": base[2:4],
        "column": base[:, 3],
        "every_other": base[::2, ::3],
        "permuted": base.reshape(2, 3, 8).permute(2, 0, 1),
        "expanded": torch.arange(3.0).expand(4, 3),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 7),
        "one": base[1:2, 2:3],
        "parameter": tied,
        "tied": tied,
        "buffer": torch.nn.Buffer(torch.ones(2)),
        "half": torch.arange(5.0).bfloat16(),
    }
    found = check(saved({"state_dict": expected}, form, protocol), expected)
    strided = {info.name for info in found.tensors if info.strides is not None}
    assert strided == {"transposed", "column", "every_other", "permuted", "expanded"}
    by_name = {info.name: info for info in found.tensors}
    assert by_name["parameter"].offset == by_name["tied"].offset
    assert any("sharing data" in note for note in found.notes)


class ModelCheckpoint:
    """Stands for a Lightning callback: a class that is not in any table."""

    def __init__(self) -> None:
        self.best, self.scores = "x.ckpt", [0.5, 0.25]


class AttributeDict(dict):
    """Stands for Lightning's dict of hyper-parameters."""


def lightning() -> tuple[dict[str, object], dict[str, torch.Tensor]]:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    state = model.state_dict()
    nest = {
        "epoch": 3,
        "global_step": 1200,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": state,
        "callbacks": {ModelCheckpoint: {"best": torch.tensor(1.0), "seen": ModelCheckpoint()}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "hyper_parameters": AttributeDict(lr=1e-4, args=argparse.Namespace(size=512, name="v1"), when=[1, None, True]),
        "monitor": ModelCheckpoint(),
    }
    return nest, dict(state)


@pytest.mark.parametrize(("form", "protocol"), FORMS)
def test_a_lightning_checkpoint_gives_its_weights_and_a_summary_of_the_rest(form, protocol):
    nest, expected = lightning()
    found = check(saved(nest, form, protocol), expected)
    assert found.metadata["ckpt.epoch"] == "3"
    assert found.metadata["ckpt.pytorch-lightning_version"] == "1.4.2"
    assert "0.0001" in found.metadata["ckpt.hyper_parameters"]
    assert "512" in found.metadata["ckpt.hyper_parameters"]
    assert not any(key.startswith("ckpt.optimizer") for key in found.metadata)
    notes = "\n".join(found.notes)
    assert "'state_dict'" in notes
    assert "optimizer_states" in notes and "callbacks" in notes
    assert "ModelCheckpoint" in notes


@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda state: state, []),
        (lambda state: {"model": state, "optimizer": {"a": torch.ones(1)}}, ["model"]),
        (lambda state: {"module": state, "epoch": 1}, ["module"]),
        (lambda state: {"model": {"state_dict": state}}, ["model", "state_dict"]),
        (lambda state: {"state_dict": {"model": state}}, ["state_dict", "model"]),
        (lambda state: {"params_ema": state}, ["params_ema"]),
        (collections.OrderedDict, []),
        (AttributeDict, []),
    ],
)
def test_nested_state_dicts_are_unwrapped(wrap, path):
    expected = {"a.weight": torch.arange(6.0), "b.bias": torch.ones(2)}
    found = check(saved(wrap(expected)), expected)
    assert (found.notes[:1] == ["weights read from " + " → ".join(f"'{key}'" for key in path)]) is bool(path)


def test_other_nests_are_flattened_into_dotted_names():
    value, other = torch.arange(3.0), torch.ones(2)
    embedding = {"string_to_token": {"*": 265}, "string_to_param": {"*": value}, "name": "cat", "step": 500}
    found = check(saved(embedding), {"string_to_param.*": value})
    assert found.metadata["ckpt.name"] == "cat"
    check(saved({768: [{"w": value}, other], "step": 1}), {"768.0.w": value, "768.1": other})
    check(saved([value, other]), {"0": value, "1": other})
    check(saved(value), {"tensor": value})
    parameters = torch.nn.ParameterDict({"k": torch.nn.Parameter(value)})
    check(saved({"string_to_param": parameters}), {"string_to_param.k": value})


def test_an_empty_state_dict_is_an_empty_checkpoint():
    assert read(saved({})).tensors == []
    assert read(saved({"state_dict": {}})).tensors == []


def test_later_values_of_a_key_win_as_in_python():
    body = dict_of([(text("a"), tensor((6,), (1,))), (text("b"), tensor((2,), (1,))), (text("a"), tensor((3,), (1,)))])
    found = read(torch_zip(pickled(body), {"0": RECORD}))
    assert [(info.name, info.shape) for info in found.tensors] == [("a", (3,)), ("b", (2,))]


# --- tensors that cannot be read --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: torch.ones(2, dtype=torch.complex32), "complex"),
        (lambda: torch.ones(2, dtype=torch.complex128), "complex"),
        (lambda: torch.eye(3).to_sparse(), "sparse"),
        (lambda: torch.eye(3).to_sparse_csr(), "sparse"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantised"),
        (lambda: torch.ones(3, device="meta"), "meta"),
        (lambda: torch.ones(2, dtype=torch.complex64).conj().imag, "negated"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
    ],
)
def test_unreadable_tensors_are_named_and_do_not_stop_the_others(make, reason, form):
    good = torch.arange(4.0)
    found = check(saved({"good": good, "bad": make(), "also": good + 1}, form), {"good": good, "also": good + 1})
    assert list(found.unusable) == ["bad"]
    assert reason in found.unusable["bad"]
    assert any("'bad'" in note for note in found.notes)


BAD_TENSORS = {
    "past the end": (tensor((7,), (1,)), "reaches element 6 of a storage of 6"),
    "offset past the end": (tensor((3,), (1,), offset=4), "reaches element 6"),
    "stride past the end": (tensor((2, 2), (5, 1)), "reaches element 6"),
    "negative size": (tensor((-1,), (1,)), "negative"),
    "negative stride": (tensor((2,), (-1,)), "negative"),
    "negative offset": (tensor((2,), (1,), offset=-1), "negative"),
    "64-bit overflow": (tensor((2**62, 2**62), (2**62, 1)), "reaches element"),
    "more sizes than strides": (tensor((1, 1), (1,)), "damaged tensor"),
    "65 dimensions": (tensor((1,) * 65, (1,) * 65), "65 dimensions"),
    "stride-0 blow-up": (tensor((MAX_BLOWUP, 2), (0, 1)), "overlapping"),
    "storage larger than its record": (tensor((6,), (1,), numel=7), "24 bytes; its 7 elements"),
    "storage smaller than its record": (tensor((5,), (1,), numel=5), "24 bytes; its 5 elements"),
    "another element size": (tensor((6,), (1,), kind="DoubleStorage"), "24 bytes"),
    "missing record": (tensor((6,), (1,), key="nope"), "'nope' is missing"),
    "unknown storage type": (tensor((6,), (1,), kind="OtherStorage"), "unknown type"),
    "no storage": (call("torch._utils", "_rebuild_tensor", b"N", b"N", b")", b")"), "no storage"),
    "shape of texts": (
        call("torch._utils", "_rebuild_tensor", storage("0", 6), integer(0), tuple_of(text("x")), b")"),
        "damaged tensor shape",
    ),
    "too few arguments": (call("torch._utils", "_rebuild_tensor_v2", storage("0", 6)), "no storage"),
    "a shape over 64 bit": (
        call("torch._utils", "_rebuild_tensor", storage("0", 6), integer(0), tuple_of(integer(2**70)), b"K\x01\x85"),
        "damaged tensor shape",
    ),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_a_tensor_outside_its_storage_is_refused_in_both_forms(case):
    body, reason = BAD_TENSORS[case]
    with pytest.raises(InputRefused, match=reason):
        read(torch_zip(pickled(dict_of({"w": body})), {"0": RECORD}))
    if "record" not in case:
        with pytest.raises(InputRefused, match=reason.replace("24 bytes", ".*")):
            read(legacy(pickled(dict_of({"w": body})), {"0": (6, RECORD)}))


def test_the_refusal_names_the_tensor_and_escapes_it():
    body = dict_of({"good": tensor((6,), (1,)), "evil\x1b[2J": tensor((7,), (1,))})
    with pytest.raises(InputRefused, match=r"tensor 'evil\\x1b\[2J'"):
        read(torch_zip(pickled(body), {"0": RECORD}))


def test_bad_tensors_outside_the_state_dict_do_not_matter():
    body = dict_of({"state_dict": dict_of({"a": tensor((6,), (1,))}), "optimizer": dict_of({"b": tensor((9,), (1,))})})
    assert [info.name for info in read(torch_zip(pickled(body), {"0": RECORD})).tensors] == ["a"]


def test_a_conjugation_flag_makes_a_tensor_unreadable():
    flags = dict_of({"conj": b"\x88"})
    found = read(torch_zip(pickled(dict_of({"w": tensor((6,), (1,), flags=flags)})), {"0": RECORD}))
    assert "conjugated" in found.unusable["w"]


# --- what is refused with advice -------------------------------------------------------------------------------------


def test_a_whole_pickled_module_is_refused_with_advice():
    for value in (torch.nn.Linear(2, 3), {"model": torch.nn.Linear(2, 3), "epoch": 1}):
        with pytest.raises(InputRefused, match=r"whole pickled module .*Linear.*state_dict\(\)"):
            read(saved(value))


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_archive_is_refused_with_advice(tmp_path):
    path = str(tmp_path / "script.pt")
    torch.jit.script(torch.nn.Linear(2, 3)).save(path)
    with pytest.raises(InputRefused, match=r"TorchScript.*torch\.save"), open_checkpoint(path):
        pass


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (zipped({"a.txt": b"x"}), "not one that torch.save wrote"),
        (zipped({"model/weights.npy": b"x"}), "has no model/data.pkl"),
        (zipped({}), "not one that torch.save wrote"),
        (pickled(dict_of({"a": integer(1)})), "a plain pickle"),
        (b"pickle".ljust(257, b"\0") + b"ustar".ljust(255, b"\0"), "tar archive"),
        (saved({"a": 1}), "holds no tensors .*its keys: a"),
        (saved("text"), "holds no tensors .*text"),
        (legacy(pickled(dict_of({"a": tensor((6,), (1,))})), {"0": (6, RECORD)}, little=False), "big-endian"),
        (torch_zip(b"(lp0\n.", {}), "of protocol 0 or 1"),
        (MAGIC + pickled(integer(1000)), "protocol version"),
        (MAGIC + pickled(integer(1001)) + pickled(b"N"), "system information"),
    ],
)
def test_other_files_get_a_clear_refusal(data, reason):
    with pytest.raises(InputRefused, match=reason) as caught:
        read(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("archive/DATA/0", "differ in case only"),
        ("archive/Version", "differ in case only"),
        ("other/readme", "outside the archive's folder 'archive'"),
        ("readme", "outside the archive's folder"),
        ("archive/x/data.pkl", "a second data.pkl"),
        ("archive/x/Data.PKL", "a second data.pkl"),
    ],
)
def test_entries_that_torch_could_take_for_others_are_refused(entry, reason):
    pickle = pickled(dict_of({"w": tensor((6,), (1,))}))
    whole = {"archive/data.pkl": pickle, "archive/data/0": RECORD, "archive/version": b"3\n"}
    assert len(read(zipped(whole)).tensors) == 1
    with pytest.raises(InputRefused, match=reason):
        read(zipped(whole | {entry: bytes(24)}))


@pytest.mark.parametrize("which", range(5))
def test_a_dangerous_name_in_any_pickle_of_a_legacy_stream_is_refused(which):
    good = legacy(pickled(dict_of({"w": tensor((6,), (1,))})), {"0": (6, RECORD)})
    bodies = [
        MAGIC[2:-1], integer(1001), dict_of({"little_endian": b"\x88"}), dict_of({"w": tensor((6,), (1,))}),
        b"](" + text("0") + b"e",
    ]  # fmt: skip
    stream = [pickled(body) for body in bodies]
    assert good.startswith(b"".join(stream))
    stream[which] = pickled(name("os", "system") + b"0" + bodies[which])
    data = b"".join(stream) + good[len(b"".join(map(pickled, bodies))) :]
    if which:
        with pytest.raises(InputRefused, match=r"suspicious: torch.load could have run os\.system"):
            read(data)
        assert len(read(data, allow_suspicious=True).tensors) == 1
    else:  # the number is not where the first bytes are looked for: not a stream of torch for this reader
        with pytest.raises(InputRefused, match="suspicious"):
            read(data)


def test_uninitialised_parameters_are_listed():
    value = {"lazy": torch.nn.LazyLinear(3).weight, "w": torch.ones(2)}
    for form in ("zip", "legacy"):
        found = read(saved(value, form))
        assert list(found.unusable) == ["lazy"] and "not initialised" in found.unusable["lazy"]
        assert [info.name for info in found.tensors] == ["w"]


def test_byte_orders():
    pickle = pickled(dict_of({"w": tensor((6,), (1,))}))
    assert len(read(torch_zip(pickle, {"0": RECORD}, byteorder=b"little")).tensors) == 1
    assert len(read(torch_zip(pickle, {"0": RECORD})).tensors) == 1  # old files have no such record
    with pytest.raises(InputRefused, match="big-endian"):
        read(torch_zip(pickle, {"0": RECORD}, byteorder=b"big"))
    with pytest.raises(InputRefused, match="byteorder record"):
        read(torch_zip(pickle, {"0": RECORD}, byteorder=b"middle"))


# --- legacy streams --------------------------------------------------------------------------------------------------


def test_storages_and_keys_of_a_legacy_stream_must_match():
    pickle = pickled(dict_of({"w": tensor((6,), (1,))}))
    good = legacy(pickle, {"0": (6, RECORD)})
    assert elements(good, read(good).tensors[0]) == RECORD
    with pytest.raises(InputRefused, match="'0' is missing from the list"):
        read(legacy(pickle, {}))
    with pytest.raises(InputRefused, match="'1' is listed, but nothing"):
        read(legacy(pickle, {"0": (6, RECORD), "1": (6, RECORD)}))
    with pytest.raises(InputRefused, match="has 5 elements; 6 are expected"):
        read(legacy(pickle, {"0": (5, RECORD)}))
    with pytest.raises(InputRefused, match="cut off"):
        read(good[:-1])
    assert "1 bytes behind" in "\n".join(read(good + b"x").notes)


def test_storage_views_of_very_old_files_shift_the_tensor():
    view = tuple_of(text("v"), integer(2), integer(3))
    body = call(
        "torch._utils", "_rebuild_tensor", storage("0", 6, "FloatStorage", view), integer(1), b"K\x02\x85", b"K\x01\x85"
    )
    data = legacy(pickled(dict_of({"w": body})), {"0": (6, RECORD)})
    assert elements(data, read(data).tensors[0]) == RECORD[12:20]
    outside = tuple_of(text("v"), integer(5), integer(3))
    body = call(
        "torch._utils",
        "_rebuild_tensor",
        storage("0", 6, "FloatStorage", outside),
        integer(0),
        b"K\x01\x85",
        b"K\x01\x85",
    )
    with pytest.raises(InputRefused, match="leaves a storage"):
        read(legacy(pickled(dict_of({"w": body})), {"0": (6, RECORD)}))


def test_a_legacy_pickle_larger_than_the_first_window_is_read():
    many = {f"layer.{i}.{'x' * 400}": torch.full((1,), float(i)) for i in range(5000)}
    data = saved(many, "legacy")
    assert data.index(b"layer.4999") > torch_legacy.WINDOWS[0]
    check(data, many)


def test_the_subclass_wrapper_of_old_files_is_understood():
    inner = tuple_of(
        storage("0", 6), integer(0), b"K\x06\x85", b"K\x01\x85", b"\x89", call("collections", "OrderedDict")
    )
    body = call(
        "torch._tensor",
        "_rebuild_from_type_v2",
        name("torch._utils", "_rebuild_tensor_v2"),
        name("my", "Tensor"),
        inner,
        b"}",
    )
    found = read(torch_zip(pickled(dict_of({"w": body})), {"0": RECORD}))
    assert found.tensors[0].shape == (6,)


# --- truncation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_file_cut_anywhere_is_refused_in_one_line(form):
    nest, _ = lightning()
    nest["state_dict"]["big"] = torch.zeros(3000)
    data = saved(nest, form)
    cuts = {*range(1000, len(data), 1000), *range(0, len(data), 101), len(data) - 1}
    for cut in cuts:
        source = Memory(data[:cut])
        reader = formats.recognise(source)
        if reader is None:
            continue
        with pytest.raises(InputRefused) as caught:
            reader.read(source)
        assert "\n" not in str(caught.value)


# --- content decides -------------------------------------------------------------------------------------------------


def test_the_suffix_does_not_decide_the_format(tmp_path):
    import safetensors.torch as safetensors

    value = torch.arange(4.0)
    (tmp_path / "a.ckpt").write_bytes(safetensors.save({"w": value}))
    (tmp_path / "b.safetensors").write_bytes(saved({"w": value}))
    (tmp_path / "c.safetensors").write_bytes(saved({"w": value}, "legacy"))
    for file, kind in (("a.ckpt", "safetensors"), ("b.safetensors", "torch-zip"), ("c.safetensors", "torch-legacy")):
        with open_checkpoint(tmp_path / file) as checkpoint:
            assert checkpoint.format == kind
            assert checkpoint.keys() == ["w"]


# --- size ------------------------------------------------------------------------------------------------------------

PROBE = """
import sys
from sdsurgery.checkpoint import open_checkpoint
with open_checkpoint(sys.argv[1]) as checkpoint:
    print(len(checkpoint), checkpoint.info(checkpoint.keys()[-1]).offset)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def probe(path: object) -> tuple[list[int], int]:
    """What a fresh process prints, and the most memory it held (its own peak: ru_maxrss would begin with ours)."""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("the peak of a process is read from /proc")
    done = subprocess.run([sys.executable, "-c", PROBE, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *numbers, memory = map(int, done.stdout.split())
    return numbers, memory << 10


def ema_names() -> list[str]:
    return [f"model.diffusion_model.input_blocks.{i}.1.transformer_blocks.0.attn1.to_q.weight" for i in range(1831)]


def test_the_structure_of_a_7_gb_checkpoint_fits_in_64_mb(tmp_path):
    tensors = [(key, BY_NAME["F32"], (1024, 1027)) for key in ema_names()]
    plan = torch_zip_writer.layout(tensors)
    assert plan.total > 7_700_000_000
    path = tmp_path / "ema.ckpt"
    with open(path, "wb") as file:
        file.truncate(plan.total)
        for offset, piece in plan.finish([0] * len(plan.records)):
            file.seek(offset)
            file.write(piece)
    numbers, memory = probe(path)
    assert numbers == [1831, plan.offsets[-1]]
    assert memory < 64 << 20


def test_the_structure_of_a_7_gb_legacy_stream_fits_in_64_mb(tmp_path):
    count, numel = 1831, 1024 * 1027
    body = dict_of({key: tensor((1024, 1027), (1027, 1), key=str(i), numel=numel) for i, key in enumerate(ema_names())})
    head = legacy(pickled(body), {str(i): (numel, b"") for i in range(count)})[: -8 * count]
    path = tmp_path / "ema.ckpt"
    with open(path, "wb") as file:
        file.write(head)
        for i in range(count):
            file.seek(len(head) + i * (8 + 4 * numel))
            file.write(struct.pack("<q", numel))
        file.truncate(len(head) + count * (8 + 4 * numel))
    numbers, memory = probe(path)
    assert numbers == [1831, len(head) + (count - 1) * (8 + 4 * numel) + 8]
    assert memory < 64 << 20
