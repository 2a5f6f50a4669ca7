"""The pickle machine: what it accepts becomes the same values as the real unpickler's, all else is refused by name."""

from __future__ import annotations

import collections
import math
import pickle
import pickletools
import subprocess
import sys

import pytest
from pickle_builder import call, dict_of, integer, list_of, name, pickled, stack_name, storage, text, tuple_of
from sdsurgery.errors import InputRefused
from sdsurgery.formats import pickle_machine as pm
from sdsurgery.formats.pickle_graph import MAX_NODES
from sdsurgery.formats.pickle_names import dangerous, modern_name
from sdsurgery.formats.pickle_text import render
from sdsurgery.formats.torch_pickle import parse, refuse_dangerous


def value_of(graph: pm.Graph, node: int):
    """The plain value of a shallow test graph."""
    kind, value = graph.kinds[node], graph.values[node]
    if kind in (pm.TUPLE, pm.LIST, pm.SET):
        make = {pm.TUPLE: tuple, pm.LIST: list, pm.SET: set}[kind]
        return make(value_of(graph, child) for child in value)
    if kind == pm.DICT:
        return {value_of(graph, key): value_of(graph, item) for key, item in zip(value[::2], value[1::2], strict=True)}
    return value


def load(data: bytes):
    graph, end = parse(data)
    assert end == len(data)
    return value_of(graph, graph.root)


VALUES = [
    None, True, False, 0, 1, 255, 256, 65535, 65536, -1, -128, 2**31 - 1, -(2**31), 2**31, 2**63 - 1, -(2**63),
    0.0, 1.5, -math.inf, "", "abc", "zażółć 😀", "x" * 300, b"", b"abc", b"\xff\x00", bytearray(b"xy"),
    (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1], list(range(2500)), ["shared"] * 5,
    {}, {"a": 1, "b": [2, {"c": (3,)}]}, {f"k{i}": i for i in range(2500)}, {"nested": {"deep": {"deeper": [[[1]]]}}},
    {1, 2, 3}, set(), frozenset({1, 2}),
]  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_plain_values_are_those_of_the_real_unpickler(value, protocol):
    data = pickle.dumps(value, protocol)
    assert load(data) == value
    python_pickler = pickle._dumps(value, protocol)  # emits other opcodes than the C pickler here and there
    assert load(python_pickler) == value


@pytest.mark.parametrize("protocol", [2, 4])
def test_ordered_and_default_dicts_become_dicts(protocol):
    value = collections.OrderedDict([("b", 1), ("a", 2)])
    assert list(load(pickle.dumps(value, protocol)).items()) == [("b", 1), ("a", 2)]
    assert load(pickle.dumps(collections.defaultdict(int, {"x": 1}), protocol)) == {"x": 1}
    assert load(pickle.dumps(collections.Counter("aab"), protocol)) == {"a": 2, "b": 1}


def test_an_ordered_dict_of_python_2_is_made_of_pairs():
    pairs = list_of(list_of(text("a"), integer(1)), list_of(text("b"), integer(2)))
    assert load(pickled(call("collections", "OrderedDict", pairs))) == {"a": 1, "b": 2}


def test_python_2_strings_are_text_when_ascii_and_bytes_otherwise():
    assert load(pickled(b"U\x03abc")) == "abc"
    assert load(pickled(b"T\x02\x00\x00\x00\xff\x00")) == b"\xff\x00"


@pytest.mark.parametrize("protocol", [2, 4])
def test_numpy_scalars_become_numbers_and_arrays_stay_opaque(protocol):
    import numpy

    value = {"f": numpy.float64(0.25), "i": numpy.int64(-7), "h": numpy.float16(2), "b": numpy.bool_(True)}
    assert load(pickle.dumps(value, protocol)) == {"f": 0.25, "i": -7, "h": 2.0, "b": True}
    big = numpy.array([1], dtype=">i4")[0]
    assert load(pickle.dumps(big, protocol)) == 1
    graph, _ = parse(pickle.dumps(numpy.arange(5), protocol))
    assert graph.kinds[graph.root] == pm.OPAQUE
    assert graph.values[graph.root].name == "numpy.ndarray"


