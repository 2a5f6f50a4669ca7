"""The closed table of what a pickle may call without harm, whatever arguments it gives. Everything else is not judged.

A list of dangerous names can never be complete, so ``scan`` calls a file harmless only when everything that loading it
calls stands here: what torch, NumPy, the standard library, Lightning, omegaconf and TorchScript really save. A class is
in the table when neither making an object of it nor giving that a state runs anything else; where that depends on the
arguments, a rule looks at them. Read as documentation: the ``__reduce__`` and ``__setstate__`` of these packages.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .pickle_followed import Made
from .pickle_names import dangerous

if TYPE_CHECKING:
    from .pickle_followed import Name
    from .pickle_judgement import Judgement

Args = tuple[Any, ...]
Rule = Callable[["Judgement", Args], str]
"""Looks at the arguments of a call and gives an objection, '' when there is none."""

_TEXT = """
builtins: bool bytearray bytes complex dict float frozenset int list object range set slice tuple str
builtins: Exception ArithmeticError AssertionError AttributeError BaseException EOFError FloatingPointError IndexError
builtins: IOError KeyError KeyboardInterrupt LookupError NameError NotImplementedError OSError OverflowError
builtins: RuntimeError StopIteration TypeError UnicodeError ValueError Warning UserWarning DeprecationWarning
builtins: FutureWarning RuntimeWarning ZeroDivisionError FileNotFoundError PermissionError MemoryError
builtins: ImportError ModuleNotFoundError
collections: OrderedDict defaultdict Counter deque UserDict UserList UserString
array: array _array_reconstructor
joblib.numpy_pickle: NumpyArrayWrapper
copyreg: _reconstructor __newobj__ __newobj_ex__
_codecs: encode
datetime: date datetime time timedelta timezone
decimal: Decimal
fractions: Fraction
functools: partial
uuid: UUID SafeUUID
pathlib: Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath
pathlib._local: Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath
argparse: Namespace
types: SimpleNamespace
random: Random
re: _compile
ipaddress: IPv4Address IPv4Network IPv6Address IPv6Network
logging: getLogger

numpy: dtype ndarray matrix recarray record generic
numpy: bool bool_ str_ bytes_ void int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 longdouble
numpy: complex64 complex128 datetime64 timedelta64 object_ intc intp uintc uintp longlong ulonglong
numpy._core.multiarray: scalar _reconstruct
numpy._core.numeric: _frombuffer
numpy.rec: recarray record
numpy.matrixlib.defmatrix: matrix
numpy.dtypes: BoolDType Int8DType Int16DType Int32DType Int64DType UInt8DType UInt16DType UInt32DType UInt64DType
numpy.dtypes: Float16DType Float32DType Float64DType Complex64DType Complex128DType ObjectDType StrDType BytesDType
numpy.dtypes: LongDoubleDType DateTime64DType TimeDelta64DType VoidDType StringDType
numpy._core._internal: _convert_to_stringdtype_kwargs _reconstruct
numpy.ma: MaskedArray
numpy.ma.core: MaskedArray _mareconstruct mvoid MaskedConstant
numpy.random._pickle: __randomstate_ctor __generator_ctor __bit_generator_ctor
numpy.random: __RandomState_ctor
numpy.random._mt19937: MT19937
numpy.random._pcg64: PCG64 PCG64DXSM
numpy.random._philox: Philox
numpy.random._sfc64: SFC64
numpy.random.bit_generator: SeedSequence __pyx_unpickle_SeedSequence
numpy.polynomial.polynomial: Polynomial
numpy.polynomial.chebyshev: Chebyshev

