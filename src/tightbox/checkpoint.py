"""Checkpoints: a folder with `weights.safetensors` and `card.json`; nothing is ever unpickled."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tightbox.calibration import Calibration
from tightbox.errors import UserError
from tightbox.files import atomic_paths, json_text, write_json
from tightbox.reading import is_file, read_json, shown
from tightbox.version import __version__

WEIGHTS, CARD, FORMAT = "weights.safetensors", "card.json", 1


def save_checkpoint(folder: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> Path:
    """Write weights and card into a folder; if the disk refuses, an earlier checkpoint there stays whole.

    Args:
        folder: made if need be.
        tensors: the weights by name.
        card: what else a reader needs, fit for JSON; the format's number and the version are added.

    Raises:
        UserError: if the disk refuses.
    """
    held = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_paths(folder / WEIGHTS, folder / CARD) as (weights_file, card_file):
        weights_file.write_bytes(safetensors.torch.save(held))
        card_file.write_text(json_text({"format": FORMAT, "tightbox": __version__, **card}), encoding="utf-8")
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
    if not is_file(path):
        raise UserError(f"{folder} is not a checkpoint: it has no {CARD}; give the folder that `tightbox train` wrote")
    try:
        card = read_json(path)
    except UserError as error:
        raise UserError(f"{path} is damaged ({error}); copy the checkpoint again") from error
    if not isinstance(card, dict) or "format" not in card:
        raise UserError(f"{path} is damaged (it names no format); copy the checkpoint again")
    if card["format"] != FORMAT:
        raise UserError(f"{path} has format {shown(card['format'])}; this tightbox reads {FORMAT}: upgrade tightbox")
    return card


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint folder.

    Raises:
        UserError: if they cannot be read.
    """
    try:
        return dict(safetensors.torch.load_file(folder / WEIGHTS))
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read ({error}); copy the checkpoint again") from error


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the tensors with their names, types and shapes, in hexadecimal: the same in whatever file they are."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def settings_digest(*settings: Any) -> str:
    """SHA-256 of what differs from the options' defaults, in hexadecimal, so that later options change nothing."""
    changed = [{f.name: v for f in fields(part) if (v := getattr(part, f.name)) != f.default} for part in settings]
    return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()


def load_weights(module: torch.nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors into a module; every name and shape must fit.

    Raises:
        UserError: naming the first misfit.
    """
    refuse_misfits(module.state_dict(), tensors, source)
    module.load_state_dict(tensors)


def refuse_misfits(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str) -> None:
    """A UserError that names the first tensor that is missing, too many, not finite, or of another shape."""
    if missing := sorted(own.keys() - tensors.keys()):
        raise UserError(f"{source} lacks {missing[0]} and {len(missing) - 1} more tensors that the model needs")
    if surplus := sorted(tensors.keys() - own.keys()):
        raise UserError(f"{source} holds {surplus[0]} and {len(surplus) - 1} more tensors that the model does not have")
    for name, value in own.items():
        if not tensors[name].isfinite().all():
            raise UserError(f"{source}: {name} holds NaN or infinity; take the checkpoint of an earlier epoch")
        if tensors[name].shape != value.shape:
            raise UserError(f"{source}: {name} is {tuple(tensors[name].shape)}, the model's {tuple(value.shape)}")
