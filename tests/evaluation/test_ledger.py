"""The ledger's ranking, on losses whose faults are known."""

import pytest
import torch
from torch import Tensor

from ldm.evaluation.loss_ledger import (
    Losses,
    auroc,
    drop_list,
    heart_scores,
    log_ratio,
    make_ledger,
    other_captions,
    paired_gap,
    standardised_gap,
)

N, K, M = 200, 6, 2
MISFITS, HEARTS, HARD = {3, 77, 150}, {10, 11}, {20}


@pytest.fixture(scope="module")
def losses() -> Losses:
    """Images differ in difficulty, and own captions help by 0.05, except for the planted ones."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    difficulty = 0.5 + 0.1 * draw(N, 1) + 0.3 * draw(1, K)
    own = difficulty + 0.005 * draw(N, K)
    others = torch.stack([difficulty + 0.05 + 0.005 * draw(N, K) for _ in range(M)])
    early = own + 0.2 + 0.01 * draw(N, K)
    own[list(MISFITS)] += 0.05
    early[list(HEARTS)] += 0.3
    own[list(HARD)], others[:, list(HARD)] = own[list(HARD)] + 2.0, others[:, list(HARD)] + 2.0
    early[list(HARD)] += 2.0
    return Losses(own, others, early, torch.arange(N) >= 160)


def test_planted_faults_are_found_and_hardly_anything_else(losses: Losses) -> None:
    ids = [f"sample-{i}" for i in range(N)]
    entries = make_ledger(ids, ["a caption"] * N, losses, [["sample-30", "sample-31", "sample-32"]])
    flagged = {
        reason: {i for i, each in enumerate(entries) if reason in each.reasons}
        for reason in ("caption", "by heart", "never learned", "duplicate")
    }
    assert flagged["caption"] == MISFITS
    for reason, planted in (("by heart", HEARTS), ("never learned", HARD)):
        assert flagged[reason] >= planted
        assert len(flagged[reason]) <= len(planted) + 2  # three deviations are passed by chance, too
    assert flagged["duplicate"] == {31, 32}
    assert entries[31].duplicate_of == "sample-30"
    assert {sample_id for sample_id, _ in drop_list(entries)} == {
        *(f"sample-{i}" for i in MISFITS), "sample-31", "sample-32",
    }  # fmt: skip
    scores = [each.caption_score for each in entries]
    assert auroc(scores, [i in MISFITS for i in range(N)]) == 1.0


def test_the_difficulty_of_an_image_cancels_in_the_gap(losses: Losses) -> None:
    """Its own loss varies by 0.1, the gap by a fiftieth of that."""
    gap, stderr = paired_gap(losses.own, losses.others)
    fitting = torch.tensor([i not in MISFITS for i in range(N)])
    assert float(gap[fitting].std()) < 0.005 < float(losses.own.mean(dim=1).std())
    assert float(gap[fitting].mean()) == pytest.approx(-0.05, abs=0.002)
    assert float(stderr.mean()) == pytest.approx(0.005 * 1.5**0.5 / K**0.5, rel=0.15)


def test_easy_images_with_swapped_captions_are_found_beside_hard_ones() -> None:
    """Own captions lower each loss by a tenth. Losses differ by up to a hundred times."""
    generator = torch.Generator().manual_seed(1)
    scale = 10 ** (2 * torch.rand(N, K, generator=generator, dtype=torch.float64) - 2)
    noise = 1 + 0.04 * torch.randn(M + 1, N, K, generator=generator, dtype=torch.float64)
    is_swapped = [i % 20 == 0 for i in range(N)]
    factor = torch.tensor([1.0 if swapped else 0.9 for swapped in is_swapped], dtype=torch.float64)
    own, others = factor[:, None] * scale * noise[0], scale * noise[1:]
    assert auroc(paired_gap(own, others)[0].tolist(), is_swapped) < 0.97
    assert auroc(log_ratio(own, others).tolist(), is_swapped) == 1.0
    weights = torch.rand(N, K, generator=generator, dtype=torch.float64) + 0.1  # an objective's
    assert torch.allclose(log_ratio(weights * own, weights * others), log_ratio(own, others))
    found = make_ledger(["a"] * N, ["b"] * N, Losses(own, others, None, torch.zeros(N, dtype=torch.bool)))
    assert auroc([each.caption_score for each in found], is_swapped) == 1.0
    nothing = torch.zeros(N, K, dtype=torch.float64)  # an objective may give a level no weight
    assert log_ratio(nothing, nothing[None]).tolist() == [0.0] * N


def test_other_captions_are_other_texts_and_fixed() -> None:
    captions = ["a", "b", "a", "c", "b"]
    found = other_captions(captions, 0)
    assert all(one != own for one, own in zip(found, captions, strict=True))
    assert found == other_captions(captions, 0)
    assert len({tuple(other_captions(captions, number)) for number in range(8)}) > 1
    assert other_captions(["a", "a"], 0) == ["a", "a"]


def test_hearts_are_compared_with_held_out_images_if_there_are_enough() -> None:
    fall = torch.cat([torch.full((20,), 1.0), torch.linspace(-0.1, 0.1, 12)]).double()
    held_out = torch.arange(32) >= 20
    assert float(heart_scores(fall, held_out)[0]) > 5
    assert heart_scores(fall, torch.zeros(32, dtype=torch.bool))[0] == 0  # all alike: none stands out


def test_the_gap_of_held_out_samples_is_in_standard_errors() -> None:
    own = torch.cat([torch.zeros(50, 2), torch.ones(50, 2)]).double()
    own += torch.linspace(-0.5, 0.5, 100).double()[:, None]
    found = standardised_gap(Losses(own, own[None], None, torch.arange(100) >= 50))
    assert found is not None
    assert found["gap"] == pytest.approx(1 + 50 / 99)
    assert found["z"] == pytest.approx(found["gap"] / found["stderr"])
    assert standardised_gap(Losses(own, own[None], None, torch.zeros(100, dtype=torch.bool))) is None


def test_auroc_counts_ties_half() -> None:
    assert auroc([1, 2, 3, 3], [False, False, True, False]) == pytest.approx((1 + 1 + 0.5) / 3)