torch: Tensor Size device Generator FloatTensor DoubleTensor HalfTensor BFloat16Tensor LongTensor IntTensor ShortTensor
torch: CharTensor ByteTensor BoolTensor FloatStorage DoubleStorage HalfStorage LongStorage IntStorage ShortStorage
torch: CharStorage ByteStorage BoolStorage BFloat16Storage UntypedStorage
torch.cuda: FloatTensor DoubleTensor HalfTensor LongTensor IntTensor ShortTensor CharTensor ByteTensor
torch.storage: UntypedStorage TypedStorage _load_from_bytes
torch._utils: _rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_parameter _rebuild_parameter_with_state
torch._utils: _rebuild_qtensor _rebuild_sparse_tensor _rebuild_sparse_csr_tensor _rebuild_nested_tensor
torch._utils: _rebuild_meta_tensor_no_storage _rebuild_device_tensor_from_cpu_tensor _rebuild_device_tensor_from_numpy
torch._utils: _rebuild_xla_tensor _rebuild_wrapper_subclass
torch._tensor: _rebuild_from_type _rebuild_from_type_v2
torch.nn.parameter: Parameter Buffer UninitializedParameter UninitializedBuffer
torch.serialization: _get_layout
torch.optim: Adafactor Muon
torch.optim.adadelta: Adadelta
torch.optim.adagrad: Adagrad
torch.optim.adam: Adam
torch.optim.adamax: Adamax
torch.optim.adamw: AdamW
torch.optim.asgd: ASGD
torch.optim.nadam: NAdam
torch.optim.radam: RAdam
torch.optim.rmsprop: RMSprop
torch.optim.rprop: Rprop
torch.optim.sgd: SGD
torch.nn.modules.module: Module
torch.nn.modules.activation: Threshold ReLU RReLU Hardtanh ReLU6 Sigmoid Hardsigmoid Tanh SiLU Mish Hardswish ELU CELU
torch.nn.modules.activation: SELU GLU GELU Hardshrink LeakyReLU LogSigmoid Softplus Softshrink MultiheadAttention PReLU
torch.nn.modules.activation: Softsign Tanhshrink Softmin Softmax Softmax2d LogSoftmax
torch.nn.modules.batchnorm: BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm LazyBatchNorm1d LazyBatchNorm2d
torch.nn.modules.container: Container Sequential ModuleList ModuleDict ParameterList ParameterDict
torch.nn.modules.conv: Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d LazyConv1d LazyConv2d
torch.nn.modules.distance: PairwiseDistance CosineSimilarity
torch.nn.modules.dropout: Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout
torch.nn.modules.flatten: Flatten Unflatten
torch.nn.modules.fold: Fold Unfold
torch.nn.modules.instancenorm: InstanceNorm1d InstanceNorm2d InstanceNorm3d
torch.nn.modules.linear: Identity Linear NonDynamicallyQuantizableLinear Bilinear LazyLinear
torch.nn.modules.loss: L1Loss NLLLoss PoissonNLLLoss GaussianNLLLoss KLDivLoss MSELoss BCELoss BCEWithLogitsLoss
torch.nn.modules.loss: SmoothL1Loss HuberLoss CrossEntropyLoss CosineEmbeddingLoss MarginRankingLoss CTCLoss
torch.nn.modules.loss: TripletMarginLoss HingeEmbeddingLoss MultiLabelMarginLoss SoftMarginLoss MultiLabelSoftMarginLoss
torch.nn.modules.normalization: LocalResponseNorm CrossMapLRN2d LayerNorm GroupNorm RMSNorm
torch.nn.modules.padding: CircularPad1d CircularPad2d CircularPad3d ConstantPad1d ConstantPad2d ConstantPad3d
torch.nn.modules.padding: ReflectionPad1d ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d
torch.nn.modules.padding: ReplicationPad3d ZeroPad1d ZeroPad2d ZeroPad3d
torch.nn.modules.pixelshuffle: PixelShuffle PixelUnshuffle
torch.nn.modules.pooling: MaxPool1d MaxPool2d MaxPool3d MaxUnpool1d MaxUnpool2d MaxUnpool3d AvgPool1d AvgPool2d
torch.nn.modules.pooling: AvgPool3d LPPool1d LPPool2d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d
torch.nn.modules.pooling: AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d FractionalMaxPool2d
torch.nn.modules.rnn: RNN LSTM GRU RNNCell LSTMCell GRUCell
torch.nn.modules.sparse: Embedding EmbeddingBag
torch.nn.modules.transformer: Transformer TransformerEncoder TransformerDecoder TransformerEncoderLayer
torch.nn.modules.transformer: TransformerDecoderLayer
torch.nn.modules.upsampling: Upsample UpsamplingNearest2d UpsamplingBilinear2d
torch.jit._pickle: build_intlist build_tensorlist build_doublelist build_boollist build_tensor_from_id restore_type_tag
torch._C: Generator

