"""Every choice a user can make, as frozen dataclasses: the command line, YAML files and checkpoint cards all use these.

Nothing here imports torch, so that `tightbox --help` answers at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tightbox.errors import UserError

# What numbers must be, by the option's name, which means the same wherever it is that of a number.
_NUMBERS: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("at least 1", lambda x: x >= 1, "channels fc_channels top_k max_detections train_proposals proposals rois"),
    ("at least 1", lambda x: x >= 1, "jittered_boxes min_region dense_stride batch_size accumulate eval_every"),
    ("at least 1", lambda x: x >= 1, "max_batch max_queue"),
    ("0 or more", lambda x: x >= 0, "tower_depth iou_weight refine_steps refine_step_size refine_min_change"),
    ("0 or more", lambda x: x >= 0, "refine_max_drop confidence_weight box_weight frozen_stages weight_decay warmup"),
    ("0 or more", lambda x: x >= 0, "varifocal_alpha varifocal_gamma clip patience workers cache seed max_wait_ms"),
    ("0 or more", lambda x: x >= 0, "epochs swa_epochs"),
    ("more than 0", lambda x: x > 0, "anchor_scale distance_unit scale_min minutes lr max_mb max_megapixels timeout_s"),
    ("in [0, 1]", lambda x: 0 <= x <= 1, "offset_gradient alpha flip vertical_flip crop mosaic mosaic_until color"),
    ("in [0, 1]", lambda x: 0 <= x <= 1, "side_crop cutout first_drop second_drop"),
    ("in [0, 1)", lambda x: 0 <= x < 1, "score_threshold threshold ema"),
    ("in (0, 1]", lambda x: 0 < x <= 1, "nms_iou positive_fraction region_scale"),
    # No card asks for more than a machine has.
    ("at most 16384", lambda x: x <= 16384, "channels"),
    ("at most 65536", lambda x: x <= 65536, "fc_channels"),
    ("at most 64", lambda x: x <= 64, "tower_depth"),
    ("at most 10", lambda x: x <= 10, "scale_max"),
    ("below 2^32", lambda x: x < 2**32, "seed"),
    ("from 32 to 16384", lambda x: 32 <= x <= 16384, "long_side short_side"),
)


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise UserError(sentence)


class _Options:
    """Every field holds what it is declared to: one of its choices, or a value of its type; numbers are in range."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if NoneType in get_args(kind):
                if value is None:
                    continue
                kind = next(part for part in get_args(kind) if part is not NoneType)
            given = f"{name} is {value!r:.50}"
            if get_origin(kind) is Literal:
                _require(value in get_args(kind), f"{given}; choose from {', '.join(get_args(kind))}")
            else:
                wanted = {bool: "True or False", int: "a whole number", float: "a finite number", str: "a text"}[kind]
                held = (int, float) if kind is float else kind
                fits = isinstance(value, held) and isinstance(value, bool) == (kind is bool)
                _require(fits and (kind is not float or -inf < value < inf), f"{given}; it must be {wanted}")
                short = kind is not int or abs(value) < 2**63
                _require(short, f"{name} has more than 63 bits; choose a smaller number")
            for words, fulfils, names in _NUMBERS:
                applies = kind in (int, float) and name in names.split()
                _require(not applies or fulfils(value), f"{given}; it must be {words}")


@dataclass(frozen=True, kw_only=True)
class Preprocess(_Options):
    """How an image becomes the network's input.

    Args:
        long_side: the image is resized, keeping its shape, so that its longer side has at most this many pixels ...
        short_side: ... and its shorter side at most this many; the published models use 1333 and 800.
    """

    long_side: int = 1333
    short_side: int = 800

    def scale(self, width: int, height: int) -> float:
        """The factor by which an image of this size is resized."""
        return min(self.long_side / max(width, height), self.short_side / min(width, height))


