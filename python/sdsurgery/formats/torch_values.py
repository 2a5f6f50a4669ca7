"""The closed table: every class and function in a pickle that means something here, and what it becomes.

``TABLE`` maps a name to a handler that builds plain values in the graph; nothing is imported or called by name. A name
that is in neither ``TABLE`` nor ``STORAGE_TYPES`` nor ``DTYPES`` gives an opaque value. The signatures are those of
``torch._utils``, ``torch._tensor`` and ``torch.serialization`` of PyTorch 2.13 (which loads older files too), read as
documentation.
"""

from __future__ import annotations

from typing import NamedTuple

from ..dtypes import BY_NAME, TORCH, DType
from ..errors import InputRefused
from .numpy_values import ARRAY, DTYPE, scalar
from .pickle_graph import (
    BYTES,
    DICT,
    GLOBAL,
    INT,
    LIST,
    MAX_BYTES,
    NONE,
    NONE_NODE,
    OMITTED,
    SET,
    STORAGE,
    TENSOR,
    TEXT,
    TUPLE,
    Graph,
    Handler,
)

# torch's dtypes by attribute name; None for those that no format here has a name for.
DTYPES: dict[str, DType | None] = {f"torch.{word}": BY_NAME[name] for name, word in TORCH.items()}
DTYPES |= {
    f"torch.{other}": DTYPES[f"torch.{word}"]
    for other, word in {
        "double": "float64", "float": "float32", "half": "float16", "long": "int64", "int": "int32", "short": "int16",
        "cfloat": "complex64",
    }.items()
}  # fmt: skip
DTYPES |= dict.fromkeys((
    "torch.float4_e2m1fn_x2", "torch.complex32", "torch.chalf", "torch.complex128", "torch.cdouble", "torch.quint8",
    "torch.qint8", "torch.qint32", "torch.quint4x2", "torch.quint2x4", "torch.bits8", "torch.bits16", "torch.bits1x8",
    "torch.bits2x4", "torch.bits4x2",
))  # fmt: skip

# Storage classes by the last part of their name (torch looks at nothing else): (bytes of an element, torch's dtype).
STORAGE_TYPES: dict[str, tuple[int, str]] = {
    "DoubleStorage": (8, "torch.float64"),
    "FloatStorage": (4, "torch.float32"),
    "HalfStorage": (2, "torch.float16"),
    "BFloat16Storage": (2, "torch.bfloat16"),
    "LongStorage": (8, "torch.int64"),
    "IntStorage": (4, "torch.int32"),
    "ShortStorage": (2, "torch.int16"),
    "CharStorage": (1, "torch.int8"),
    "ByteStorage": (1, "torch.uint8"),
    "BoolStorage": (1, "torch.bool"),
    "UntypedStorage": (1, "torch.uint8"),
    "_UntypedStorage": (1, "torch.uint8"),
    "ComplexFloatStorage": (8, "torch.complex64"),
    "ComplexDoubleStorage": (16, "torch.complex128"),
    "QUInt8Storage": (1, "torch.quint8"),
    "QInt8Storage": (1, "torch.qint8"),
    "QInt32Storage": (4, "torch.qint32"),
    "QUInt4x2Storage": (1, "torch.quint4x2"),
    "QUInt2x4Storage": (1, "torch.quint2x4"),
}


class Storage(NamedTuple):
    """A storage that a persistent id names. ``view`` is (key, first element, elements) in old files with storage
    views.
    """

    key: str
    itemsize: int
    dtype: str
    numel: int
    view: tuple[str, int, int] | None


class Tensor(NamedTuple):
    """A tensor as the pickle describes it, not checked yet. ``offset`` and ``stride`` count elements.

    ``unusable`` is empty, or says why it cannot be read (sparse, quantised, …); then only ``dtype`` may be set.
    """

    storage: Storage | None
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str
    unusable: str = ""


# --- tensors ---------------------------------------------------------------------------------------------------------


def _malformed(what: str) -> InputRefused:
    return InputRefused(f"pickle: a damaged {what}")


def _int(graph: Graph, node: int, what: str) -> int:
    if graph.kinds[node] != INT:
        raise _malformed(what)
    return graph.values[node]


def _ints(graph: Graph, node: int, what: str) -> tuple[int, ...]:
    if graph.kinds[node] not in (TUPLE, LIST):
        raise _malformed(what)
    items = graph.values[node]
    if len(items) > 64:
        raise InputRefused(f"pickle: a tensor of {len(items)} dimensions; at most 64 are accepted")
    graph.charge(len(items))
    return tuple([_int(graph, item, what) for item in items])


def _rebuild_tensor(graph: Graph, args: list[int]) -> int:
    return _strided(graph, args, None, None)


def _rebuild_tensor_v2(graph: Graph, args: list[int]) -> int:
    return _strided(graph, args, None, args[6] if len(args) > 6 else None)