pytorch_lightning.utilities.parsing: AttributeDict
lightning.pytorch.utilities.parsing: AttributeDict
lightning.fabric.utilities.data: AttributeDict
lightning_fabric.utilities.data: AttributeDict
pytorch_lightning.trainer.states: RunningStage TrainerFn TrainerStatus TrainerState
lightning.pytorch.trainer.states: RunningStage TrainerFn TrainerStatus TrainerState
pytorch_lightning.callbacks.early_stopping: EarlyStopping
omegaconf.dictconfig: DictConfig
omegaconf.listconfig: ListConfig
omegaconf.base: ContainerMetadata Metadata
omegaconf.nodes: AnyNode BooleanNode BytesNode EnumNode FloatNode IntegerNode PathNode StringNode
transformers.training_args: TrainingArguments OptimizerNames
transformers.trainer_utils: IntervalStrategy SchedulerType HubStrategy EvaluationStrategy EvalPrediction SaveStrategy
transformers.trainer_pt_utils: AcceleratorConfig
accelerate.state: PartialState
accelerate.utils.dataclasses: DistributedType
scipy.sparse._csr: csr_matrix csr_array
scipy.sparse._csc: csc_matrix csc_array
scipy.sparse._coo: coo_matrix coo_array
scipy.sparse._lil: lil_matrix
scipy.sparse.csr: csr_matrix
scipy.sparse.csc: csc_matrix
scipy.sparse.coo: coo_matrix
"""


def _table() -> frozenset[str]:
    found = set()
    for line in _TEXT.splitlines():
        module, _, names = line.partition(": ")
        found |= {f"{module}.{name}" for name in names.split()}
    return frozenset(found)


HARMLESS = _table()


PLAIN_OBJECTS = frozenset(
    ("joblib.numpy_pickle.NumpyArrayWrapper", "numpy.dtype", "numpy.ndarray", "numpy._core.multiarray._reconstruct")
)
"""Calls that give what is neither text nor can be called."""


_DATA = tuple(
    f"{start}."
    for start in (
        "numpy", "torch._utils", "torch._tensor", "torch.storage", "torch.jit._pickle", "torch.serialization",
        "__torch__", "datetime", "decimal", "fractions", "uuid", "ipaddress", "pathlib", "array", "_codecs", "re",
    )
)  # fmt: skip
_CONTAINERS = frozenset(f"collections.{kind}" for kind in ("OrderedDict", "defaultdict", "Counter", "deque"))
_BUILT_IN = frozenset(f"builtins.{kind}" for kind in _TEXT.splitlines()[1].partition(": ")[2].split())
_KEEPING = frozenset(
    ("copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__", "functools.partial")
)  # calls that only keep their arguments, or make an object of a class


def is_data(label: str) -> bool:
    """Whether what a call of ``label`` gives is data without attributes of the file's choosing that are called. A file
    may give other objects any attribute, and much of the table looks up methods of what it gets: dict(x) calls x.keys.
    """
    of_torch = label.startswith("torch.") and label.count(".") == 1
    return of_torch or label.startswith(_DATA) or label in _BUILT_IN or label in _CONTAINERS


def may_be_text(value: Any) -> bool:
    """Whether the result of a call may be a text, which the scan does not know."""
    return isinstance(value, Made) and value.label not in PLAIN_OBJECTS


_CALLABLE = ("functools.partial", "torch.nn.modules.")  # of the table; a module calls its own hooks


def may_be_called(value: Any) -> bool:
    """Whether a value may be a function or the like."""
    if isinstance(value, Made):
        return bool(value.label) and (value.label.startswith(_CALLABLE) or not harmless(value.label))
    return hasattr(value, "plain") and not value.label.startswith(_DTYPES)


_DTYPES = tuple(f"torch.{kind}" for kind in ("float", "bfloat", "complex", "int", "uint", "bool", "q"))
_TAKING_NAMES = ("torch._utils.", "torch._tensor.", "numpy.", "copyreg.", "functools.partial", "torch.jit._pickle.")


# --- rules for arguments ---------------------------------------------------------------------------------------------


def _latin1(pickle: Judgement, args: Args) -> str:
    """_codecs.encode: any other codec is a module that is imported by its name."""
    word = str(args[1]).lower().replace("_", "-") if len(args) == 2 else ""
    known = word in ("latin1", "latin-1", "ascii", "utf-8", "utf8", "iso-8859-1", "raw-unicode-escape")
    return "" if known or len(args) == 1 else "calls _codecs.encode with an unusual codec"


def _makes(*places: int) -> Rule:
    """Classes among the arguments are made objects of."""

    def rule(pickle: Judgement, args: Args) -> str:
        for place in places:
            if place < len(args) and args[place] is not None:
                against = class_objection(args[place])
                if against:
                    return against
        return ""

    return rule


def class_objection(value: Any) -> str:
    """What speaks against an object of a class, in words; '' when it is known to be harmless."""
    label = getattr(value, "label", "")
    if getattr(value, "plain", False) and (label in HARMLESS or label.startswith("__torch__.")):
        return ""
    return f"makes an object of {label or 'an unknown class'}"


def _of_type(pickle: Judgement, args: Args) -> str:
    """torch._tensor._rebuild_from_type*: (function, class, its arguments, state)."""
    if len(args) < 3 or not getattr(args[0], "label", "").startswith("torch._utils._rebuild_"):
        return f"calls {getattr(args[0], 'label', '') or 'an unknown value' if args else 'nothing'}"
    pickle.call(args[0], args[2])
    return class_objection(args[1]) or _attributes(pickle, args[3:])


def _of_tensor(pickle: Judgement, args: Args) -> str:
    """What calls a method of its first argument, a tensor."""
    label = getattr(args[0], "label", "") if args and hasattr(args[0], "plain") else ""
    return f"takes {label} for a tensor" if label else ""


def _attributes(pickle: Judgement, args: Args) -> str:
    """Dicts among the arguments become attributes."""
    parts = [part for value in args for part in (value if isinstance(value, tuple) else (value,))]
    odd = next((part.odd for part in parts if getattr(part, "odd", "")), "")
    return f"sets {odd}" if odd else _of_tensor(pickle, args)


def _one_argument(pickle: Judgement, args: Args) -> str:
    return "" if len(args) == 1 else "calls builtins.type to make a class"


def _nested(pickle: Judgement, args: Args) -> str:
    """torch.storage._load_from_bytes: a file of torch.save inside, which the scan follows."""
    if len(args) != 1 or not pickle.add_nested(args[0]):
        return "calls torch.storage._load_from_bytes with bytes that are not in the file as such"
    pickle.excuse("torch.storage._load_from_bytes")
    return ""


_ATTRIBUTES = {
    "torch.optim.lr_scheduler.OneCycleLR": ("_annealing_cos", "_annealing_linear"),  # as old schedulers store them
    "torch._C._VariableFunctionsClass": None,  # torch.relu and the like
    "torch._C._nn": None,
}


def _attribute(pickle: Judgement, args: Args) -> str:
    """builtins.getattr: harmless where it gives a function of torch, which nothing calls while the file is loaded."""
    owner, name = args if len(args) == 2 else (None, None)
    label = getattr(owner, "label", "")
    if label in _ATTRIBUTES and isinstance(name, str):
        allowed = _ATTRIBUTES[label]
        if name in allowed if allowed else not name.startswith("_"):
            pickle.excuse("builtins.getattr")
            return ""
    return "calls builtins.getattr"


def _factory(pickle: Judgement, args: Args) -> str:
    """collections.defaultdict: its first argument makes the values of missing keys."""
    label = getattr(args[0], "label", "") if args and hasattr(args[0], "plain") else ""
    return f"makes values by {label}" if label and not harmless(label) else ""


_BIT_GENERATOR = "numpy.random._pickle.__bit_generator_ctor"


def _generator(pickle: Judgement, args: Args) -> str:
    """NumPy's generators: (bit generator, its class or its name, and a function that makes it of these)."""
    if len(args) > 1 and getattr(args[1], "label", "") != _BIT_GENERATOR:
        return f"calls {getattr(args[1], 'label', '') or 'an unknown value'}"
    return class_objection(args[0]) if args and hasattr(args[0], "plain") else ""


