"""Evaluation mode for as long as anybody predicts, whichever threads these are."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

_lock = threading.Lock()
# How many predictions are going on with a model that was in training mode, and which of its modules were; beside the
# models, so that these can be copied and pickled.
_predicting: WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]] = WeakKeyDictionary()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The model is in evaluation mode within it, and in its own once the last of several threads has left it.

    A model that is in evaluation mode already is left alone.
    """
    with _lock:
        switched = model.training or model in _predicting
        if switched:
            others, trained = _predicting.get(model, (0, [m for m in model.modules() if m.training]))
            _predicting[model] = others + 1, trained
            model.eval()
    try:
        yield
    finally:
        if switched:
            with _lock:
                predicting, trained = _predicting.pop(model)
                if predicting > 1:
                    _predicting[model] = predicting - 1, trained
                else:
                    for module in trained:
                        module.training = True
