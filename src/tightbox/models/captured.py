"""Functions of tensors as CUDA graphs, one for each shape: a GPU gets a thousand kernels at once, not one by one."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

MOST = 8  # graphs that are kept of a model: each holds the memory of one pass
WARM_UP = 3  # passes before the capture, in which kernels are compiled and chosen

Function = Callable[..., Sequence[Tensor]]
Graph = tuple[torch.cuda.CUDAGraph, list[Tensor], Sequence[Tensor]]  # with its inputs and outputs


class Captured:
    """Calls functions whose operations do not depend on values, and from a shape's second call on replays them.

    What they compute with besides their arguments must stay where it is in memory; its values may change.
    """

    def __init__(self) -> None:
        self._seen: set[Hashable] = set()
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()
        self._pool: Any = None  # of memory, which all share, as one is replayed at a time
        self._lock = threading.Lock()

    def __call__(self, function: Function, *arguments: Tensor, key: Hashable) -> Sequence[Tensor]:
        """The tensors that `function` gives for the arguments, all of them on one GPU.

        Args:
            function: the same for the same key.
            arguments: what it is called with.
            key: what else its operations depend on.
        """
        device = arguments[0].device
        autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
        key = key, device, autocast, torch.is_inference_mode_enabled(), *((a.shape, a.dtype) for a in arguments)
        with self._lock, torch.cuda.device(device):
            if key not in self._graphs:
                if key not in self._seen:  # many shapes of a folder of photographs come once
                    self._seen.add(key)
                    return function(*arguments)
                self._graphs[key] = self._capture(function, arguments)
                if len(self._graphs) > MOST:
                    self._graphs.popitem(last=False)
            self._graphs.move_to_end(key)
            graph, inputs, outputs = self._graphs[key]
            for own, argument in zip(inputs, arguments, strict=True):
                own.copy_(argument)
            graph.replay()
            return [output.clone() for output in outputs]

    def _capture(self, function: Function, arguments: Sequence[Tensor]) -> Graph:
        inputs = [argument.clone() for argument in arguments]
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        try:
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    function(*inputs)
            torch.cuda.current_stream().wait_stream(stream)
            # What autocast has made of weights, and keeps, is of the passes before, or else would be of the graph.
            torch.clear_autocast_cache()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                outputs = function(*inputs)
        finally:
            torch.clear_autocast_cache()
            torch.backends.cudnn.benchmark = benchmark
        self._pool = self._pool or graph.pool()
        return graph, inputs, outputs


_of_models: WeakKeyDictionary[nn.Module, Captured] = WeakKeyDictionary()  # beside them: graphs cannot be copied


def captured(model: nn.Module) -> Captured:
    """The graphs of a model."""
    return _of_models.setdefault(model, Captured())


def forget(model: nn.Module) -> None:
    """Lets go of a model's graphs, as its weights are elsewhere from now on."""
    _of_models.pop(model, None)
