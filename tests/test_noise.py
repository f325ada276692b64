"""Random draws depend on their key and on nothing else."""

import torch

from ldm import noise


def test_a_draw_depends_on_every_part_of_its_key_and_on_nothing_else() -> None:
    first = noise.uniform(0, 1, "a.png", "timestep")
    noise.uniform(5, 5, "b.png", "timestep")
    assert noise.uniform(0, 1, "a.png", "timestep") == first
    others = [
        (1, 1, "a.png", "timestep"),
        (0, 2, "a.png", "timestep"),
        (0, 1, "b.png", "timestep"),
        (0, 1, "a.png", "x"),
    ]
    assert len({first, *(noise.uniform(*key) for key in others)}) == 5


def test_parts_of_a_key_do_not_run_together() -> None:
    assert noise.key_to_seed(1, 23) != noise.key_to_seed(12, 3)


def test_the_seeds_stay_the_same_in_every_version() -> None:
    assert noise.key_to_seed(0, 0, "images/red-apple.png", "noise") == 1274433019506236708


def test_an_images_noise_is_that_of_stock_diffusers_and_the_same_in_any_batch() -> None:
    batch = noise.normal_per_image(noise.image_generators([7, 8, 9]), (4, 8, 8))
    alone = torch.randn(1, 4, 8, 8, generator=torch.Generator("cpu").manual_seed(8))
    assert torch.equal(batch[1:2], alone)


def test_a_permutation_holds_every_sample_once_and_changes_with_the_epoch() -> None:
    first, second = noise.permutation(100, 0, 0, "order"), noise.permutation(100, 0, 1, "order")
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second


def test_draws_are_spread_evenly() -> None:
    values = torch.tensor([noise.uniform(0, 0, str(i), "timestep") for i in range(4000)])
    share = torch.histc(values, 10, 0, 1) / 4000
    assert (share - 0.1).abs().max() < 0.02
    choices = [noise.choice(3, 0, 0, str(i)) for i in range(3000)]
    assert all(900 < choices.count(c) < 1100 for c in range(3))
