"""Which names in a pickle mean harm: for the refusal and for ``scan``. Safety does not rest on this list.

The pickle machine runs nothing, whatever the name; this page only decides whether a file deserves a warning that
loading it elsewhere would have run something. A name is dangerous when calling it, with arguments of the file's
choosing, runs code, starts programs, opens files or the network, or reaches another name indirectly.
"""

from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Every name in these modules, and in modules below them, is dangerous.
_MODULES = _words(
    """
    os posix posixpath nt ntpath subprocess _posixsubprocess popen2 sys shutil pty tty fcntl mmap signal resource
    platform importlib _frozen_importlib _frozen_importlib_external imp zipimport pkgutil runpy site modulefinder code
    codeop ast dis inspect linecache types gc atexit _testcapi pickle _pickle dill cloudpickle joblib marshal shelve
    jsonpickle yaml ctypes _ctypes cffi socket _socket socketserver ssl select selectors asyncio multiprocessing
    _multiprocessing concurrent threading _thread sched urllib http ftplib smtplib poplib imaplib telnetlib nntplib
    xmlrpc webbrowser antigravity requests aiohttp httpx paramiko fabric websocket tempfile fileinput glob io _io pydoc
    doctest unittest test pytest _pytest nose pdb bdb cmd cProfile profile trace timeit lib2to3 idlelib ensurepip venv
    pip setuptools distutils pkg_resources zipapp compileall py_compile rlcompleter readline winreg _winreg msvcrt
    _winapi tkinter sqlite3 _sqlite3 dbm tarfile zipfile bz2 gzip lzma logging.config numpy.testing numpy.f2py
    numpy.distutils numpy.ctypeslib numpy.lib.npyio numpy.lib._npyio_impl torch.hub torch.jit torch.serialization
    torch.package torch.utils.cpp_extension torch.utils.model_zoo torch.utils.bottleneck torch.utils.collect_env
    torch.distributed.rpc torch.distributed.launch torch.distributed.run torch.distributed.elastic torch._dynamo
    torch._inductor torch._export torch.multiprocessing torch.testing torch.onnx torch.fx torch.ops torch.classes
    torch.library torch.export transformers.dynamic_module_utils
    """
)

# Single names of modules that are otherwise harmless.
_NAMES = _words(
    """
    builtins.eval builtins.exec builtins.execfile builtins.compile builtins.__import__ builtins.open builtins.file
    builtins.getattr builtins.setattr builtins.delattr builtins.globals builtins.locals builtins.vars builtins.dir
    builtins.input builtins.raw_input builtins.breakpoint builtins.apply builtins.map builtins.filter builtins.help
    builtins.exit builtins.quit builtins.reload builtins.__build_class__
    operator.attrgetter operator.itemgetter operator.methodcaller operator.call _operator.attrgetter
    _operator.itemgetter _operator.methodcaller _operator.call functools.reduce _functools.reduce
    copyreg.add_extension copyreg.pickle copyreg.constructor codecs.open codecs.decode _codecs.decode codecs.register
    _codecs.register uuid._get_command_stdout logging.FileHandler logging.handlers.SocketHandler
    dataclasses.make_dataclass numpy.load numpy.save numpy.savez numpy.savetxt numpy.loadtxt numpy.genfromtxt
    numpy.fromfile numpy.memmap numpy.fromregex numpy.vectorize numpy.frompyfunc numpy.DataSource numpy.lib.DataSource
    torch.load torch.save torch.compile torch.from_file torch.storage._load_from_bytes torch._utils._import_dotted_name
    torch._import_dotted_name pandas.read_pickle pandas.eval pandas.io.pickle.read_pickle
    """
)

# Attributes by which any module may lead to the above (``torch._utils`` has ``sys``, others import ``system`` itself).
_ANYWHERE = _words(
    """
    os posix nt sys subprocess builtins __builtins__ importlib ctypes socket shutil runpy pickle marshal
    system popen Popen spawnv execv execve execvp check_output check_call getoutput getstatusoutput eval exec execfile
    __import__ import_module getattr setattr runstring run_code runcode load_module CDLL
    """
)

# In the modules above, but harmless.
_HARMLESS = _words(
    """
    torch.serialization._get_layout io.BytesIO io.StringIO types.SimpleNamespace types.MappingProxyType
    copyreg.__newobj__ copyreg.__newobj_ex__ joblib.numpy_pickle.NumpyArrayWrapper
    torch.jit._pickle.build_intlist torch.jit._pickle.build_tensorlist torch.jit._pickle.build_doublelist
    torch.jit._pickle.build_boollist torch.jit._pickle.build_tensor_from_id torch.jit._pickle.restore_type_tag
    """
)


def modern_name(module: str, name: str) -> str:
    """``module.name`` under today's names: Python 2's are mapped as the unpickler maps them, NumPy 1's to NumPy 2's."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return original_name(module, name)


def original_name(module: str, name: str) -> str:
    """``module.name`` as the protocols from 3 on have it; NumPy 1's modules are mapped to NumPy 2's."""
    return f"{'numpy._core' + module[10:] if f'{module}.'.startswith('numpy.core.') else module}.{name}"


def dangerous(label: str) -> bool:
    """Whether a global of this name could be made to run something when a pickle that names it is loaded."""
    module, _, name = label.rpartition(".")
    if label in _HARMLESS or name == "dtype":
        return False
    if label in _NAMES or label in _MODULES or name in _ANYWHERE or _is_hook(label):
        return True
    while module:
        if module in _MODULES:
            return True
        module = module.rpartition(".")[0]
    return False


def _is_hook(label: str) -> bool:
    """Whether Python's own machinery is named (``__getattribute__``, ``__globals__``), which leads anywhere."""
    parts = [part for part in label.split(".")[1:] if part.startswith("__") and part.endswith("__")]
    return bool(parts) and not label.startswith("__torch__.")


def dangerous_names(labels: dict[str, int]) -> list[str]:
    """The dangerous ones among ``labels``, in the order in which the file named them."""
    return [label for label in labels if dangerous(label)]
