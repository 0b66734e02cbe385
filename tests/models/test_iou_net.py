from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.models import BACKBONE
from tests.helpers.models import proposals as proposals_of
from tests.helpers.models import same_detections as same
from tests.helpers.models import tiny_iou_net as tiny
from tightbox.assigners import IGNORED
from tightbox.boxes import encode_deltas, pairwise_iou
from tightbox.calibration import Calibration, IouCalibration
from tightbox.errors import UserError
from tightbox.jitter import jitter_boxes
from tightbox.models import IoUNet, create_model, iou_net, load, rpn, start_from
from tightbox.models.roi_head import encode
from tightbox.options import IoUNetOptions
from tightbox.promises import Margins
from tightbox.rank import by_power
from tightbox.refine import refine_boxes
from tightbox.structures import Detections, ImageBatch, Targets
from tightbox.suppress import greedy_nms

pytestmark = pytest.mark.usefixtures("device")

SIZES = [(64, 64), (48, 80)]


@pytest.fixture(scope="module")
def model() -> IoUNet:
    return tiny()


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.rand(3, *size) for size in SIZES]


@pytest.fixture(scope="module")
def targets() -> list[Targets]:
    one = Targets.of(torch.tensor([[4.0, 6.0, 30.0, 40.0], [20.0, 20.0, 60.0, 50.0]]), torch.tensor([0, 2]))
    return [one, Targets.of(torch.zeros(0, 4), torch.zeros(0))]


def with_options(model: IoUNet, **changes: Any) -> IoUNet:
    """The same weights under other options."""
    other = tiny(**{"iou_head": model.options.iou_head} | changes)
    other.load_state_dict(model.state_dict())
    return other


