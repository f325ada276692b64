"""The held-out loss: the same draws every time, the same value for any number of processes, no effect on the run."""

import pytest
import torch

from ldm.config import validate
from ldm.data.batches import SampleKey
from ldm.errors import UserError
from tests.support.tiny_validation import CPU, NUM_DRAWS, NUM_SAMPLES, Latents, Network, held_out
from train.loop.averages import WeightAverages
from train.loop.processes import Processes
from train.loop.validation import (
    ValidationSamples,
    ValidationSettings,
    fixed_draws,
    held_out_loss,
    loss_sums,
    mean_and_error,
)


def test_the_draws_are_fixed_and_spread_over_the_timesteps() -> None:
    samples = held_out()
    (first, second) = (samples[SampleKey(epoch, 3)] for epoch in (0, 5))
    for k, (one, two) in enumerate(zip(first, second, strict=True)):
        assert all(torch.equal(one[name], two[name]) for name in ("noise", "posterior_noise"))
        assert (one["position"], one["crop"]) == (two["position"], two["crop"])
        assert k / NUM_DRAWS <= one["position"] < (k + 1) / NUM_DRAWS
        assert one["caption"] == "caption xxx"
    for name in ("noise", "posterior_noise"):
        assert len({float(item[name].sum()) for item in first}) == NUM_DRAWS
        assert not torch.equal(first[0][name], samples[SampleKey(0, 4)][0][name])
    assert not torch.equal(first[0]["noise"], first[0]["posterior_noise"])
    other = samples[SampleKey(0, 4)]
    assert all(one["position"] != two["position"] for one, two in zip(first, other, strict=True))


def test_what_an_item_lacks_is_not_made_up() -> None:
    draws = fixed_draws(
        {"sample_id": "a", "pixel_values": torch.zeros(3, 2, 2), "noise": torch.zeros(2)}, 0, 1
    )
    assert draws.keys() == {"noise"}


def test_the_number_is_the_mean_over_the_samples_with_its_standard_error() -> None:
    samples, module = held_out(), Network().eval()
    each = []
    for index in range(NUM_SAMPLES):
        items = samples[SampleKey(0, index)]
        batch = {name: [item[name] for item in items] for name in items[0]}
        for name in ("moments", "noise", "posterior_noise"):
            batch[name] = torch.stack(batch[name])
        batch["position"] = torch.tensor(batch["position"])
        with torch.no_grad():
            each.append(float(module(batch)["loss"].mean()))
    found = held_out_loss(module, samples, batch_size=8, device=CPU)
    expected = torch.tensor(each, dtype=torch.float64)
    assert found["validation_loss"] == pytest.approx(float(expected.mean()), rel=1e-6)
    assert found["validation_loss_stderr"] == pytest.approx(
        float(expected.std()) / NUM_SAMPLES**0.5, rel=1e-5
    )
    assert mean_and_error(torch.tensor([3.0, 9.0, 1.0])) == {"validation_loss": 3.0}


@pytest.mark.parametrize("sizes", [(4,) * NUM_SAMPLES, (4, 2, 4, 4, 2, 4, 4)])
@pytest.mark.parametrize("num_processes", [2, 3, 5, 8])
def test_any_number_of_processes_gives_the_same_number(sizes: tuple[int, ...], num_processes: int) -> None:
    module, samples = Network().eval(), held_out(sizes, buckets=sizes)
    alone = held_out_loss(module, samples, batch_size=64, device=CPU)
    total, calls, indices = torch.zeros(3, dtype=torch.float64), set(), []
    for rank in range(num_processes):
        module.num_calls = 0
        batches = list(samples.batches(8, Processes(rank, num_processes)))
        indices += [key.sample_index for keys in batches for key in keys if key.weight]
        total += loss_sums(module, samples, iter(batches), CPU)
        calls.add(module.num_calls)
    assert mean_and_error(total) == pytest.approx(alone, rel=1e-6)
    assert sorted(indices) == list(range(NUM_SAMPLES))
    assert len(calls) == 1  # a sharded network is called equally often on every process
    one = [key.sample_index for keys in held_out().batches(8, Processes(1, 3)) for key in keys if key.weight]
    assert one == [1, 4]


@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_a_batch_has_one_bucket_and_no_more_than_asked(batch_size: int) -> None:
    sizes = (4, 2, 4, 4, 2, 4, 4)
    batches = list(held_out(sizes, buckets=sizes).batches(batch_size))
    assert all(len({sizes[key.sample_index] for key in keys}) == 1 for keys in batches)
    assert max(map(len, batches)) == {1: 1, 8: 2, 64: 5}[batch_size]


def test_a_run_is_left_as_it_was() -> None:
    module = Network()
    module.net.train(), module.frozen.eval()
    averages = WeightAverages(module, 0.5)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    average = {name: tensor.clone() for name, tensor in averages.tensors().items()}
    state = torch.get_rng_state()
    first = held_out_loss(module, held_out(), batch_size=8, device=CPU, average=averages)
    assert held_out_loss(module, held_out(), batch_size=8, device=CPU, average=averages) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(torch.equal(tensor, average[name]) for name, tensor in averages.tensors().items())
    assert module.training and module.net[1].training and not module.frozen.training


def test_the_averaged_weights_are_measured() -> None:
    module = Network()
    averages = WeightAverages(module, 0.5)
    of_average = held_out_loss(module, held_out(), batch_size=8, device=CPU)
    with torch.no_grad():
        module.net[0].weight.add_(1)
    assert held_out_loss(module, held_out(), batch_size=8, device=CPU, average=averages) == of_average
    assert held_out_loss(module, held_out(), batch_size=8, device=CPU) != of_average


def test_contradictions_are_refused() -> None:
    with pytest.raises(UserError, match=r"set validation\.every as well"):
        validate(ValidationSettings, {"patience": 3})
    with pytest.raises(UserError, match=r"set data\.holdout_fraction above 0"):
        ValidationSamples(Latents(()), [], num_timesteps_per_sample=1)
    assert validate(ValidationSettings, {"every": 10, "patience": 3, "keep_best": True}).patience == 3