def _no_argument(pickle: Judgement, args: Args) -> str:
    """Classes whose __init__ does more than to keep its arguments; they are stored without any."""
    return "makes an object with arguments" if args else ""


def _hands_no_names(label: str) -> Rule:
    """What iterates over its argument must not get a named object, which would give its items by its own code."""

    def rule(pickle: Judgement, args: Args) -> str:
        named = next((value.label for value in args if hasattr(value, "plain")), "")
        return f"hands {named} to {label}" if named else ""

    return rule


_RULES: dict[str, Rule] = {
    "_codecs.encode": _latin1,
    "copyreg._reconstructor": _makes(0, 1),
    "copyreg.__newobj__": _makes(0),
    "copyreg.__newobj_ex__": _makes(0),
    "numpy._core.multiarray._reconstruct": _makes(0),
    "numpy._core._internal._reconstruct": _makes(0),
    "numpy.ma.core._mareconstruct": _makes(0, 1),
    "collections.defaultdict": _factory,
    "numpy.random._pickle.__bit_generator_ctor": _generator,
    "numpy.random._pickle.__generator_ctor": _generator,
    "numpy.random._pickle.__randomstate_ctor": _generator,
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence": _makes(0),
    "transformers.training_args.TrainingArguments": _no_argument,
    "accelerate.state.PartialState": _no_argument,
    "array._array_reconstructor": _makes(0),
    "torch._tensor._rebuild_from_type": _of_type,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch._utils._rebuild_wrapper_subclass": _makes(0),
    "torch._utils._rebuild_parameter_with_state": _attributes,
    "types.SimpleNamespace": _attributes,
    **dict.fromkeys((label for label in HARMLESS if label.endswith(".AttributeDict")), _attributes),
    "torch._utils._rebuild_parameter": _of_tensor,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _of_tensor,
    "torch.storage._load_from_bytes": _nested,
    "builtins.getattr": _attribute,
    "builtins.type": _one_argument,
    **{
        label: _hands_no_names(label)
        for label in (
            "builtins.list", "builtins.tuple", "builtins.dict", "builtins.set", "builtins.frozenset", "builtins.bytes",
            "builtins.bytearray", "builtins.str", "builtins.int", "builtins.float", "builtins.complex",
            "collections.OrderedDict", "collections.Counter", "collections.deque", "collections.UserDict",
            "collections.UserList", "collections.UserString", "omegaconf.dictconfig.DictConfig",
            "omegaconf.listconfig.ListConfig",
        )
    },
}  # fmt: skip


