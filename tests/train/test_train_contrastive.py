"""The contrastive loss equals open_clip's, ignores pairs with equal texts, and is the same on several processes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed
from torch.nn import functional

from tests.support.tiny_launch import run_together
from train.loop.contrastive import Pairs, contrastive_losses
from train.loop.processes import ALONE, Processes

SCALE = torch.tensor(8.0)


def make_pairs(texts: list[int], weights: list[float] | None = None) -> Pairs:
    """Random unit features; equal numbers in `texts` make equal token ids and so equal features."""
    generator = torch.Generator().manual_seed(4)
    images = torch.randn(len(texts), 6, generator=generator)
    table = torch.randn(10, 6, generator=generator)
    ids = torch.tensor([[101, text, 102] for text in texts])
    return Pairs(
        functional.normalize(images, dim=1).requires_grad_(),
        functional.normalize(table[texts], dim=1).requires_grad_(),
        ids,
        torch.tensor(weights or [1.0] * len(texts)),
    )


def rows(pairs: Pairs, chosen: list[int]) -> Pairs:
    """Some of the pairs, as separate leaf tensors."""
    images, texts = (t[chosen].detach().requires_grad_() for t in (pairs.images, pairs.texts))
    return Pairs(images, texts, pairs.token_ids[chosen], pairs.weights[chosen])


def test_loss_equals_that_of_open_clip() -> None:
    from open_clip.loss import ClipLoss

    pairs = make_pairs([1, 2, 3, 4, 5])
    losses = contrastive_losses(pairs, SCALE, 5)["loss"]
    torch.testing.assert_close(losses.mean(), ClipLoss()(pairs.images, pairs.texts, SCALE))


def test_accuracy_counts_both_directions() -> None:
    # every image finds its text, but text 1 is more similar to image 0
    images, texts = (
        torch.eye(3),
        functional.normalize(torch.tensor([[1.0, 0, 0], [2, 1, 0], [0, 0, 1]]), dim=1),
    )
    ids = torch.tensor([[1], [2], [3]])
    accuracy = contrastive_losses(Pairs(images, texts, ids, torch.ones(3)), SCALE, 3)["accuracy"]
    assert accuracy.tolist() == [1.0, 0.5, 1.0]


def test_a_pair_with_the_same_text_is_no_wrong_answer() -> None:
    pairs = make_pairs([1, 1, 2, 3])
    losses = contrastive_losses(pairs, SCALE, 4)["loss"]
    without = contrastive_losses(rows(pairs, [0, 2, 3]), SCALE, 3)["loss"]
    torch.testing.assert_close(losses[0], without[0])
    assert not torch.isclose(losses[2], without[1]), "to the others both pairs are wrong answers"


def test_a_sample_that_weighs_nothing_is_no_wrong_answer() -> None:
    pairs = make_pairs([1, 2, 3, 4], weights=[1, 1, 1, 0])
    losses = contrastive_losses(pairs, SCALE, 4)["loss"]
    without = contrastive_losses(rows(pairs, [0, 1, 2]), SCALE, 3)["loss"]
    torch.testing.assert_close(losses[:3], without)
    assert torch.isfinite(losses).all()


SHARES = [[0, 2, 4], [1, 3]]
TEXTS = [1, 2, 3, 2, 1]


def mean_loss(pairs: Pairs, num_rows: int, processes: Processes = ALONE) -> Tensor:
    """A process's share of the mean over all five samples."""
    return contrastive_losses(pairs, SCALE, num_rows, processes)["loss"].sum() / len(TEXTS)


def one_process(rank: int, folder: str) -> None:
    """One of two processes: writes the loss and gradients of its share to a file."""
    torch.set_num_threads(1)
    store = f"file://{folder}/rendezvous"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    pairs = rows(make_pairs(TEXTS), SHARES[rank])
    loss = mean_loss(pairs, num_rows=3, processes=Processes(rank, 2))
    loss.backward()
    result = {"loss": loss.detach(), "images": pairs.images.grad, "texts": pairs.texts.grad}
    torch.save(result, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="this torch has no distributed package")
def test_two_processes_give_the_loss_and_gradients_of_one(tmp_path: Path) -> None:
    run_together(one_process, str(tmp_path))
    pairs = make_pairs(TEXTS)
    whole = rows(pairs, [0, 1, 2, 3, 4])
    loss = mean_loss(whole, num_rows=5)
    loss.backward()
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    torch.testing.assert_close(results[0]["loss"] + results[1]["loss"], loss.detach())
    for share, result in zip(SHARES, results, strict=True):
        assert whole.images.grad is not None and whole.texts.grad is not None
        torch.testing.assert_close(result["images"], whole.images.grad[share])
        torch.testing.assert_close(result["texts"], whole.texts.grad[share])
