"""Files of ``torch.save``, read without running anything that they name.

``torch.load(weights_only=True)`` alone trusts the sizes that a file states: a compressed member may unpack to a
thousand times the file, and a tensor may state more values than are stored. Both are compared with the file first.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from maemm.contract.errors import MaemmError
from maemm.weights.describe import printable, some_of

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file that torch.save wrote before 1.6
_ELEMENT_SIZES = {
    "DoubleStorage": 8, "LongStorage": 8, "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16, "FloatStorage": 4,
    "IntStorage": 4, "QInt32Storage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "ShortStorage": 2,
}  # fmt: skip


class Setting:
    """Takes the place of an object that lies beside the weights (a NumPy number, a path): it is never made."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Setting:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _plain_dict(*args: Any) -> dict[Any, Any]:
    return {}


def _encode(text: str, encoding: str) -> bytes:  # what pickles call for bytes in protocol 2
    return text.encode("latin1", "replace")


def _stand_ins() -> list[Any]:
    """(stand-in, name) of the classes that files of others hold beside weights, for ``torch.serialization``."""
    paths = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    opaque = ["argparse.Namespace", "types.SimpleNamespace", "numpy.dtype", "numpy.ndarray", "typing.Any"]
    opaque += [f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in paths]
    opaque += [f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")]
    for core in ("core", "_core"):
        opaque += [f"numpy.{core}.multiarray.scalar", f"numpy.{core}.multiarray._reconstruct"]
        opaque += [f"numpy.{core}.numeric._frombuffer"]
    nodes = ("AnyNode", "IntegerNode", "FloatNode", "StringNode", "BooleanNode", "EnumNode")
    opaque += ["omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"]
    opaque += ["omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata"]
    opaque += [f"omegaconf.nodes.{name}" for name in nodes]
    opaque += [f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("list", "dict", "int")]
    dicts = ["yacs.config.CfgNode", "easydict.EasyDict", "addict.addict.Dict", "mmengine.config.config.ConfigDict"]
    dicts += ["pytorch_lightning.utilities.parsing.AttributeDict", "lightning.fabric.utilities.data.AttributeDict"]
    dicts += ["lightning_fabric.utilities.data.AttributeDict", "lightning.pytorch.utilities.parsing.AttributeDict"]
    return [
        *((Setting, name) for name in opaque),
        *((OrderedDict, name) for name in dicts),
        (_plain_dict, "collections.defaultdict"),
        (_encode, "_codecs.encode"),
    ]


@dataclass
class _Survey:
    """What a pickle names: classes and functions, and the values that it says are stored, {record: bytes}."""

    globals: dict[str, None] = field(default_factory=dict)  # a set in order
    stored: dict[str, int] = field(default_factory=dict)


class _Anything(Setting):
    """Whatever a pickle does to an object that it names has no effect."""

    def __call__(self, *args: Any, **kwargs: Any) -> _Anything:  # what a call returned may be called again
        return _Anything()

    def append(self, *items: Any) -> None:
        pass

    extend = add = __setitem__ = append


class _Surveyor(pickle._Unpickler):
    """Goes through a pickle and imports nothing: each name becomes an empty class.

    In Python, as the one in C makes room for as many objects as a file says it has.
    """

    def __init__(self, file: IO[bytes], survey: _Survey):
        super().__init__(file, encoding="latin1")
        self.survey = survey

    def find_class(self, module: str, name: str) -> Any:
        self.survey.globals[f"{module}.{name}"] = None
        return type("Named", (_Anything,), {"called": name})

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" and isinstance(pid[4], int):
            size = _ELEMENT_SIZES.get(getattr(pid[1], "called", ""), 1)
            self.survey.stored[str(pid[2])] = max(self.survey.stored.get(str(pid[2]), 0), pid[4] * size)
        return _Anything()


def read_pickle(path: Path) -> Any:
    """The content of a file that ``torch.save`` wrote: tensors, plain values, and stand-ins for known settings.

    Raises :class:`MaemmError` for a damaged file and for one with other Python objects, which are never made.
    """
    survey = _Survey()
    try:
        if zipfile.is_zipfile(path):
            _survey_zip(path, survey)
        else:
            _survey_legacy(path, survey)
    except (MaemmError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged or hostile file does to the reader
        raise MaemmError(f"{path} cannot be read as weights ({_reason(error)}); get the file again") from None
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_stand_ins()), path.open("rb") as file:
            warnings.simplefilter("ignore")  # of other protocols of pickle
            content = torch.load(file, map_location="cpu", weights_only=True)  # a path ending in .safetensors is one
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):
            raise MaemmError(
                f"{path} is written in a protocol of pickle that is not read safely; save it with torch.save as it is, "
                "without pickle_protocol="
            ) from None
        raise MaemmError(
            f"{path} holds Python objects beside tensors and is not unpickled, as that could run code "
            f"({_foreign(survey, str(error))}); save the state_dict of the model alone, and give that"
        ) from None
    except MemoryError:
        raise
    except Exception as error:
        raise MaemmError(f"{path} cannot be read as weights ({_reason(error)}); get the file again") from None
    return content