def _rebuild_tensor_v3(graph: Graph, args: list[int]) -> int:
    if len(args) < 7 or graph.kinds[args[6]] != GLOBAL:
        raise _malformed("tensor (its dtype is missing)")
    return _strided(graph, args, graph.values[args[6]], args[7] if len(args) > 7 else None)


def _strided(graph: Graph, args: list[int], dtype: str | None, flags: int | None) -> int:
    """(storage, storage_offset, size, stride, …); ``flags`` is the dict that says if it is conjugated or negated."""
    if len(args) < 4 or graph.kinds[args[0]] != STORAGE:
        raise _malformed("tensor (it has no storage)")
    storage: Storage = graph.values[args[0]]
    shape, stride = _ints(graph, args[2], "tensor shape"), _ints(graph, args[3], "tensor stride")
    if len(shape) != len(stride):
        raise _malformed("tensor (as many strides as dimensions are expected)")
    flagged = flags is not None and graph.kinds[flags] == DICT and bool(graph.values[flags])
    dtype = dtype or storage.dtype
    tensor = Tensor(
        storage,
        _int(graph, args[1], "tensor offset"),
        shape,
        stride,
        dtype,
        "a conjugated or negated view" if flagged else _unusable_dtype(dtype),
    )
    return graph.add(TENSOR, tensor)


def _unusable_dtype(dtype: str) -> str:
    if DTYPES.get(dtype):
        return ""
    word = "complex" if "complex" in dtype else "quantised" if "torch.q" in dtype else "unsupported"
    return f"{word} ({dtype})"


def _unusable(reason: str) -> Handler:
    def handler(graph: Graph, args: list[int]) -> int:
        return graph.add(TENSOR, Tensor(None, 0, (), (), "", reason))

    return handler


def _first_argument(graph: Graph, args: list[int]) -> int:
    """A Parameter is its tensor; gradients, hooks and Python attributes are not data."""
    return args[0] if args else NONE_NODE


def _rebuild_from_type(graph: Graph, args: list[int]) -> int:
    """(function, subclass, its arguments, state): the tensor that the function gives, of whatever subclass."""
    if len(args) < 3 or graph.kinds[args[0]] != GLOBAL or graph.kinds[args[2]] != TUPLE:
        raise _malformed("tensor of a subclass")
    handler = TENSOR_TABLE.get(graph.values[args[0]])
    if handler is None:
        return graph.add(TENSOR, Tensor(None, 0, (), (), "", f"made by {graph.describe(args[0])}"))
    return handler(graph, graph.values[args[2]])


# --- containers and scalars ------------------------------------------------------------------------------------------


def _copy(graph: Graph, kind: int, args: list[int]) -> int:
    """A container made from another one's items."""
    if not args or graph.kinds[args[0]] not in (TUPLE, LIST, SET):
        return graph.add(kind, [])
    items = graph.values[args[0]]
    graph.charge(len(items))
    return graph.add(kind, list(items))


def _list(graph: Graph, args: list[int]) -> int:
    return _copy(graph, LIST, args)


def _tuple(graph: Graph, args: list[int]) -> int:
    return _copy(graph, TUPLE, args)


def _set(graph: Graph, args: list[int]) -> int:
    return _copy(graph, SET, args)


def _dict(graph: Graph, args: list[int]) -> int:
    """A dict from another one, or from pairs (so Python 2 stores an OrderedDict)."""
    if not args:
        return graph.add(DICT, [])
    kind, items = graph.kinds[args[0]], graph.values[args[0]]
    if kind == DICT:
        graph.charge(len(items))
        return graph.add(DICT, list(items))
    flat: list[int] = []
    if kind in (LIST, TUPLE):
        graph.charge(2 * len(items))
        for pair in items:
            if graph.kinds[pair] not in (LIST, TUPLE) or len(graph.values[pair]) != 2:
                raise _malformed("dict (pairs of key and value are expected)")
            flat += graph.values[pair]
    return graph.add(DICT, flat)


def _defaultdict(graph: Graph, args: list[int]) -> int:
    return _dict(graph, args[1:])


def _device(graph: Graph, args: list[int]) -> int:
    """('cuda', 0) is the text cuda:0."""
    parts = [str(graph.values[node])[:32] for node in args if graph.kinds[node] in (TEXT, INT)]
    return graph.text(":".join(parts).encode("utf-8", "replace"))


def _encode(graph: Graph, args: list[int]) -> int:
    """_codecs.encode(text, 'latin1'): how protocol 2 stores a byte string."""
    if not args or graph.kinds[args[0]] not in (TEXT, OMITTED):
        raise _malformed("byte string")
    text = graph.values[args[0]]
    if graph.kinds[args[0]] == OMITTED:
        return args[0]
    if len(text) > MAX_BYTES:
        return graph.add(OMITTED, f"{len(text)} bytes")
    try:
        return graph.add(BYTES, text.encode("latin-1"))
    except UnicodeEncodeError:
        raise _malformed("byte string") from None