@dataclass(frozen=True, kw_only=True)
class PyramidOptions(_Options):
    """The feature pyramid, of every detector that has one.

    Args:
        channels: width of the feature pyramid, and of a dense head.
        neck: FPN, or PAFPN, which adds a bottom-up path to it (VFNet-X).
        neck_norm: group norms after the pyramid's 3x3 convolutions (VFNet-X; small models from random weights).
        lateral_norm: and after its lateral 1x1 convolutions, which VFNet-X has not (small models from random weights).
        neck_deformable: the bottom-up path ends in modulated deformable convolutions (DCNv2; VFNet-X).
    """

    channels: int = 256
    neck: Literal["fpn", "pafpn"] = "fpn"
    neck_norm: bool = False
    lateral_norm: bool = False
    neck_deformable: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        missing = self.neck_deformable and self.neck != "pafpn"
        _require(not missing, "neck_deformable needs the bottom-up path: neck=pafpn")
        fits = self.channels % 32 == 0 or not (self.neck_norm or self.lateral_norm)
        _require(fits, f"channels is {self.channels}; with neck_norm or lateral_norm it must be a multiple of 32")


@dataclass(frozen=True, kw_only=True)
class VFNetOptions(PyramidOptions):
    """VarifocalNet; the defaults are the published ResNet-50 model.

    Args:
        tower_depth: 3x3 convolutions in each of the two towers.
        deformable: the last convolution of each tower is a modulated deformable one (DCNv2).
        varifocal: varifocal loss on the IoU-aware class score; off, focal loss on plain classes.
        star: star-shaped deformable convolution on the initial box; off, a plain convolution.
        star_norm: a group norm after each star convolution; the published model has none, and from random weights few
            images are enough only with it.
        star_init: of the star convolutions' weights: N(0, 0.01) as published for 256 channels, or Kaiming's, which
            depends on the width and keeps the scale of what passes through.
        refine: a second box branch that scales the initial box.
        refine_gradient: what the scaled box learns goes on into the initial box, which otherwise, as published, learns
            from its own loss alone; few images are enough only with it.
        centerness: FCOS's centerness branch, for the FCOS+ATSS baseline (needs varifocal off).
        varifocal_alpha: weight of the negatives in the varifocal loss ...
        varifocal_gamma: ... and their focusing exponent.
        iou_weighted: weigh each positive of the varifocal loss by its IoU.
        assigner: which points learn an object: ATSS, or FCOS by distance ranges.
        atss_topk: with ATSS, how many points of a level are candidates for an object, the nearest ones; fewer than
            the published nine leave out those near the sides of small objects, which are slow to learn.
        center_sampling: with the FCOS assigner, only points within 1.5 strides of the centre.
        distance_unit: what exp() of the box branch is multiplied by: the level's distance range, or its stride.
        iou_weighted_boxes: weigh each positive of the box losses by its IoU; off, small boxes, whose IoU is low at
            first, learn as fast as large ones.
        box_weight: what both box losses, which the paper weighs by 2 (final box) and 1.5 (initial box), are multiplied
            by; with less, classes are learned from fewer images.
        normaliser: box losses are divided by the sum of IoU weights (released code) or the number of positives (paper).
        offset_gradient: fraction of the gradient that flows through the star's offsets into the initial box.
        ignore_crowds: leave points inside crowd regions out of the class loss; the published training does not.
        top_k: candidates kept per pyramid level before suppression.
        top_k_of: rank whole locations (released code, paper) or single (location, class) pairs above score_threshold
            (later mmdetection).
        suppress: greedy, or soft-NMS (linear), which lowers the scores of such boxes instead (VFNet-X), or greedy and
            then score voting: each kept box becomes a mean of those around it, by their scores.
        score_threshold: lowest score that is reported.
        nms_iou: boxes of one class that overlap more than this are suppressed.
        max_detections: most boxes reported per image.
    """

    tower_depth: int = 3
    deformable: bool = False
    varifocal: bool = True
    star: bool = True
    star_norm: bool = False
    star_init: Literal["published", "kaiming"] = "published"
    refine: bool = True
    refine_gradient: bool = False
    centerness: bool = False
    varifocal_alpha: float = 0.75
    varifocal_gamma: float = 2.0
    iou_weighted: bool = True
    assigner: Literal["atss", "fcos"] = "atss"
    atss_topk: int = 9
    center_sampling: bool = False
    distance_unit: Literal["range", "stride"] = "range"
    iou_weighted_boxes: bool = True
    box_weight: float = 1.0
    normaliser: Literal["iou_sum", "num_positives"] = "iou_sum"
    offset_gradient: float = 0.1
    ignore_crowds: bool = False
    top_k: int = 1000
    top_k_of: Literal["locations", "pairs"] = "locations"
    suppress: Literal["greedy", "soft_linear", "voting"] = "greedy"
    score_threshold: float = 0.05
    nms_iou: float = 0.6
    max_detections: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.channels % 32 == 0, f"channels is {self.channels}; group norm needs a multiple of 32")
        _require(self.atss_topk >= 1, f"atss_topk is {self.atss_topk}; an object needs 1 candidate or more")
        _require(not (self.ignore_crowds and self.assigner == "fcos"), "ignore_crowds needs the ATSS assigner")
        baseline = not (self.centerness and self.varifocal)
        _require(baseline, "centerness belongs to the baseline: also set varifocal=false")


