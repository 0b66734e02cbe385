"""Object detectors that know how tight their boxes are.

>>> import tightbox
>>> model = tightbox.create_model("vfnet", num_classes=3, backbone="resnet18", pretrained_backbone=False)
>>> model.name
'vfnet'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tightbox.version import __version__ as __version__

if TYPE_CHECKING:
    from tightbox.models import create_model as create_model
    from tightbox.models import load as load
    from tightbox.structures import Candidates as Candidates
    from tightbox.structures import Detections as Detections
    from tightbox.structures import ImageBatch as ImageBatch
    from tightbox.structures import Targets as Targets

# Loaded on first use, because torch takes seconds to import and `tightbox --help` must not.
_HOMES = dict.fromkeys(("create_model", "load"), "tightbox.models")
_HOMES |= dict.fromkeys(("Candidates", "Detections", "ImageBatch", "Targets"), "tightbox.structures")
__all__ = ["Candidates", "Detections", "ImageBatch", "Targets", "create_model", "load"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in ("assigners", "losses", "ops"):
        return import_module(f"tightbox.{name}")
    raise AttributeError(f"module 'tightbox' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "assigners", "losses", "ops"])
