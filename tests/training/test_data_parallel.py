"""What leaves a rank of its gradients, and what comes back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from sdscratch.errors import ConfigError
from sdscratch.training import DataParallel
from sdscratch.training.data_parallel import exchange_in_bfloat16


class Sent(TorchDispatchMode):
    """The bytes of each all-reduce."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ == "allreduce_":
            self.bytes += [tensor.nbytes for tensor in args[0]]
        return func(*args, **(kwargs or {}))


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of one rank."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def test_gradients_in_bfloat16_are_half_the_bytes_and_come_back_rounded_in_float32(alone):
    torch.manual_seed(0)
    inputs, sent, gradients = torch.randn(3, 16), [], []
    network = nn.Linear(16, 8)
    for hook in (None, exchange_in_bfloat16):
        replica = DistributedDataParallel(network, gradient_as_bucket_view=True)
        if hook is not None:
            replica.register_comm_hook(None, hook)
        replica.zero_grad()
        loss = replica(inputs).square().sum()
        with Sent() as seen:
            loss.backward()
        sent.append(sum(seen.bytes))
        gradients.append(network.weight.grad.clone())
    assert sent == [4 * (16 * 8 + 8), 2 * (16 * 8 + 8)]
    assert gradients[1].dtype == torch.float32 and torch.equal(gradients[1], gradients[0].bfloat16().float())
    assert not torch.equal(*gradients)


def test_other_numbers_are_refused():
    with pytest.raises(ConfigError, match="trainer.strategy.exchange='float16' is unknown"):
        DataParallel(exchange="float16")