@dataclass(frozen=True, kw_only=True)
class IoUAwareRetinaNetOptions(PyramidOptions):
    """IoU-aware RetinaNet; the defaults are the published model.

    Args:
        tower_depth: 3x3 convolutions in each of the two towers.
        tower_norm: group norms in the towers; the published model has none, and from random weights few images are
            enough only with them.
        anchor_scale: side of a level's smallest anchor, in strides.
        iou_head: predict the IoU of each anchor's box; off, this is RetinaNet.
        iou_loss: loss of that prediction: binary cross-entropy, absolute or squared difference.
        detach_target: keep the gradient of that loss out of the box; the released code lets it through the target.
        alpha: weight of the class score in the ranking p^alpha * iou^(1 - alpha); 1 is RetinaNet's ranking.
        ignore_crowds: leave anchors inside crowd regions out of the class loss; the published training does not.
        top_k: candidates kept per pyramid level before suppression.
        suppress: greedy, or soft-NMS (linear), which lowers the scores of such boxes instead, or greedy and then score
            voting: each kept box becomes a mean of those around it, by their scores.
        score_threshold: lowest ranking score that is reported.
        nms_iou: boxes of one class that overlap more than this are suppressed.
        max_detections: most boxes reported per image.
    """

    tower_depth: int = 4
    tower_norm: bool = False
    anchor_scale: float = 4.0
    iou_head: bool = True
    iou_loss: Literal["bce", "l1", "l2"] = "bce"
    detach_target: bool = False
    alpha: float = 0.5
    ignore_crowds: bool = False
    top_k: int = 1000
    suppress: Literal["greedy", "soft_linear", "voting"] = "greedy"
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.channels % 32 == 0 or not self.tower_norm
        _require(fits, f"channels is {self.channels}; with group norm it must be a multiple of 32")


