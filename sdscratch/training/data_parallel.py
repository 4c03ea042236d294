"""Several devices, each with the whole network: how their gradients are exchanged.

Annotations are no strings here: torch looks at those of a hook.
"""

from typing import Any, Literal

from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch import distributed as dist
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from sdscratch.errors import check_choice


class DataParallel(DDPStrategy):
    """Lightning's way to torch's DistributedDataParallel; `settings` are for these two.

    exchange: the numbers in which gradients, else float32, are added up over ranks. bfloat16 halves the bytes and keeps 8
    significant bits.
    """

    def __init__(self, exchange: Literal["float32", "bfloat16"] = "float32", **settings: Any) -> None:
        check_choice("trainer.strategy.exchange", exchange, ("float32", "bfloat16"))
        super().__init__(**settings)
        self.exchange = exchange

    def configure_ddp(self) -> None:
        super().configure_ddp()
        if self.exchange == "bfloat16":
            assert isinstance(self.model, DistributedDataParallel)
            self.model.register_comm_hook(None, exchange_in_bfloat16)


def exchange_in_bfloat16(_: object, bucket: dist.GradBucket) -> Future[Tensor]:
    """For DistributedDataParallel: the mean over ranks of a bucket of gradients, once it is there.

    torch's own, bf16_compress_hook, refuses CPUs.
    """
    gradients = bucket.buffer()
    share = gradients.bfloat16().div_(dist.get_world_size())
    return dist.all_reduce(share, async_op=True).get_future().then(lambda summed: gradients.copy_(summed.value()[0]))