def test_losses_reach_every_weight(images: list[Tensor], targets: list[Targets]) -> None:
    model = tiny().train()
    losses = model.loss(images, targets)
    assert list(losses) == ["rpn_class", "rpn_box", "class", "box", "iou"]
    assert all(value.dtype == torch.float32 and value > 0 for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert idle == []


def test_iou_loss_reaches_only_the_channels_of_the_objects_classes(
    images: list[Tensor], targets: list[Targets]
) -> None:
    model = tiny().train()
    model.loss(images, targets)["iou"].backward()
    assert model.iou_head is not None
    gradient = model.iou_head.ious.weight.grad
    assert gradient is not None
    assert (gradient.abs().sum(dim=1) > 0).tolist() == [True, False, True]  # there is no dog
    assert model.head is not None
    assert model.head.classes.weight.grad is None


def test_jittered_boxes_are_shared_among_the_objects_and_come_from_the_global_generator(
    images: list[Tensor], targets: list[Targets], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny().train()
    seen: list[int] = []

    def count(_: Any, inputs: tuple[Tensor, Tensor], __: Any) -> None:
        seen.append(len(inputs[1]))

    assert model.iou_head is not None
    model.iou_head.register_forward_hook(count)
    losses = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        losses.append(model.loss(images, targets)["iou"].item())
    assert seen == [12, 12, 12]  # six of each of two objects; the second image has none
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("kind", ["joint", "baseline", "standalone", "bce"])
def test_images_without_objects(kind: str, images: list[Tensor]) -> None:
    changes: dict[str, dict[str, Any]] = {
        "baseline": {"iou_head": False},
        "standalone": {"standalone": True},
        "bce": {"iou_loss": "bce"},
    }
    model = tiny(**changes.get(kind, {})).train()
    losses = model.loss(images, [Targets.of(torch.zeros(0, 4), torch.zeros(0))] * 2)
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    nothing = {name for name, value in losses.items() if value == 0}
    assert nothing == {"rpn_box", "box", "iou"} & set(losses)


def test_bf16_training_gives_float32_losses_near_those_of_float32(images: list[Tensor], targets: list[Targets]) -> None:
    model = tiny()
    values = []
    for half in (False, True):
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            values.append(model.loss(images, targets)["iou"])
    assert values[1].dtype == torch.float32
    torch.testing.assert_close(values[1], values[0], rtol=0.05, atol=0)


def test_without_the_iou_head_it_is_the_baseline(model: IoUNet, images: list[Tensor]) -> None:
    baseline = tiny(iou_head=False)
    weights, own = model.state_dict(), baseline.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in own.items())
    assert {name.split(".")[0] for name in weights.keys() - own.keys()} == {"iou_head"}
    switched = with_options(model, suppress="greedy", refine_steps=0)
    for a, b in zip(baseline.detect(images), switched.detect(images), strict=True):
        assert same(a, b)
        assert a.ious is None
        assert b.ious is not None
    with pytest.raises(UserError, match="without its IoU head"):
        baseline.predict_ious(images, baseline.detect(images))


def test_standalone_has_only_what_judges_boxes(model: IoUNet, images: list[Tensor], targets: list[Targets]) -> None:
    alone = tiny(standalone=True)
    assert {name for name, _ in alone.named_children()} == {"backbone", "fpn", "iou_head"}
    assert list(alone.loss(images, targets)) == ["iou"]
    for use in (lambda x: alone.assigned_candidates(x, targets), alone.detect, alone.candidates):
        with pytest.raises(UserError, match="rescore"):
            use(images)
    found = model.detect(images)
    assert [len(ious) for ious in alone.predict_ious(images, found)] == [len(f) for f in found]


def test_candidates_are_pairs_of_proposal_and_class(model: IoUNet, images: list[Tensor]) -> None:
    for candidates, size in zip(model.candidates(images), SIZES, strict=True):
        assert len(candidates) > 20  # more than the proposals
        scores, ious = candidates.class_scores, candidates.ious
        assert ((scores > 0).sum(dim=1) == 1).all()
        assert (scores.amax(dim=1) > 0.2).all()
        assert ious is not None
        assert ious.shape == (len(candidates),)
        assert ((ious >= 0) & (ious <= 1)).all()
        assert candidates.levels is None
        assert (candidates.boxes >= 0).all()
        assert (candidates.boxes[:, 2:] <= torch.tensor([size[1], size[0]])).all()


def test_top_k_keeps_the_best_pairs(model: IoUNet, images: list[Tensor]) -> None:
    every, few = model.candidates(images)[0], with_options(model, top_k=7).candidates(images)[0]
    best = every.class_scores.amax(dim=1).topk(7).values
    torch.testing.assert_close(few.class_scores.amax(dim=1).sort(descending=True).values, best)


def test_every_proposal_that_learns_an_object_is_a_candidate_for_its_class(model: IoUNet, images: list[Tensor]) -> None:
    pyramid = model.features(images)
    assert model.rpn is not None
    proposals = proposals_of(model.rpn, model.rpn(pyramid.levels), pyramid.sizes, model.options.proposals)
    # Objects where some proposals are, and one where none is.
    targets = [
        Targets.of(torch.stack([proposals[0][3] + 1, torch.tensor([0.0, 0.0, 1.0, 1.0])]), torch.tensor([1, 0])),
        Targets.of(proposals[1][:1], torch.tensor([2])),
    ]
    strict = with_options(model, score_threshold=0.9)
    assert [len(candidates) for candidates in strict.candidates(images)] == [0, 0]
    for i, (candidates, matched) in enumerate(strict.assigned_candidates(images, targets)):
        overlaps = pairwise_iou(proposals[i], targets[i].boxes)
        assert len(candidates) == (overlaps.amax(dim=1) >= 0.5).sum() > 0
        assert (matched >= 0).all()
        assert candidates.class_scores.argmax(dim=1).equal(targets[i].labels[matched])
    # With a low threshold the same objects are learnt, by the pairs of other classes too.
    for candidates, matched in model.assigned_candidates(images, targets):
        assert len(matched) == len(candidates)
        assert set(matched.tolist()) == {-1, 0}
    nothing = [Targets.of(torch.zeros(0, 4), torch.zeros(0))] * len(images)
    assert all((matched == -1).all() for _, matched in model.assigned_candidates(images, nothing))


def test_refinement_raises_the_predicted_iou_and_leaves_no_gradients(model: IoUNet, images: list[Tensor]) -> None:
    still = with_options(model, refine_steps=0)
    moving = with_options(model, refine_steps=4, refine_min_change=0.0, refine_step_size=5.0)
    for before, after in zip(still.detect(images), moving.detect(images), strict=True):
        assert before.ious is not None
        assert after.ious is not None
        assert len(after) == len(before) > 0
        assert torch.equal(before.scores, after.scores)
        assert not torch.equal(before.boxes, after.boxes)
        assert after.ious.mean() > before.ious.mean()
        assert not after.ious.requires_grad
    assert all(p.grad is None for p in moving.parameters())


def test_refined_boxes_carry_the_iou_predicted_for_them(model: IoUNet, images: list[Tensor]) -> None:
    moving = with_options(model, refine_steps=4, refine_step_size=5.0, refine_min_change=2e-3)  # some rest early
    found = moving.detect(images)
    for detections, again in zip(found, moving.predict_ious(images, found), strict=True):
        assert detections.ious is not None
        torch.testing.assert_close(detections.ious, again, atol=1e-4, rtol=0)


def test_refined_boxes_stay_in_their_images(model: IoUNet, images: list[Tensor]) -> None:
    moving = with_options(model, refine_steps=3, refine_step_size=500.0, refine_max_drop=1.0, refine_min_change=0.0)
    given = []
    for height, width in SIZES:
        box = torch.tensor([[-9.0, 1.0, width + 9.0, height - 1.0], [2.0, 2.0, width - 2.0, height - 2.0]])
        given.append(Detections(box, torch.ones(2), torch.tensor([0, 1])))
    found = moving.rescore(images, given)
    # The images have different sides, and the longer of both batched together is no bound.
    for (height, width), detections, again in zip(SIZES, found, moving.predict_ious(images, found), strict=True):
        assert detections.boxes.amin() >= 0
        assert detections.boxes[:, 2].amax() <= width
        assert detections.boxes[:, 3].amax() <= height
        torch.testing.assert_close(detections.ious, again, atol=1e-4, rtol=0)


@pytest.mark.parametrize("steps", [0, 3])
def test_pieces_change_nothing(
    model: IoUNet, images: list[Tensor], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    still = with_options(model, refine_steps=steps, refine_step_size=5.0)
    together = still.detect(images)
    monkeypatch.setattr(sys.modules[IoUNet.__module__], "PIECE", 7)
    for whole, pieces in zip(together, still.detect(images), strict=True):
        torch.testing.assert_close(pieces.boxes, whole.boxes)
        torch.testing.assert_close(pieces.ious, whole.ious)
        assert torch.equal(pieces.labels, whole.labels)


def test_autocast_does_not_blunt_the_predicted_iou(model: IoUNet, images: list[Tensor]) -> None:
    """The head's own layers stay in float32: bf16 would give no more than some 30 values between 0.4 and 0.6."""
    given = [
        Detections(c.boxes, c.class_scores.amax(dim=1), c.class_scores.argmax(dim=1)) for c in model.candidates(images)
    ]
    with torch.autocast("cpu", torch.bfloat16):
        ious = torch.cat(model.predict_ious(images, given))
    assert ious.dtype == torch.float32
    assert not torch.equal(ious * 2 - 1, (ious * 2 - 1).bfloat16().float())


def test_boxes_that_are_not_numbers_are_no_candidates(model: IoUNet, images: list[Tensor]) -> None:
    broken = with_options(model)
    assert broken.head is not None
    with torch.no_grad():
        broken.head.deltas.bias[4:8] = torch.nan  # of the second class
    for found, all_of_them in zip(broken.candidates(images), model.candidates(images), strict=True):
        assert found.boxes.isfinite().all()
        assert len(found) == int((all_of_them.class_scores.argmax(dim=1) != 1).sum())
    assert all(found.labels.ne(1).all() for found in broken.detect(images))
    nan = Detections(torch.full((1, 4), torch.nan), torch.ones(1), torch.zeros(1, dtype=torch.int64))
    if model.device.type == "cuda":  # to say so, it would have to be waited for
        assert model.predict_ious(images[:1], [nan])[0].isnan().all()
        return
    with pytest.raises(UserError, match="box 0 is not finite"):
        model.predict_ious(images[:1], [nan])


def test_a_sliver_teaches_no_iou_and_stops_nothing(images: list[Tensor]) -> None:
    model = tiny(standalone=True).train()  # in which nothing else draws random numbers
    good = Targets.of(torch.tensor([[4.0, 6.0, 30.0, 40.0]]), torch.tensor([0]))
    thin = Targets.of(torch.tensor([[4.0, 6.0, 30.0, 40.0], [80.0, 5.0, 80.0, 9.0]]), torch.tensor([0, 1]))
    losses = []
    for target in (good, thin):
        torch.manual_seed(3)
        losses.append(model.loss(images[:1], [target])["iou"].item())
    assert losses[0] == losses[1]


def test_detecting_under_inference_mode_is_the_same(model: IoUNet, images: list[Tensor]) -> None:
    with torch.inference_mode():
        inferred = model.detect(images)
    assert all(same(a, b) for a, b in zip(inferred, model.detect(images), strict=True))


def test_nothing_above_the_threshold(model: IoUNet, images: list[Tensor]) -> None:
    for found in with_options(model, score_threshold=0.9).detect(images):
        assert len(found) == 0
        assert found.ious is not None
        assert found.ious.shape == (0,)


def test_a_candidate_is_of_one_class_even_if_the_class_score_does_not_count(
    model: IoUNet, images: list[Tensor]
) -> None:
    candidates = model.candidates(images)[0]
    found = model.select(candidates, partial(by_power, alpha=0.0), partial(greedy_nms, iou_threshold=1.0))
    assert len(found) == min(len(candidates), 100)
    one = Detections(candidates.boxes[:1], torch.ones(1), torch.tensor([2]))
    (ranked,) = model.rescore(images[:1], [one], rank=partial(by_power, alpha=0.0), refine_steps=0)
    assert ranked.labels.tolist() == [2]
    worthless = replace(one, scores=torch.zeros(1))
    (ranked,) = model.rescore(images[:1], [worthless], refine_steps=0)
    assert (ranked.labels.tolist(), ranked.scores.tolist()) == ([2], [0])


def test_rank_by_iou_reports_the_product(model: IoUNet, images: list[Tensor]) -> None:
    plain, ranked = model.detect(images)[0], with_options(model, rank_by_iou=True).detect(images)[0]
    assert plain.ious is not None
    torch.testing.assert_close(ranked.scores, (plain.scores * plain.ious).sort(descending=True).values)


def test_roi_align_pools_but_cannot_refine(model: IoUNet, images: list[Tensor]) -> None:
    aligned = with_options(model, pooling="roi_align", refine_steps=0)
    precise = with_options(model, refine_steps=0)
    a, b = aligned.candidates(images)[0], precise.candidates(images)[0]
    assert not torch.equal(a.class_scores[:20], b.class_scores[:20])
    with pytest.raises(UserError, match="refine_steps=0"):
        IoUNetOptions(pooling="roi_align")
    IoUNetOptions(pooling="roi_align", iou_head=False)
    with pytest.raises(UserError, match="set refine_steps to 0"):
        aligned.rescore(images, aligned.detect(images), refine_steps=1)
    assert len(aligned.rescore(images, aligned.detect(images))) == 2


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"standalone": True, "iou_head": False}, "standalone"),
        ({"rois": 0}, "rois"),
        ({"positive_fraction": 0.0}, "positive_fraction"),
        ({"nms_iou": 0.0}, "nms_iou"),
        ({"refine_max_drop": -0.01}, "refine_max_drop"),
    ],
)
def test_options_that_make_no_sense(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        IoUNetOptions(**changes)


def test_rescoring_keeps_boxes_and_adds_ious(model: IoUNet, images: list[Tensor]) -> None:
    given = [Detections(f.boxes, f.scores, f.labels) for f in with_options(model, refine_steps=0).detect(images)]
    better = model.rescore(images, given, refine_steps=0)
    for before, after, ious in zip(given, better, model.predict_ious(images, given), strict=True):
        assert same(before, after)
        assert after.ious is not None
        torch.testing.assert_close(after.ious, ious)
    moved = model.rescore(images, given)
    assert not torch.equal(moved[0].boxes, given[0].boxes)


def test_rescoring_by_rules(model: IoUNet, images: list[Tensor]) -> None:
    given = [
        Detections(c.boxes, c.class_scores.amax(dim=1), c.class_scores.argmax(dim=1)) for c in model.candidates(images)
    ]
    ranked = model.rescore(images, given, rank=by_power, refine_steps=0)[0]
    ious = model.predict_ious(images, given)[0]
    expected = (given[0].scores * ious).sqrt().sort(descending=True).values
    torch.testing.assert_close(ranked.scores, expected)
    guided = model.rescore(images, given, suppress=model_suppress(model), refine_steps=0)
    for found, own in zip(guided, with_options(model, refine_steps=0).detect(images), strict=True):
        assert same(found, own)  # which is how the model itself detects
    thinned = model.rescore(images, given, suppress=greedy_nms, refine_steps=0)[0]
    assert 0 < len(thinned) < len(given[0])


def model_suppress(model: IoUNet) -> Any:
    return lambda candidates, scores: model.suppress(candidates, scores)


def test_rescoring_nothing(model: IoUNet, images: list[Tensor]) -> None:
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    better = model.rescore(images, [nothing, nothing])
    assert [len(found) for found in better] == [0, 0]


def test_a_box_without_area_has_no_iou(model: IoUNet, images: list[Tensor]) -> None:
    flat = Detections(torch.tensor([[5.0, 5.0, 5.0, 9.0], [5.0, 5.0, 25.0, 25.0]]), torch.ones(2), torch.tensor([0, 1]))
    ious = model.predict_ious(images[:1], [flat])[0]
    assert ious[0] == 0
    assert ious[1] > 0


def test_regressing_moves_each_box_by_the_deltas_of_its_class(model: IoUNet, images: list[Tensor]) -> None:
    pyramid = model.features(images)
    assert model.rpn is not None
    proposals = proposals_of(model.rpn, model.rpn(pyramid.levels), pyramid.sizes, model.options.proposals)
    with torch.no_grad():
        moved = model.regress(pyramid, [Detections(p, torch.ones(len(p)), torch.full((len(p),), 1)) for p in proposals])
    for found, candidates in zip(moved, model.candidates(images), strict=True):
        dogs = candidates.boxes[candidates.class_scores.argmax(dim=1) == 1]
        assert len(dogs) > 0
        assert (torch.cdist(dogs.double(), found.boxes.double()).amin(dim=1) < 1e-3).all()


def test_save_and_load(model: IoUNet, images: list[Tensor], tmp_path: Path) -> None:
    for changes in ({"refine_steps": 2, "suppress": "greedy"}, {"iou_loss": "bce"}):
        saved = with_options(model, **changes)
        again = load(saved.save(tmp_path / "checkpoint"))
        assert again.options == saved.options
        assert all(same(a, b) for a, b in zip(saved.detect(images), again.detect(images), strict=True))
    alone = tiny(standalone=True)
    assert isinstance(load(alone.save(tmp_path / "alone")), IoUNet)


def test_starting_from_other_classes_keeps_what_does_not_depend_on_them(model: IoUNet, tmp_path: Path) -> None:
    model.save(tmp_path / "old")
    torch.manual_seed(9)
    fresh = create_model("iou_net", class_names=["a", "b"], backbone=BACKBONE, channels=8, fc_channels=16)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    assert not start_from(fresh, tmp_path / "old")
    old = model.state_dict()
    for name, value in fresh.state_dict().items():
        anew = name.startswith(("head.classes", "head.deltas", "iou_head.ious"))
        assert torch.equal(value, before[name] if anew else old[name]), name


@pytest.mark.parametrize(("height", "width"), [(37, 61), (1, 50), (200, 33)])
def test_predicting_on_odd_sizes(model: IoUNet, height: int, width: int) -> None:
    found = model.predict(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, 2:] <= torch.tensor([width, height], device="cpu")).all()
    assert found.ious is not None
    assert len(found.ious) == len(found)