@dataclass(frozen=True, kw_only=True)
class IoUNetOptions(PyramidOptions):
    """IoU-Net; the defaults are the published model, and where the paper is silent, common ones.

    Args:
        fc_channels: width of the two layers of each head.
        pooling: features of a box by precise RoI pooling, or by RoIAlign, through which no box can be refined.
        anchor_scale: side of a level's square anchor, in strides.
        train_proposals: boxes proposed per image in training ...
        proposals: ... and in use.
        rois: proposals per image that the class and box losses see.
        positive_fraction: at most this fraction of them on objects.
        iou_head: predict the IoU of boxes; off, this is FPN, the paper's baseline.
        standalone: only that head with its features, to judge boxes of other detectors: `tightbox rescore`.
        jittered_boxes: boxes per image, shared among its objects, that the IoU head learns from.
        iou_loss: loss of that prediction: smooth L1 on 2 IoU - 1, or binary cross-entropy on the IoU.
        iou_weight: weight of that loss.
        ignore_crowds: leave anchors and proposals inside crowd regions out of the losses.
        score_threshold: lowest class score that is considered.
        top_k: most (proposal, class) pairs considered per image, by class score; the paper has no limit.
        suppress: IoU-guided suppression (needs the IoU head), or greedy by class score, or soft-NMS (linear).
        nms_iou: boxes of one class that overlap more than this are suppressed.
        max_detections: most boxes reported per image.
        refine_steps: gradient steps that move the detected boxes to a higher predicted IoU; 0 is off.
        refine_step_size: of a step, in box sizes per unit of the gradient.
        refine_min_change: a box rests once a step changes its predicted IoU by less than this ...
        refine_max_drop: ... or lowers it by more than this.
        refine_roll_back: take back the step after which a box rests, if it lowered the predicted IoU.
        rank_by_iou: the reported score is class score times predicted IoU; published is the class score.
    """

    fc_channels: int = 1024
    pooling: Literal["prroi", "roi_align"] = "prroi"
    anchor_scale: float = 8.0
    train_proposals: int = 2000
    proposals: int = 1000
    rois: int = 512
    positive_fraction: float = 0.25
    iou_head: bool = True
    standalone: bool = False
    jittered_boxes: int = 1000
    iou_loss: Literal["smooth_l1", "bce"] = "smooth_l1"
    iou_weight: float = 5.0
    ignore_crowds: bool = False
    score_threshold: float = 0.05
    top_k: int = 5000
    suppress: Literal["iou_guided", "greedy", "soft_linear"] = "iou_guided"
    nms_iou: float = 0.5
    max_detections: int = 100
    refine_steps: int = 5
    refine_step_size: float = 0.5
    refine_min_change: float = 0.001
    refine_max_drop: float = 0.01
    refine_roll_back: bool = False
    rank_by_iou: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.iou_head or not self.standalone, "standalone is the IoU head alone: leave iou_head=true")
        _require(
            self.pooling == "prroi" or self.refine_steps == 0 or not self.iou_head,
            "RoIAlign passes no gradient to the boxes: with pooling=roi_align, set refine_steps=0",
        )


@dataclass(frozen=True, kw_only=True)
class UnitBoxOptions(_Options):
    """UnitBox; the defaults are the published model where the paper says anything.

    Args:
        loss: of the boxes: -ln IoU, or the squared differences of the four distances that the paper compares it with.
        region: which pixels of an object are positive: the ellipse inscribed in its box, or the whole box.
        region_scale: of the confident part of that, around the same centre; below 1, objects that touch are told apart.
        pooled: the branches start after the pooling of stages 4 and 5, at strides 16 and 32, or before it, at 8 and 16
            (of a ResNet or another network that shrinks at the start of its stages: stages 3 and 4). After it by
            default, as that is where the stages of VGG end; before it, small objects are told apart better.
        shared: both branches use one backbone; off, each has its own (the paper's "unshared").
        confidence_weight: of the confidence loss.
        box_weight: of the box loss.
        reduction: losses are means over their pixels, or sums over the pixels of an image; the paper's learning rate
            of 1e-8 suggests sums.
        distance_unit: pixels that the box branch's output 1 means; the squared differences are of this unit too. With
            1 both are the paper's; the IoU loss is the same in any unit, but its learning rate is not.
        threshold: pixels whose confidence is above this are on an object.
        score: of a detection: the confidence at the pixel where its box is read, or the mean over its region.
        min_region: regions of fewer pixels are left out.
        nms: suppress overlapping boxes of regions too; the paper does not.
        dense_stride: the dense reading has every such pixel, across and down.
        top_k: most boxes of the dense reading.
        score_threshold: lowest score that is reported.
        nms_iou: boxes of one class that overlap more than this are suppressed, where they are suppressed.
        max_detections: most boxes reported per image.
    """

    loss: Literal["iou", "l2"] = "iou"
    region: Literal["ellipse", "box"] = "ellipse"
    region_scale: float = 1.0
    pooled: bool = True
    shared: bool = True
    confidence_weight: float = 1.0
    box_weight: float = 1.0
    reduction: Literal["mean", "sum"] = "mean"
    distance_unit: float = 32.0
    threshold: float = 0.5
    score: Literal["centre", "mean"] = "centre"
    min_region: int = 1
    nms: bool = False
    dense_stride: int = 4
    top_k: int = 3000
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100