def _bytearray(graph: Graph, args: list[int]) -> int:
    if args and graph.kinds[args[0]] in (BYTES, OMITTED):
        return args[0]
    return _encode(graph, args) if args else graph.add(BYTES, b"")


def _kept(name: str) -> Handler:
    """A harmless class that stays opaque; its arguments are kept for listing."""

    def handler(graph: Graph, args: list[int]) -> int:
        return graph.opaque(name, graph.add(TUPLE, args))

    return handler


# --- the table -------------------------------------------------------------------------------------------------------

TENSOR_TABLE: dict[str, Handler] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _first_argument,
    "torch._utils._rebuild_parameter_with_state": _first_argument,
    "torch._utils._rebuild_qtensor": _unusable("quantised"),
    "torch._utils._rebuild_sparse_tensor": _unusable("sparse"),
    "torch._utils._rebuild_sparse_csr_tensor": _unusable("sparse"),
    "torch._utils._rebuild_nested_tensor": _unusable("nested (ragged)"),
    "torch._utils._rebuild_meta_tensor_no_storage": _unusable("on the meta device: it has no data"),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first_argument,
    "torch._utils._rebuild_device_tensor_from_numpy": _unusable("kept as a NumPy array of another device (XLA)"),
    "torch._utils._rebuild_xla_tensor": _unusable("kept as a NumPy array of another device (XLA)"),
    "torch._utils._rebuild_wrapper_subclass": _unusable("of a subclass that holds no data of its own"),
}

TABLE: dict[str, Handler] = {
    **TENSOR_TABLE,
    "torch._tensor._rebuild_from_type": _rebuild_from_type,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.nn.parameter.Parameter": _first_argument,
    "torch.nn.parameter.Buffer": _first_argument,
    "torch.nn.parameter.UninitializedParameter": _unusable("not initialised (of a lazy module that has not run yet)"),
    "torch.nn.parameter.UninitializedBuffer": _unusable("not initialised (of a lazy module that has not run yet)"),
    "torch.Size": _tuple,
    "torch.device": _device,
    "torch.serialization._get_layout": _first_argument,
    "collections.OrderedDict": _dict,
    "collections.defaultdict": _defaultdict,
    "collections.Counter": _dict,
    "builtins.dict": _dict,
    "builtins.list": _list,
    "builtins.tuple": _tuple,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.bytearray": _bytearray,
    "builtins.bytes": _bytearray,
    "builtins.complex": _kept("builtins.complex"),
    "_codecs.encode": _encode,
    "numpy._core.multiarray.scalar": scalar,
    "numpy._core.multiarray._reconstruct": _kept(ARRAY),
    "numpy._core.numeric._frombuffer": _kept(ARRAY),
    "numpy.dtype": _kept(DTYPE),
}


def known(label: str) -> bool:
    """Whether a global has a meaning here."""
    return label in TABLE or label in DTYPES or label == "numpy.ndarray" or storage_type(label) is not None


def storage_type(label: str) -> tuple[int, str] | None:
    """(bytes of an element, torch's dtype) of a storage class, or None."""
    module, _, name = label.rpartition(".")
    return STORAGE_TYPES.get(name) if module in ("torch", "torch.cuda", "torch.storage") else None


def persistent(graph: Graph, node: int) -> int:
    """BINPERSID: ('storage', class, key, place, elements[, view]) is a storage; ('module', class, …) is the class."""
    if graph.kinds[node] != TUPLE or not graph.values[node]:
        raise _malformed("persistent id (a tuple is expected)")
    parts = graph.values[node]
    what = graph.values[parts[0]]
    if what == "module" and len(parts) >= 2:
        return parts[1]
    if what != "storage" or len(parts) not in (5, 6):
        raise _malformed("persistent id (a storage is expected)")
    kind = storage_type(graph.values[parts[1]]) if graph.kinds[parts[1]] == GLOBAL else None
    if kind is None:
        raise InputRefused(f"pickle: storage of an unknown type: {graph.describe(parts[1])}")
    view = None
    if len(parts) == 6 and graph.kinds[parts[5]] != NONE:
        view = _storage_view(graph, parts[5])
    numel = _int(graph, parts[4], "storage size")
    return graph.add(STORAGE, Storage(_key(graph, parts[2]), *kind, numel, view))


def _storage_view(graph: Graph, node: int) -> tuple[str, int, int]:
    """(key, first element, elements) of a view of a storage, in old files."""
    if graph.kinds[node] not in (TUPLE, LIST) or len(graph.values[node]) != 3:
        raise _malformed("storage view")
    key, first, numel = graph.values[node]
    return _key(graph, key), _int(graph, first, "storage view"), _int(graph, numel, "storage view")


def _key(graph: Graph, node: int) -> str:
    if graph.kinds[node] not in (TEXT, INT):
        raise _malformed("storage key")
    return str(graph.values[node])