def test_a_image_is_judged_the_same_in_a_batch_of_its_size(model: IoUNet, images: list[Tensor]) -> None:
    pair = ImageBatch.of([images[0], images[0].flip(2)])
    together, alone = model.detect(pair)[0], model.detect([images[0]])[0]
    assert len(together) == len(alone) > 0
    torch.testing.assert_close(together.boxes, alone.boxes, atol=1e-3, rtol=1e-4)


def test_losses_and_gradients_are_those_of_loops_over_the_images(
    images: list[Tensor], targets: list[Targets], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same random numbers: what is sampled and jittered is noted, and judged again box by box."""
    drawn: list[tuple[Tensor, Tensor]] = []
    jittered: list[tuple[Tensor, Tensor]] = []

    def noted(where: list[Any], function: Callable[..., Any]) -> Callable[..., Any]:
        def note(*given: Any) -> Any:
            where.append(function(*given))
            return where[-1]

        return note

    for module in (rpn, iou_net):
        monkeypatch.setattr(module, "sample", noted(drawn, rpn.sample))
    monkeypatch.setattr(iou_net, "jitter_boxes", noted(jittered, jitter_boxes))
    model = tiny(rois=400, anchor_scale=1.0).train()  # more than there are proposals: not all rows are real
    ours = model.loss(images, targets)
    weights = list(model.parameters())
    gradients = [torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True) for value in ours.values()]

    assert model.rpn is not None
    assert model.head is not None
    assert model.iou_head is not None
    pyramid = model.features(images)
    output = model.rpn(pyramid.levels)
    proposals = proposals_of(model.rpn, output, pyramid.sizes, model.options.train_proposals)
    terms: dict[str, list[Tensor]] = {name: [] for name in ours}
    for i, target in enumerate(targets):
        for chosen, learns in zip(drawn[0][0][i], drawn[0][1][i], strict=True):
            if learns != IGNORED:
                certain = (learns >= 0).float()
                terms["rpn_class"].append(F.binary_cross_entropy_with_logits(output.logits[i, chosen], certain))
            if learns >= 0:
                off = output.deltas[i, chosen] - encode_deltas(output.anchors[chosen], target.boxes[learns])
                terms["rpn_box"].append(F.smooth_l1_loss(off, off * 0, beta=1 / 9, reduction="sum"))
        padded = F.pad(proposals[i], (0, 0, 0, model.options.train_proposals - len(proposals[i])))
        boxes = torch.cat([padded, target.boxes])
        real = [row for row, learns in enumerate(drawn[1][1][i]) if learns != IGNORED]
        assert len(real) == len(proposals[i]) + len(target)  # all, and nothing that pads
        rois = boxes[drawn[1][0][i][real]]
        logits, deltas = model.head(pyramid.pool_at(rois, torch.full((len(rois),), i)))
        for row, learns in enumerate(drawn[1][1][i][real]):
            label = target.labels[learns] if learns >= 0 else torch.tensor(3)
            terms["class"].append(F.cross_entropy(logits[row], label))
            if learns >= 0:
                off = deltas[row, label] - encode(rois[row], target.boxes[learns])
                terms["box"].append(F.smooth_l1_loss(off, off * 0, beta=1 / 9, reduction="sum"))
    (boxes, ious), labels = jittered[0], targets[0].labels.repeat_interleave(6)
    predicted = model.iou_head(pyramid.pool_at(boxes, torch.zeros(len(boxes)).long()), labels)
    terms["iou"] = list(model.options.iou_weight * F.smooth_l1_loss(predicted, 2 * ious - 1, reduction="none"))
    assert all(terms.values())
    counts = {"rpn_box": len(terms["rpn_class"]), "box": len(terms["class"])}
    for (name, value), of_term in zip(ours.items(), gradients, strict=True):
        expected = torch.stack(terms[name]).sum() / counts.get(name, len(terms[name]))
        torch.testing.assert_close(value, expected)
        for one, other in zip(
            of_term, torch.autograd.grad(expected, weights, retain_graph=True, allow_unused=True), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_without_its_head_it_suppresses_greedily() -> None:
    assert tiny().suppression == "iou_guided"
    assert tiny(iou_head=False).suppression == "greedy"


def test_margins_are_of_its_own_boxes_alone(images: list[Tensor]) -> None:
    """Those of another detector, which it rescores, are off by more or less."""
    model = tiny(refine_steps=0, rois=8).eval()
    margins = Margins(0.9, "size", (0.1,) * 4, (), (), (), {})
    model.calibration = Calibration(IouCalibration((0.0, 1.0), (0.25, 0.25)), ((0.25,) * 51,) * 10, {}, outer=margins)
    given = Detections(torch.tensor([[5.0, 5.0, 40.0, 40.0]]), torch.tensor([0.9]), torch.tensor([0]))
    (found,) = model.rescore(images[:1], [given])
    assert found.outer is None
    assert found.ious is not None
    assert found.ious.tolist() == [0.25]


def test_the_last_output_is_the_background(images: list[Tensor]) -> None:
    model = tiny(score_threshold=0.01).eval()
    assert model.head is not None
    for wanted in range(4):
        with torch.no_grad():
            model.head.classes.weight.zero_()
            model.head.classes.bias.copy_(5.0 * torch.eye(4)[wanted])
        scores = model.candidates(images[:1])[0].class_scores
        if wanted == 3:
            assert len(scores) == 0 or scores.max() < 0.02  # e⁰ / (e⁵ + 3) = 0.0066
        else:
            assert (scores.amax(dim=0) > 0.9).tolist() == [label == wanted for label in range(3)]


def test_it_refines_as_its_options_say(images: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def noted(boxes: Tensor, *how: Any) -> tuple[Tensor, Tensor]:
        seen.update(inspect.signature(refine_boxes).bind(boxes, *how).arguments)
        return boxes, torch.zeros(len(boxes))

    monkeypatch.setattr(iou_net, "refine_boxes", noted)
    model = tiny().eval()
    given = Detections(torch.tensor([[1.0, 1.0, 30.0, 30.0]]), torch.tensor([0.5]), torch.tensor([0]))
    with torch.no_grad():
        model.refine(model.features(images[:1]), [given], 3)
    for name in ("boxes", "predict_iou", "size"):
        del seen[name]
    assert seen == {"steps": 3, "step_size": 0.5, "min_change": 0.001, "max_drop": -0.01, "roll_back": False}