ARRAYS = {
    "[0, 1, 2]": lambda np: np.arange(3),
    "[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]": lambda np: np.arange(6, dtype="f4").reshape(2, 3),
    "[1.5, -inf, nan]": lambda np: np.array([1.5, -np.inf, np.nan], dtype=">f8"),
    "[true, false]": lambda np: np.array([True, False]),
    "[[[7]]]": lambda np: np.array([[[7]]], dtype="u2"),
    "2.5": lambda np: np.array(2.5),
    "[]": lambda np: np.zeros((3, 0)),
    "<NumPy array f8 [1000]>": lambda np: np.zeros(1000),
    "<NumPy array f8 [2, 3]>": lambda np: np.asfortranarray(np.zeros((2, 3))),
    "<NumPy array ? [2]>": lambda np: np.array(["a", "b"]),
    "<NumPy array ? [1]>": lambda np: np.array([{}], dtype=object),
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("shown", ARRAYS)
def test_small_numpy_arrays_are_shown_as_numbers(shown, protocol):
    import numpy

    graph, _ = parse(pickle.dumps(ARRAYS[shown](numpy), protocol))
    assert render(graph, graph.root) == shown


def test_a_list_that_contains_itself_is_a_cycle_of_nodes():
    value: list[object] = []
    value.append(value)
    graph, _ = parse(pickle.dumps(value, 2))
    assert graph.values[graph.root] == [graph.root]
    assert len(render(graph, graph.root)) < 100


def test_a_tuple_that_contains_itself_uses_pop_and_is_accepted():
    inner: list[object] = []
    value = (inner,)
    inner.append(value)
    graph, _ = parse(pickle._dumps(value, 2))
    assert graph.kinds[graph.root] == pm.TUPLE


def test_the_memo_gives_references_not_copies():
    data = pickle.dumps([["big"] * 3] * 2, 2)
    graph, _ = parse(data)
    first, second = graph.values[graph.root]
    assert first == second


def test_integers_over_64_bit_and_long_texts_are_left_out_not_kept():
    graph, _ = parse(pickled(b"\x8a\x09" + bytes(9)))
    assert graph.kinds[graph.root] == pm.OMITTED
    graph, _ = parse(pickled(text("x" * (pm.MAX_TEXT + 1))))
    assert graph.values[graph.root] == f"a text of {pm.MAX_TEXT + 1} bytes"


def test_globals_are_labels_and_unknown_calls_are_opaque_with_their_arguments():
    data = pickled(call("my.package", "Thing", integer(3)), dict_of({"size": integer(4)}), b"b")
    graph, _ = parse(data)
    thing = graph.values[graph.root]
    assert graph.kinds[graph.root] == pm.OPAQUE
    assert thing.name == "my.package.Thing"
    assert value_of(graph, thing.args) == (3,)
    assert value_of(graph, thing.state) == {"size": 4}
    assert graph.called == {"my.package.Thing": 1}
    assert "my" not in sys.modules


def test_unknown_dict_and_list_classes_keep_their_items():
    graph, _ = parse(pickled(name("a", "B"), b")\x81(", text("k"), integer(1), b"u", text("l"), integer(2), b"s"))
    items = graph.values[graph.root].items
    assert [value_of(graph, node) for node in items] == ["k", 1, "l", 2]


# --- refusals --------------------------------------------------------------------------------------------------------

REFUSED = {
    "INST": b"(ios\nsystem\n",
    "OBJ": b"(cos\nsystem\no",
    "EXT1": b"\x82\x01",
    "EXT2": b"\x83\x01\x00",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "PERSID": b"Pabc\n",
    "INT": b"I1\n",
    "LONG": b"L1L\n",
    "FLOAT": b"F1.0\n",
    "STRING": b"S'x'\n",
    "UNICODE": b"Vx\n",
    "GET": b"g0\n",
    "PUT": b"Np0\n",
    "LIST": b"(l",
    "DICT": b"(d",
    "DUP": b"N2",
    "NEXT_BUFFER": b"\x97",
    "READONLY_BUFFER": b"N\x98",
}


@pytest.mark.parametrize("opcode", REFUSED)
def test_opcodes_that_torch_never_writes_are_refused_by_name(opcode):
    with pytest.raises(InputRefused, match=rf"opcode {opcode}\b.*not accepted"):
        parse(pickled(REFUSED[opcode]))


def test_every_opcode_of_pickletools_is_either_accepted_or_refused_by_name():
    accepted, refused = set(pm._ACCEPTED), set(pm.REFUSED)
    known = {ord(opcode.code) for opcode in pickletools.opcodes} - {ord(".")}
    assert accepted | refused == known
    assert accepted & refused == set()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cut off"),
        (b"\x80", "cut off"),
        (b"(lp0\n.", "of protocol 0 or 1, not of those that torch.save writes"),
        (b"\x80\x01N.", "of protocol 1, not of those"),
        (b"\x80\x06N.", "of protocol 6, not of those"),
        (b"\x80\x02\x80\x02N.", "a second time"),
        (pickled(), "more or less than one value"),
        (pickled(b"NN"), "more or less than one value"),
        (pickled(b"(N"), "more or less than one value"),
        (pickled(b"N0("), "more or less than one value"),
        (pickled(b"\xffN"), "0xff is not an opcode"),
        (pickled(b"h\x05N"), "memo"),
        (pickled(b"Rxx"), "empty stack"),
        (pickled(b"N\x86NN"), "empty stack"),
        (pickled(b"t"), "mark that was never set"),
        (pickled(b"N0N0a"), "empty stack"),
        (pickled(b"0"), "mark that was never set"),
        (pickled(b"Na"), "(empty stack|cut off)"),
        (pickled(b"}(Nu"), "key but no value"),
        (pickled(b"NNa"), "APPEND on a None"),
        (pickled(b"]NNs"), "SETITEM on a list"),
        (pickled(b"NNR"), "arguments are not a tuple"),
        (pickled(b"N)R"), "REDUCE of a None"),
        (pickled(b"N)\x81"), "NEWOBJ of a None"),
        (pickled(name("a", "b"), b"))\x92"), "not a dict"),
        (pickled(name("a", "b"), b"}b"), "BUILD on a class or function a.b"),
        (pickled(b"K\x01K\x02\x93"), "not a text"),
        (pickled(b"X\x02\x00\x00\x00\xff\xff"), "not UTF-8"),
        (pickled(b"\x8b\xff\xff\xff\xff"), "negative length"),
        (pickled(b"T\xff\xff\xff\xff"), "negative length"),
        (pickled(b"\x8d" + b"\xff" * 8), "more than the limit"),
        (pickled(b"B\xff\xff\xff\x7f"), "more than the limit"),
        (pickled(b"B\x00\x00\x00\x01"), "cut off"),
        (pickled(name("os", "path.join")), "dotted name"),
        (pickled(stack_name("os", "system.x")), "dotted name"),
        (pickled(name("os", "sys tem")), "not the name"),
        (pickled(name("", "x")), "not the name"),
        (pickled(b"c" + b"a" * 600 + b"\nb\n"), "longer than 512"),
        (pickled(b"NQ"), "persistent id"),
        (pickled(tuple_of(text("storage")), b"Q"), "persistent id"),
        (pickled(tuple_of(text("storage"), name("a", "FloatStorage"), text("0"), text("cpu"), integer(1)), b"Q"),
         "storage of an unknown type"),
    ],
)  # fmt: skip
def test_a_damaged_pickle_is_refused_in_one_line(data, reason):
    with pytest.raises(InputRefused, match=reason) as caught:
        parse(data)
    assert "\n" not in str(caught.value)


