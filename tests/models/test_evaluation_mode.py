"""One model in several threads, copied, and pickled."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from tests.helpers.models import same_detections, tiny_iou_net, tiny_model, tiny_retinanet, tiny_unitbox
from tightbox.models import Detector
from tightbox.models.evaluation_mode import evaluation_mode

MODELS = [tiny_model, tiny_retinanet, tiny_iou_net, lambda: tiny_unitbox(threshold=0.0)]


def test_the_mode_comes_back_with_the_last_of_two() -> None:
    model = nn.Dropout()
    first_in, first_out = threading.Event(), threading.Event()
    modes = []

    def first() -> None:
        with evaluation_mode(model):
            first_in.set()
            assert second_in.wait(10)
        first_out.set()

    second_in = threading.Event()
    thread = threading.Thread(target=first)
    thread.start()
    assert first_in.wait(10)
    with evaluation_mode(model):
        second_in.set()
        assert first_out.wait(10)
        modes.append(model.training)  # the first has left, the second has not
    thread.join()
    assert (modes, model.training) == ([False], True)


def test_an_error_gives_the_mode_back() -> None:
    model = nn.Dropout()
    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        raise ZeroDivisionError
    assert model.training
    with evaluation_mode(model.eval()):
        assert not model.training
    assert not model.training


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("training", [False, True])
def test_eight_threads_find_what_one_finds(make: Callable[[], Detector], training: bool) -> None:
    model = make().train(training)
    images = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    serial = [model.predict(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(model.predict, images * 2))
    assert all(same_detections(a, b) for a, b in zip(serial * 2, found, strict=True))
    assert {module.training for module in model.modules()} == {training}


@pytest.mark.parametrize("make", MODELS)
def test_copies_find_the_same(make: Callable[[], Detector]) -> None:
    model, image = make().eval(), torch.rand(3, 64, 64)
    expected = model.predict(image)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same_detections(other.predict(image), expected)
        assert other.class_names == model.class_names
        assert other.options == model.options


def test_a_state_dict_is_taken_whole_or_not_at_all() -> None:
    model = tiny_model()
    state = model.state_dict()
    name = next(iter(state))
    with pytest.raises(RuntimeError, match="Missing key"):
        tiny_model().load_state_dict({key: value for key, value in state.items() if key != name})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        tiny_model().load_state_dict(state | {"more": torch.zeros(1)})
    other = tiny_model()
    other.load_state_dict(state)
    image = torch.rand(3, 64, 64)
    assert same_detections(model.eval().predict(image), other.eval().predict(image))


def test_parts_that_were_in_evaluation_mode_stay_in_it() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout())).train()
    model[1].eval()
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False, False]
