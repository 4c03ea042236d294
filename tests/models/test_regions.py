"""A network compiled in regions answers and learns as it does otherwise, and keeps its weights' names."""

from __future__ import annotations

import pytest
import torch
from tiny import SMALLEST_UNET
from torch import distributed as dist
from torch._dynamo.utils import counters
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel

from sdscratch.models import UNet
from sdscratch.models.blocks import Text, TransformerBlock
from sdscratch.models.regions import REGIONS, compile_network


@pytest.fixture(autouse=True)
def forgotten():
    """What was compiled, so that tests are alone."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    torch._functorch.config.activation_memory_budget = 1.0
    torch._dynamo.config.optimize_ddp = True


def answer_and_gradients(unet: UNet) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents, states = (torch.randn(shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 7, 16)))
    answer = unet(latents, torch.tensor([3, 700]), states)
    return [answer, *torch.autograd.grad(answer.square().sum(), list(unet.parameters()))]


def test_blocks_that_repeat_share_a_graph_which_nothing_breaks_and_answer_as_before():
    torch.manual_seed(0)
    unet = UNet(**SMALLEST_UNET)
    names, expected = list(unet.state_dict()), answer_and_gradients(unet)
    compile_network(unet, "regions", backend="eager")
    for found, right in zip(answer_and_gradients(unet), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)
    assert list(unet.state_dict()) == names
    assert len([module for module in unet.modules() if isinstance(module, REGIONS)]) == 12
    assert counters["stats"]["unique_graphs"] == 9
    assert not counters["graph_break"]


def test_blocks_that_take_a_text_that_was_read_before_share_a_graph_too_which_nothing_breaks():
    unet, states = UNet(**SMALLEST_UNET), torch.randn(2, 7, SMALLEST_UNET["cross_attention_dim"])
    latents, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        expected = unet(latents, timesteps, states)
        compile_network(unet, "regions", backend="eager")
        for _ in range(2):
            torch.testing.assert_close(unet(latents, timesteps, unet.read(states)), expected)
    assert counters["stats"]["unique_graphs"] == 9
    assert not counters["graph_break"]


def test_a_smaller_budget_keeps_less_and_changes_no_gradient():
    kept, gradients = [], []
    for budget in (1.0, 0.3):
        torch._dynamo.reset()
        torch.manual_seed(0)
        block = TransformerBlock(16, 2, 12)
        tokens, text = torch.randn(2, 64, 16, requires_grad=True), torch.randn(2, 7, 12)
        compile_network(block, "whole", budget, backend="aot_eager_decomp_partition")
        sizes: list[int] = []
        with saved_tensors_hooks(lambda x, sizes=sizes: (sizes.append(x.nbytes), x)[1], lambda x: x):
            answer = block(tokens, Text.of(text))
        kept.append(sum(sizes))
        gradients.append(torch.autograd.grad(answer.square().sum(), [tokens, *block.parameters()]))
    assert kept[1] < 0.7 * kept[0]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("how", "pieces"), [("regions", 1), ("whole", 2)])
def test_on_several_devices_a_region_stays_in_one_piece_and_the_whole_is_cut_where_gradients_leave(how, pieces):
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        block = TransformerBlock(160, 2, 12)  # 1.6 MB
        compile_network(block, how, backend="aot_eager")
        text = Text(torch.randn(1, 7, 12))
        answer = DistributedDataParallel(block, bucket_cap_mb=1)(torch.randn(1, 4, 160), text)
        assert counters["aot_autograd"]["total"] == pieces and answer.shape == (1, 4, 160)
    finally:
        dist.destroy_process_group()