LIMITS = {
    "opcodes": (b"N0" * (pm.MAX_OPCODES // 2 + 1) + b"N", "opcodes"),
    "nodes": (b"]0" * MAX_NODES + b"N", "values"),
    "memo": (b"N" + b"".join(b"r" + i.to_bytes(4, "little") for i in range(pm.MAX_MEMO + 1)), "memo entries"),
    "marks": (b"(" * (pm.MAX_MARKS + 1), "marks"),
    "text": (text("é" * 30_000) * 1500, "MiB of text"),
    "copies": (list_of(*[b"N"] * 1000) + b"q\x00" + (name("builtins", "list") + b"h\x00\x85R0") * 3000, "copying"),
    "rank": (
        call("torch._utils", "_rebuild_tensor", storage("0", 1), b"K\x00", tuple_of(*[b"K\x01"] * 65), tuple_of()),
        "65 dimensions",
    ),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_limits_end_in_a_refusal(limit):
    body, reason = LIMITS[limit]
    with pytest.raises(InputRefused, match=reason):
        parse(pickled(body, protocol=4))


def test_a_million_laughs_by_memo_stay_small():
    """Ten references to ten references to …: 10^50 leaves when copied, 51 nodes here."""
    body = list_of(text("ha")) + b"\x94"
    for level in range(50):
        body += list_of(*[b"h" + bytes([level])] * 10) + b"\x94"
    graph, _ = parse(b"\x80\x04(" + body + b"t.")
    assert len(graph.values) < 200
    assert len(render(graph, graph.root)) < 5000


def test_deep_nesting_is_read_printed_and_freed_without_recursion():
    depth = 300_000
    for body in (b"N" + b"\x85" * depth, b"]" * 30_000 + b"a" * 29_999, name("a", "b") + b")R" + b"\x85" * depth):
        graph, _ = parse(pickled(body))
        assert len(render(graph, graph.root)) < 100
        del graph
    graph, _ = parse(pickled(name("a", "b") + b")R" * 100_000))  # the result of a call is called, over and over
    assert render(graph, graph.root) == "<a.b>"


def test_texts_from_the_file_cannot_reach_the_terminal_raw():
    graph, _ = parse(pickled(dict_of({"a\x1b[31m\u202e": text("line\nbreak")})))
    shown = render(graph, graph.root)
    assert shown.isprintable()
    assert "\x1b" not in shown and "\u202e" not in shown and "\n" not in shown


# --- dangerous names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "label",
    [
        "os.system", "posix.system", "nt.system", "subprocess.Popen", "sys.modules", "builtins.eval", "builtins.exec",
        "builtins.getattr", "builtins.__import__", "runpy.run_path", "ctypes.CDLL", "socket.socket", "pickle.loads",
        "importlib.import_module", "torch.load", "torch.hub.load", "numpy.load", "torch.storage._load_from_bytes",
        "os.path.join", "torch.utils.cpp_extension.load", "operator.attrgetter", "anything.at.all.system",
        "torch._utils.sys", "types.FunctionType", "webbrowser.open", "concurrent.futures.ThreadPoolExecutor",
    ],
)  # fmt: skip
def test_dangerous_names_are_recognised(label):
    assert dangerous(label)


@pytest.mark.parametrize(
    "label",
    [
        "torch._utils._rebuild_tensor_v2", "collections.OrderedDict", "torch.FloatStorage", "torch.float16",
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint", "numpy.ndarray", "builtins.set",
        "builtins.type",
        "omegaconf.dictconfig.DictConfig", "pathlib.PosixPath", "argparse.Namespace", "torch.nn.modules.linear.Linear",
        "torch.serialization._get_layout", "functools.partial", "torch.optim.adamw.AdamW", "datetime.datetime",
    ],
)  # fmt: skip
def test_names_of_everyday_checkpoints_are_not_dangerous(label):
    assert not dangerous(label)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (("__builtin__", "eval"), "builtins.eval"),
        (("__builtin__", "reduce"), "functools.reduce"),
        (("commands", "getoutput"), "subprocess.getoutput"),
        (("cPickle", "loads"), "pickle.loads"),
        (("copy_reg", "_reconstructor"), "copyreg._reconstructor"),
        (("urllib", "urlopen"), "urllib.request.urlopen"),
    ],
)
def test_python_2_names_are_mapped_before_they_are_judged(old, new):
    assert modern_name(*old) == new
    graph, _ = parse(pickled(name(*old)))
    assert list(graph.globals) == [new]


