"""Making a detector: a new one, one from a checkpoint, or a new one that starts from a checkpoint's weights."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from tightbox.calibration import Calibration
from tightbox.checkpoint import CARD, WEIGHTS, load_weights, read_card, read_weights, settings_digest, weights_digest
from tightbox.errors import UserError
from tightbox.models.backbone import Backbone
from tightbox.models.detector import Detector
from tightbox.models.iou_aware_retinanet import IoUAwareRetinaNet
from tightbox.models.iou_net import IoUNet
from tightbox.models.skip_init import SkipInit
from tightbox.models.unitbox import UnitBox
from tightbox.models.vfnet import VFNet
from tightbox.options import BackboneOptions, Preprocess, from_earlier_versions
from tightbox.reading import naming

DETECTORS: dict[str, type[Detector]] = {kind.name: kind for kind in (VFNet, IoUAwareRetinaNet, IoUNet, UnitBox)}


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    backbone: str | BackboneOptions | Backbone | None = None,
    pretrained_backbone: bool = True,
    preprocess: Preprocess | None = None,
    **options: Any,
) -> Detector:
    """A new detector.

    Args:
        name: "vfnet", "iou_aware_retinanet", "iou_net" or "unitbox".
        num_classes: how many classes; without `class_names` they are called "0", "1", ...
        class_names: the classes, in the order of their labels.
        backbone: a timm name, its full options, or a backbone that is already built; the published one if not given.
        pretrained_backbone: start from timm's published weights (only where `backbone` is a name or not given).
        preprocess: how images are resized.
        options: fields of the model's own options, such as `channels=64`.

    Raises:
        UserError: if the name or an option is unknown or makes no sense, or the classes are not such.

    >>> create_model("vfnet", num_classes=3, backbone="resnet18", pretrained_backbone=False, channels=32).class_names
    ('0', '1', '2')
    """
    if not isinstance(name, str) or name not in DETECTORS:
        raise UserError(f"there is no model named {name!r:.50}; there is: {', '.join(DETECTORS)}")
    kind = DETECTORS[name]
    if class_names is None and num_classes is None:
        raise UserError("say how many classes there are (num_classes) or what they are called (class_names)")
    if isinstance(class_names, str):
        raise UserError(f"class_names is the text {class_names!r}; give a list of names, such as [{class_names!r}]")
    if num_classes is not None and not isinstance(num_classes, int):
        raise UserError(f"num_classes is {num_classes!r}; it must be a whole number")
    names = [str(i) for i in range(num_classes or 0)] if class_names is None else list(class_names)
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"class_names are {names!r:.100}; each must be a text")
    if num_classes is not None and num_classes != len(names):
        raise UserError(f"num_classes is {num_classes} but {len(names)} class names are given")
    known = {field.name for field in fields(kind.Options)}
    if unknown := sorted(set(options) - known):
        raise UserError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    if backbone is None or isinstance(backbone, str):
        backbone = BackboneOptions(name=backbone or kind.default_backbone, pretrained=pretrained_backbone)
    chosen = kind.Options(**options)
    if isinstance(backbone, BackboneOptions):
        backbone = Backbone(backbone, kind.strides(chosen))
    return kind(backbone=backbone, class_names=names, options=chosen, preprocess=preprocess or Preprocess())


def load(path: str | Path, *, calibrated: bool = True) -> Detector:
    """A detector from the folder it was saved in, in evaluation mode, on the CPU.

    Args:
        path: the folder.
        calibrated: with what `tightbox calibrate` learned, if it was run; else predicted IoUs stay raw.

    Raises:
        UserError: if the folder holds no checkpoint, or card and weights do not fit each other, also if the card was
            calibrated for other weights.
    """
    folder = Path(path)
    card = read_card(folder)
    try:
        backbone = BackboneOptions(**{**card["backbone"], "pretrained": False})
        with SkipInit(), naming(folder / CARD):
            model = create_model(
                card["model"],
                class_names=card["class_names"],
                backbone=backbone,
                preprocess=Preprocess(**card["preprocess"]),
                **from_earlier_versions(card["model"], card["options"]),
            )
    except UserError:
        raise
    except Exception as error:  # whatever timm and PyTorch say of options that fit no network
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder / CARD} is damaged ({reason}); copy the checkpoint again") from error
    tensors = read_weights(folder)
    load_weights(model, tensors, str(folder / WEIGHTS))
    metrics = card.get("metrics", {})
    model.metrics = metrics if isinstance(metrics, dict) else {}
    # Cards from before there were calibrations have no such entry, and the first calibrations no digest.
    if calibrated and card.get("calibration") is not None:
        with naming(folder / CARD):
            model.calibration = Calibration.from_json(card["calibration"])
        now = {"weights": weights_digest(tensors), "settings": settings_digest(model.options, model.preprocess)}
        for what, digest in now.items():
            if getattr(model.calibration, what) not in (None, digest):
                raise UserError(
                    f"{folder / CARD} was calibrated for other {what} than it has now, so its promises do not hold; "
                    f"run `tightbox calibrate {folder} --data DIR` again"
                )
    return model.eval()


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
    try:
        held, names = (card["model"], card["backbone"]["name"]), tuple(card.get("class_names", ()))
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / CARD} is damaged ({error}); copy the checkpoint again") from error
    wanted = (model.name, model.backbone.options.name)
    if held != wanted:
        raise UserError(
            f"{folder} holds {held[0]} on {held[1]}, not {wanted[0]} on {wanted[1]}; leave out --model and --backbone"
        )
    tensors = read_weights(folder)
    same = names == model.class_names
    if not same:
        own = model.state_dict()
        tensors = {name: value for name, value in tensors.items() if not name.startswith(model.class_layers)}
        tensors |= {name: value for name, value in own.items() if name.startswith(model.class_layers)}
    load_weights(model, tensors, str(folder / WEIGHTS))
    return same