_DTYPE = re.compile(r"[a-zA-Z?]\d{0,9}")


def harmless(label: str) -> bool:
    """Whether a name stands in the table, or is a class of a TorchScript program, which no Python module has."""
    return label in HARMLESS or label.startswith("__torch__.")


def objection(pickle: Judgement, function: Name, args: Args | None) -> str:
    """What speaks against a call, in words; '' when it is known to be harmless. ``args`` is None when not known."""
    label = function.label
    if _makes_dtype(function, args):
        return ""
    rule = _RULES.get(label)
    if not function.plain or not (harmless(label) or rule):
        return "" if dangerous(label) else f"calls {label}"  # a dangerous name is a finding by itself
    bag = next((x.label for x in args or () if isinstance(x, Made) and x.label and not is_data(x.label)), "")
    if bag and label not in _KEEPING:
        return f"hands an object of {bag} to {label}"
    if rule is None and label.startswith(_TAKING_NAMES):
        return ""
    if rule is None:
        return _hands_no_names(label)(pickle, args or ())
    return rule(pickle, args) if args is not None else f"calls {label} with arguments that are not known"


def _makes_dtype(function: Name, args: Args | None) -> bool:
    """Whether this is a call of numpy.dtype under whatever module's name, as a pickle in another pickle may spell it
    for loaders that mix up their memos (``joblib_pickle``): nothing of this name does harm with these arguments."""
    if function.label.rpartition(".")[2] != "dtype" or args is None or len(args) != 3:
        return False
    return isinstance(args[0], str) and bool(_DTYPE.fullmatch(args[0])) and all(type(x) is bool for x in args[1:])


def result(function: Name, args: Args | None) -> Any:
    """What a call gives, when that is one of its arguments or an object of a class among them; else None."""
    if args and (function.label == "_codecs.encode" or function.label.startswith("torch.jit._pickle.")):
        return args[0]
    if _makes_dtype(function, args):
        return Made("numpy.dtype")
    if args and function.label == "numpy._core.multiarray.scalar" and hasattr(args[-1], "label"):
        return args[-1]  # of the dtype of objects
    if args and function.label in ("copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__"):
        return args[0]
    return None