def test_python_2_names_map_as_the_real_unpickler_maps_them():
    import _compat_pickle

    for (module, attribute), new in _compat_pickle.NAME_MAPPING.items():
        assert modern_name(module, attribute) == ".".join(new)
    for module, new in _compat_pickle.IMPORT_MAPPING.items():
        assert modern_name(module, "x") == f"{new}.x"
        if new != "io":  # which has harmless classes too
            assert dangerous(f"{new}.x") == dangerous(modern_name(module, "x"))


def test_a_suspicious_pickle_is_refused_with_the_names_of_what_it_would_have_run():
    graph, _ = parse(pickled(tuple_of(call("os", "system", text("true")), call("builtins", "eval", text("1")))))
    with pytest.raises(InputRefused, match=r"could have run os\.system, builtins\.eval\..*allow_suspicious=True"):
        refuse_dangerous(graph)


def test_neither_pickle_nor_torch_is_ever_imported_by_the_package():
    body = call("pickle", "loads", b"C\x02N.") + call("torch", "load", text("x"))
    code = (
        "import sys, sdsurgery.formats.kinds.torch_zip, sdsurgery.formats.kinds.torch_legacy, sdsurgery.formats.scan\n"
        "from sdsurgery.formats.torch_pickle import parse\n"
        f"parse({pickled(tuple_of(body))!r})\n"
        "bad = {'pickle', '_pickle', 'torch', 'numpy', 'zipfile', 'tempfile', 'shutil'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
