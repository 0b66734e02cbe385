"""Checkpoints: a folder with `weights.safetensors` and `card.json`; nothing is ever unpickled."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch

import tightbox
from tightbox.calibration import Calibration
from tightbox.errors import UserError
from tightbox.files import atomic_path, write_json

if TYPE_CHECKING:
    from tightbox.models import Detector

WEIGHTS, CARD, FORMAT = "weights.safetensors", "card.json", 1


def save(model: Detector, folder: Path) -> Path:
    """Write a model's weights and card into a folder; if the disk refuses, an earlier checkpoint there stays whole.

    Raises:
        UserError: if the disk refuses.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    card = {
        "format": FORMAT,
        "tightbox": tightbox.__version__,
        "model": model.name,
        "class_names": list(model.class_names),
        "backbone": asdict(model.backbone.options),
        "options": asdict(model.options),
        "preprocess": asdict(model.preprocess),
        "metrics": model.metrics,
        "calibration": None if model.calibration is None else model.calibration.to_json(),
    }
    with atomic_path(folder / WEIGHTS) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors))
        write_json(folder / CARD, card)  # within the block: if it fails, the old weights stay beside the old card
    return folder


def save_calibration(calibration: Calibration, folder: Path) -> None:
    """Write it into the card of a checkpoint, whose weights stay as they are.

    Raises:
        UserError: if there is no checkpoint, or the disk refuses.
    """
    write_json(folder / CARD, read_card(folder) | {"calibration": calibration.to_json()})


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a checkpoint folder.

    Raises:
        UserError: if there is no checkpoint, or its card cannot be read.
    """
    path = folder / CARD
    if not path.is_file():
        raise UserError(f"{folder} is not a checkpoint: it has no {CARD}; give the folder that `tightbox train` wrote")
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if card["format"] != FORMAT:
            raise UserError(f"{path} has format {card['format']}; this tightbox reads {FORMAT}: upgrade tightbox")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); copy the checkpoint again") from error
    return card


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint folder.

    Raises:
        UserError: if they cannot be read.
    """
    try:
        tensors: dict[str, torch.Tensor] = safetensors.torch.load_file(folder / WEIGHTS)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read ({error}); copy the checkpoint again") from error
    return tensors


def start_from(model: Detector, path: str | Path) -> bool:
    """Copy a checkpoint's weights into a model of the same making, whose classes may be others.

    Where the class names (in their order) differ, the layers that tell classes apart keep their first weights.

    Returns:
        Whether it was copied, too.

    Raises:
        UserError: if the folder holds no checkpoint of such a model.
    """
    folder = Path(path)
    card = read_card(folder)
    held, wanted = (card["model"], card["backbone"]["name"]), (model.name, model.backbone.options.name)
    if held != wanted:
        raise UserError(
            f"{folder} holds {held[0]} on {held[1]}, not {wanted[0]} on {wanted[1]}; leave out --model and --backbone"
        )
    tensors = read_weights(folder)
    same = tuple(card.get("class_names", ())) == model.class_names
    if not same:
        own = model.state_dict()
        tensors = {name: value for name, value in tensors.items() if not name.startswith(model.class_layers)}
        tensors |= {name: value for name, value in own.items() if name.startswith(model.class_layers)}
    load_weights(model, tensors, str(folder / WEIGHTS))
    return same


def load_weights(model: torch.nn.Module, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Copy tensors into a model; every name and shape must fit.

    Raises:
        UserError: naming the first misfit.
    """
    own = model.state_dict()
    if missing := sorted(own.keys() - tensors.keys()):
        raise UserError(f"{source} lacks {missing[0]} and {len(missing) - 1} more tensors that the model needs")
    if surplus := sorted(tensors.keys() - own.keys()):
        raise UserError(f"{source} holds {surplus[0]} and {len(surplus) - 1} more tensors that the model does not have")
    for name, value in own.items():
        if tensors[name].shape != value.shape:
            raise UserError(f"{source}: {name} is {tuple(tensors[name].shape)}, the model's {tuple(value.shape)}")
    model.load_state_dict(tensors)
