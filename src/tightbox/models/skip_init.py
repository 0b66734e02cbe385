"""Making a network whose weights are about to be overwritten, without drawing random numbers for them first."""

from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_DRAWING = {Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_}
_DRAWING |= {nn.init.kaiming_normal_, nn.init.kaiming_uniform_, nn.init.xavier_normal_, nn.init.xavier_uniform_}


class SkipInit(TorchFunctionMode):
    """Within it, initialisation by random numbers leaves tensors as they are: whatever the memory held.

    That is half the time of loading a large model. Every weight must be written afterwards.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call anything else as usual."""
        if func in _DRAWING:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))
