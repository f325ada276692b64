"""Recall at k on matrices small enough to read."""

import torch

from ldm.evaluation.retrieval import recall_at

SIMILARITY = torch.tensor(
    [
        [0.9, 0.1, 0.2],  # image 0 finds its text first
        [0.8, 0.5, 0.1],  # image 1 finds its text second
        [0.7, 0.6, 0.3],  # image 2 finds its text third
    ]
)


def test_recall_of_both_directions() -> None:
    texts = ["a", "b", "c"]
    # texts find their images first, second (0.6 > 0.5), first
    assert recall_at(SIMILARITY, texts, 1) == {"image_to_text": 1 / 3, "text_to_image": 2 / 3}
    assert recall_at(SIMILARITY, texts, 2) == {"image_to_text": 2 / 3, "text_to_image": 1.0}
    assert recall_at(SIMILARITY, texts, 3) == {"image_to_text": 1.0, "text_to_image": 1.0}


def test_the_same_text_elsewhere_is_no_wrong_answer() -> None:
    assert recall_at(SIMILARITY, ["a", "a", "c"], 1) == {"image_to_text": 2 / 3, "text_to_image": 2 / 3}


def test_equal_similarities_and_nan_are_misses() -> None:
    for value in (0.5, float("nan")):
        scores = recall_at(torch.full((3, 3), value), ["a", "b", "c"], 2)
        assert scores == {"image_to_text": 0.0, "text_to_image": 0.0}
