"""How much a network has to do for one training step, counted without doing it: the same numbers on every machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FREE = {"_unsafe_view", "detach", "device", "empty", "empty_like", "empty_strided", "new_empty_strided"}
"""Operations that touch no data, beside views."""

WRITTEN = {"out", "grad_input"}
"""Arguments that are written to, and come back as the result."""

WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal"}
"""Operations for which a host must wait for its device."""


class Kernels(TorchDispatchMode):
    """Counts the operations that do work, by name, and the bytes of all that they read and write; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: Counter[str] = Counter()
        self.bytes_touched = 0

    @property
    def waits(self) -> int:
        """How often the host would have waited for a device."""
        return sum(self.ran[name] for name in WAITS)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if not func.is_view and name not in FREE:
            self.ran[name] += 1
            read = [value for key, value in kwargs.items() if key not in WRITTEN]
            tensors = [x for x in tree_leaves((args, read, result)) if isinstance(x, Tensor)]
            self.bytes_touched += sum(x.numel() * x.element_size() for x in tensors)
        return result


@dataclass(frozen=True)
class Work:
    """Of one forward and backward pass. forward, backward: kernels by name. Bytes are per sample.

    kept_bytes: what the forward pass keeps for the backward pass, weights of the network not counted.
    """

    forward: Counter[str]
    backward: Counter[str]
    bytes_touched: float
    kept_bytes: float

    @property
    def kernels(self) -> int:
        """Of both passes."""
        return self.forward.total() + self.backward.total()


def work_of(
    make: Callable[[], nn.Module],
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype = torch.bfloat16,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Work:
    """What a step of the network that `make` gives takes, for inputs of these shapes; (B, C, h, w) come first.

    Weights and activations are of `dtype`. Nothing is computed: tensors have shapes, but no contents.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            network = make()
            inputs = [_laid_out(torch.empty(shape), memory_format) for shape in shapes]
        finally:
            torch.set_default_dtype(before)
        for module in network.modules():
            for name, weight in list(module._parameters.items()):
                if weight is not None:  # one by one: fake ones cannot be moved as a whole
                    module._parameters[name] = nn.Parameter(_laid_out(weight.detach(), memory_format))
        weights = {weight.untyped_storage()._cdata for weight in network.parameters()}
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage
            return tensor

        with Kernels() as forward, saved_tensors_hooks(keep, lambda tensor: tensor):
            output = network(*inputs)
            output = output if isinstance(output, Tensor) else output[0]
        with Kernels() as backward:
            output.backward(torch.empty_like(output))
        samples = shapes[0][0]
        return Work(
            forward.ran,
            backward.ran,
            (forward.bytes_touched + backward.bytes_touched) / samples,
            sum(storage.nbytes() for storage in kept.values()) / samples,
        )


def unet_inputs(config: dict[str, Any], batch_size: int, side: int) -> list[tuple[int, ...]]:
    """The shapes of latents, timesteps and 77 tokens' states that a UNet of this config takes."""
    return [
        (batch_size, config["in_channels"], side, side),
        (batch_size,),
        (batch_size, 77, config["cross_attention_dim"]),
    ]


def _laid_out(tensor: Tensor, memory_format: torch.memory_format) -> Tensor:
    return tensor.to(memory_format=memory_format) if tensor.ndim == 4 else tensor