MODEL_OPTIONS = {
    "vfnet": VFNetOptions,
    "iou_aware_retinanet": IoUAwareRetinaNetOptions,
    "iou_net": IoUNetOptions,
    "unitbox": UnitBoxOptions,
}


def from_earlier_versions(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A model's options by today's names and values, from a card or a configuration that any version wrote."""
    known = dict(options)
    if model == "vfnet" and "normaliser" in known:
        names = {"code": "iou_sum", "paper": "num_positives"}
        known["normaliser"] = names.get(known["normaliser"], known["normaliser"])
    if model == "iou_net" and "positive_share" in known:
        known["positive_fraction"] = known.pop("positive_share")
    return known


@dataclass(frozen=True, kw_only=True)
class BackboneOptions(_Options):
    """The network that turns pixels into features.

    Args:
        name: any timm model that gives features at strides 8, 16 and 32 of images of any size.
        pretrained: start from timm's published weights (downloaded once); off, from random numbers.
        zero_init: the last norm of every residual block starts at zero where weights are random, as timm has it; off,
            at one, by which few images are enough sooner.
        frozen_stages: how many of the first stages (the stem counts with the first) are not trained.
        frozen_norm: batch norms keep their stored statistics.
        deformable: modulated deformable 3x3 convolutions (DCNv2) in stages 3 to 5, for ResNet, ResNeXt and Res2Net.
        res2net_pool: Res2Net's first block averages its last split over 3x3 cells; off, as in published VFNet models.
    """

    name: str = "resnet50"
    pretrained: bool = True
    zero_init: bool = True
    frozen_stages: int = 0
    frozen_norm: bool = False
    deformable: bool = False
    res2net_pool: bool = True


@dataclass(frozen=True, kw_only=True)
class AugmentOptions(_Options):
    """Random changes to training images; each probability is per image.

    Args:
        flip: probability of a left-right flip.
        vertical_flip: probability of a top-bottom flip; for images without an up and down, such as microscopy.
        scale_min: smallest factor of the random resize.
        scale_max: largest factor of the random resize.
        crop: probability of a crop that keeps at least one object, chosen by overlap (SSD's).
        side_crop: probability of a crop to at least three quarters of each side (VFNet-X).
        cutout: probability that five to ten small places, of up to 48 pixels, turn black (VFNet-X).
        color: strength of random brightness, contrast, saturation and hue; 0 is off.
        mosaic: probability that four images are joined into one.
        mosaic_until: fraction of the training after which mosaics stop, so that the end sees real images.
    """

    flip: float = 0.5
    vertical_flip: float = 0.0
    scale_min: float = 0.7
    scale_max: float = 1.4
    crop: float = 0.0
    side_crop: float = 0.0
    cutout: float = 0.0
    color: float = 0.3
    mosaic: float = 0.0
    mosaic_until: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.scale_min <= self.scale_max, "scale_min must be at most scale_max")


EPOCHS = 100  # of a training whose length is not given
LEARNING_RATES = {"adamw": 1e-3, "muon": 3e-3, "sgd": 1e-2}  # where none is given


@dataclass(frozen=True, kw_only=True)
class TrainOptions(_Options):
    """The schedule and the engine.

    Args:
        epochs: passes over the training images; 100 if no minutes are given instead; 0 only before swa_epochs.
        minutes: train for so long, not counting evaluation: the schedule fits itself to the clock. Evaluated at the end
            and at most every ten minutes.
        batch_size: images per step and process.
        accumulate: steps whose gradients are added up before the weights change.
        optimizer: AdamW; Muon, which learns more from each image where weights are random, with AdamW for what tells
            classes apart and what is too narrow or too wide; or SGD with momentum 0.9 (biases at twice
            the rate without decay, as published).
        lr: highest learning rate; if not given 0.001 for AdamW, 0.003 for Muon, 0.01 for SGD.
        weight_decay: pull towards zero on weights, not on biases and norms.
        warmup: steps of linear warm-up; a number below 1 is a fraction of the whole training.
        schedule: after the warm-up, one half cosine, or two drops to a tenth.
        first_drop: fraction of the training after which a step schedule drops; 2/3 in the papers' 1x and 2x ...
        second_drop: ... and drops again, there after 11/12.
        swa_epochs: epochs after these, in each of which the rate falls from its highest to a hundredth of that; the
            mean of the weights at their ends is evaluated and saved (stochastic weight averaging).
        ema: decay of the moving average of the weights that is evaluated and saved; 0 is off.
        clip: gradients are scaled down to this norm; 0 is off.
        precision: number format of the forward pass; auto is bf16 where the hardware computes in it, else fp16 on a
            GPU and fp32 on a CPU.
        eval_every: epochs between evaluations on the validation split, if no minutes are given.
        patience: stop after this many evaluations without a better AP; 0 is never.
        keep_all: keep the weights of every evaluation, in epoch-N.
        workers: processes that load images; 0 loads in the training process.
        cache: keep decoded images in memory, up to this many megabytes.
        skip_unreadable: go on past images that cannot be read, naming each, instead of stopping.
        sync_batchnorm: batch norms take their statistics over the images of all processes; on GPUs only.
        seed: of weights, order and augmentation.
        tensorboard: also log for TensorBoard (needs the extra `track`).
    """

    epochs: int | None = None
    minutes: float | None = None
    batch_size: int = 8
    accumulate: int = 1
    optimizer: Literal["adamw", "muon", "sgd"] = "adamw"
    lr: float | None = None
    weight_decay: float = 0.05
    warmup: float = 0.05
    schedule: Literal["cosine", "step"] = "cosine"
    first_drop: float = 2 / 3
    second_drop: float = 11 / 12
    swa_epochs: int = 0
    ema: float = 0.998
    clip: float = 10.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    eval_every: int = 5
    patience: int = 0
    keep_all: bool = False
    workers: int = 1
    cache: int = 2000
    skip_unreadable: bool = False
    sync_batchnorm: bool = False
    seed: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.minutes is None and self.epochs is None:
            object.__setattr__(self, "epochs", EPOCHS)
        if self.lr is None:
            object.__setattr__(self, "lr", LEARNING_RATES[self.optimizer])
        _require(self.minutes is None or self.epochs is None, "give either --minutes or --epochs, not both")
        _require(self.epochs != 0 or self.swa_epochs > 0, "epochs is 0; it must be at least 1, or swa_epochs")
        _require(self.minutes is None or self.swa_epochs == 0, "swa_epochs come after epochs, not after minutes")
        timed_warmup = "warmup must be below 1, a fraction, with --minutes: how many steps there will be is not known"
        _require(self.minutes is None or self.warmup < 1, timed_warmup)


@dataclass(frozen=True, kw_only=True)
class ServeOptions(_Options):
    """How much an endpoint takes on at once, and what it refuses.

    Args:
        max_batch: most images that the network sees together.
        max_wait_ms: longest time that a batch waits for images which have arrived and are being decoded.
        max_queue: most images accepted and not yet answered; more are refused with 503.
        max_mb: largest body of a request, in megabytes (10^6 bytes).
        max_megapixels: largest image, in millions of pixels.
        timeout_s: longest time from the head of a request to its answer.
    """

    max_batch: int = 8
    max_wait_ms: float = 10.0
    max_queue: int = 64
    max_mb: float = 20.0
    max_megapixels: float = 50.0
    timeout_s: float = 30.0