def _survey_zip(path: Path, survey: _Survey) -> None:
    """Compare what a zip archive of torch says of itself with the file. Raises :class:`MaemmError`."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        pickled = next((name for name in members if name.endswith("/data.pkl") and name.count("/") == 1), None)
        if pickled is None:
            raise MaemmError(f"{path} is {_kind_of_archive(members)}, not weights of PyTorch; give a state_dict")
        root = pickled.removesuffix("data.pkl")
        if f"{root}constants.pkl" in members:
            raise MaemmError(
                f"{path} is a TorchScript program, not weights alone; save the state_dict of torch.jit.load(FILE)"
            )
        packed = [name for name, member in members.items() if member.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise MaemmError(
                f"{path} is compressed ({some_of(packed, 1)}), which torch.save does not do; unpack it, and save the "
                "tensors again"
            )
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise MaemmError(f"{path} says that it holds more than the file is long; get the file again")
        with archive.open(pickled) as file:
            _Surveyor(file, survey).load()
    for key, size in survey.stored.items():
        record = members.get(f"{root}data/{key}")
        if record is None or record.file_size < size:
            raise MaemmError(f"{path} lacks values of its tensors (record {printable(key)}); get the file again")


def _survey_legacy(path: Path, survey: _Survey) -> None:
    """The same for files without an archive, that torch wrote before 1.6: four pickles, then the values."""
    with path.open("rb") as file:
        first = _Surveyor(file, survey).load()
        if first != _LEGACY_MAGIC:
            raise MaemmError(
                f"{path} is a pickle that torch.save did not write, and is not unpickled; write the state_dict with "
                "torch.save"
            )
        for _ in range(3):
            _Surveyor(file, survey).load()
    if sum(survey.stored.values()) > path.stat().st_size:
        raise MaemmError(f"{path} says that it holds more than the file is long; get the file again")


def _kind_of_archive(members: dict[str, Any]) -> str:
    if any(name.endswith(".npy") for name in members):
        return "a NumPy archive"
    if any(name.endswith("archive_format") for name in members):
        return "an exported program (.pt2)"
    return f"a zip archive of other things ({some_of(members, 2)})"


def _foreign(survey: _Survey, text: str) -> str:
    """The names that torch refused: it calls the first one GLOBAL."""
    first = text.partition("GLOBAL ")[2].split(" ")[0].rstrip(".")
    usual = ("torch.", "collections.", "numpy.")
    others = [name for name in survey.globals if not name.startswith(usual) and name != first]
    return some_of([*([first] if first in survey.globals else []), *others], 2) or "of an unusual kind"


def _reason(error: Exception) -> str:
    """The first sentence of another library's error, without its advice."""
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, LookupError):  # its text is the bare key of something inside the pickle
        return "the pickle in it is damaged"
    return printable(text.split(". ")[0], 120) or type(error).__name__


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is values in memory, each stored once: not sparse, quantised, nested, without values, or one
    value that is stored once and counts as a billion."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
