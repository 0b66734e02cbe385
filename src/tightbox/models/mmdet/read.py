"""Reading the `.pth` files of mmdetection without running anything that they hold."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tightbox.errors import UserError

_SCALAR = np.float64(0).__reduce__()[0]
_ARRAY = np.zeros(0).__reduce__()[0]
# What the `meta` of real files needs besides tensors and plain values. NumPy 1 has another name for its own module.
_ALLOWED: list[Any] = [
    *(_SCALAR, (_SCALAR, "numpy.core.multiarray.scalar"), (_SCALAR, "numpy._core.multiarray.scalar")),
    *(_ARRAY, (_ARRAY, "numpy.core.multiarray._reconstruct"), (_ARRAY, "numpy._core.multiarray._reconstruct")),
    *(np.ndarray, np.dtype),
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?SU"},
]


class PublishedFile(NamedTuple):
    """What a file holds of a model.

    Attributes:
        tensors: the weights by their published names.
        class_names: the classes that `meta` names, or None.
    """

    tensors: dict[str, Tensor]
    class_names: tuple[str, ...] | None


def read_checkpoint(path: Path) -> PublishedFile:
    """The weights of a file that mmdetection wrote: a dict with `state_dict` and perhaps `meta`, or a bare state dict.

    Raises:
        UserError: if the file cannot be read, is no such checkpoint, or would have to run code to be read.
    """
    content = _load(path)
    size = path.stat().st_size
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no weights: give a .pth file with a state_dict, as mmdetection writes them")
    if strange := [name for name, value in state.items() if not (isinstance(name, str) and isinstance(value, Tensor))]:
        raise UserError(
            f"{path} is no state dict, for its entry {strange[0]} is not a tensor; give a .pth file of mmdetection"
        )
    held = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in state.values()}
    if sum(held.values()) > size or any(value.numel() * value.element_size() > size for value in state.values()):
        raise UserError(f"{path} holds tensors larger than itself; it was made to fill the memory, delete it")
    meta = content.get("meta") if "state_dict" in content else None
    return PublishedFile(_without_wrappers(state), _class_names(meta if isinstance(meta, Mapping) else {}))


def _load(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path} is not a file; give the .pth file of a published VFNet model")
    _refuse_bomb(path)
    try:
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that PyTorch did not write, which it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{path} needs {refused[1]} to be read, and a file that runs code is never opened here; where it was "
                "made, save its weights alone: torch.save({'state_dict': model.state_dict()}, 'weights.pth')"
            ) from error
        raise _unreadable(path) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check it and its permissions") from error
    except Exception as error:  # whatever the unpickler stumbles over first in bytes that are no checkpoint
        raise _unreadable(path) from error


def _refuse_bomb(path: Path) -> None:
    """PyTorch writes its archives uncompressed, and what unpacks to more than it takes up was made to do harm."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        size = path.stat().st_size
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return  # PyTorch's own reader says what is wrong with it
    if unpacked > size:
        raise UserError(
            f"{path} has {size} bytes but unpacks to {unpacked}, as no file of PyTorch does; delete it, or save the "
            "weights anew with torch.save"
        )


def _unreadable(path: Path) -> UserError:
    return UserError(f"{path} is cut off or is no PyTorch checkpoint; download it again, and give the .pth file itself")


def _without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's own entries: without the prefix of a distributed wrapper, and without copies kept for averaging."""
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    # mmdetection 2 saves the averaged weights under the plain names and the last ones under these.
    copies = {"ema_" + name.replace(".", "_") for name in state}
    return {name: value for name, value in state.items() if name not in copies}


def _class_names(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Class names where mmdetection 2 (`CLASSES`) and 3 (`dataset_meta`) keep them."""
    inner = meta.get("dataset_meta")
    places = [meta, inner] if isinstance(inner, Mapping) else [meta]
    for names in (place.get(key) for place in places for key in ("classes", "CLASSES")):
        if isinstance(names, str):
            return (names,)
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None
