"""The averaged network: a closed form of the weights that training went through, and nothing more."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from sdscratch.training.ema import Ema


class Network(nn.Module):
    """Weights, a floating-point buffer and a counting one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("running_mean", torch.zeros(2))
        self.register_buffer("seen", torch.tensor(0))


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network()


def wander(network: Network) -> None:
    """As training would: all tensors change."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
        network.running_mean.add_(torch.randn(2))
        network.seen.add_(1)


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(("decay", "updates"), [(0.9999, 40), (0.5, 40), (0.0, 3)])
def test_the_average_is_the_closed_form_of_all_weights_and_buffers(network, decay, updates):
    ema = Ema(network, decay)
    history = [state(network)]
    for _ in range(updates):
        wander(network)
        ema.update(network)
        history.append(state(network))
    decays = [min(decay, (1 + n) / (10 + n)) for n in range(updates)]
    for name in ("layer.weight", "layer.bias", "running_mean"):
        expected = history[0][name].double()
        for d, tensors in zip(decays, history[1:], strict=True):
            expected = d * expected + (1 - d) * tensors[name].double()
        torch.testing.assert_close(state(ema.network)[name].double(), expected, rtol=1e-5, atol=1e-6)
    assert ema.network.seen == updates
    assert ema.decay == decays[-1]


def test_nothing_of_the_initial_weights_is_left_after_500_updates(network):
    with torch.no_grad():
        network.layer.weight.fill_(1e6)
    ema = Ema(network, 0.9999)
    with torch.no_grad():
        network.layer.weight.zero_()
    for _ in range(500):
        ema.update(network)
    assert ema.network.layer.weight.abs().max() < 1e-6


def test_averaging_leaves_the_trained_network_alone(network):
    ema = Ema(network, 0.9)
    wander(network)
    before = state(network)
    ema.update(network)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    own = {tensor.data_ptr() for tensor in network.state_dict().values()}
    assert own.isdisjoint(tensor.data_ptr() for tensor in ema.network.state_dict().values())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not any(parameter.requires_grad for parameter in ema.network.parameters())


def test_the_average_of_a_bfloat16_network_is_float32_and_keeps_small_steps(network):
    low = deepcopy(network).to(torch.bfloat16)
    ema = Ema(low, 0.999)
    assert all(parameter.dtype == torch.float32 for parameter in ema.network.parameters())
    ema.num_updates = 10_000
    with torch.no_grad():
        low.layer.weight.fill_(1.0)
        ema.network.layer.weight.fill_(0.999)
    ema.update(low)
    moved = ema.network.layer.weight - 0.999
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-6), rtol=0.1, atol=0)


def test_the_state_comes_back_bit_for_bit_and_averaging_goes_on_as_if_nothing_had_been(network):
    ema, again = Ema(network, 0.9999), Ema(Network(), 0.9999)
    for _ in range(5):
        wander(network)
        ema.update(network)
    again.load_state_dict(deepcopy(ema.state_dict()))
    wander(network)
    for average in (ema, again):
        average.update(network)
    assert all(torch.equal(tensor, state(ema.network)[name]) for name, tensor in again.network.state_dict().items())
    assert again.num_updates == 6
    assert again.decay == ema.decay


@pytest.mark.parametrize("change", ["missing", "unexpected", "other shape"])
def test_a_state_of_another_network_is_refused(network, change):
    ema = Ema(network, 0.9)
    saved = deepcopy(ema.state_dict())
    if change == "missing":
        del saved["weights"]["layer.bias"]
    elif change == "unexpected":
        saved["weights"]["layer.scale"] = torch.ones(2)
    else:
        saved["weights"]["layer.bias"] = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"layer\.(bias|scale)"):
        ema.load_state_dict(saved)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_a_decay_that_is_none_is_refused(network, decay):
    with pytest.raises(ValueError, match="EMA decay"):
        Ema(network, decay)
