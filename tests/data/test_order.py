"""The order of the samples: each once per epoch, the same for any number of processes, a function of its key alone."""

from collections import Counter

import pytest

from ldm.data.order import BatchOrder, SampleKey, epoch_batches, keyed_batches, steps_per_epoch

ONE = ["all"] * 10
MIXED = ["wide", "tall", "wide", "square", "tall", "wide", "wide", "tall", "wide", "wide"]


IDS = [f"{number}.png" for number in range(10)]
PINNED = [[0, 9, 2, 5], [1, 4, 7], [3], [8, 6]]


def epochs(bucket_of: list[str], num_epochs: int, seed: int = 1) -> list[list[SampleKey]]:
    steps = num_epochs * steps_per_epoch(bucket_of, 4)
    return list(BatchOrder(seed, bucket_of, 4, 0, steps))


def test_with_one_bucket_the_last_batch_is_the_smaller_one() -> None:
    assert steps_per_epoch(ONE, 4) == 3
    assert [len(batch) for batch in epochs(ONE, 2)] == [4, 4, 2, 4, 4, 2]


@pytest.mark.parametrize("bucket_of", [ONE, MIXED])
def test_each_sample_is_seen_exactly_once_per_epoch(bucket_of: list[str]) -> None:
    keys = [key for batch in epochs(bucket_of, 3) for key in batch]
    assert Counter(keys) == {SampleKey(epoch, i): 1 for epoch in range(3) for i in range(10)}


def test_a_batch_is_from_one_bucket_and_the_batches_are_shuffled() -> None:
    assert steps_per_epoch(MIXED, 4) == 4  # six wide in two, three tall, one square
    batches = epochs(MIXED, 8)
    names = [{MIXED[key.sample_index] for key in batch} for batch in batches]
    assert all(len(each) == 1 for each in names)
    assert len({tuple(map(str, names[start : start + 4])) for start in range(0, 32, 4)}) > 1


def test_another_epoch_or_seed_is_another_order() -> None:
    first, second = epochs(ONE, 2)[:3], epochs(ONE, 2)[3:]
    assert first != [[key._replace(epoch=0) for key in batch] for batch in second]
    assert first != epochs(ONE, 1, seed=2)


@pytest.mark.parametrize("num_processes", [1, 2, 3, 5])
@pytest.mark.parametrize("bucket_of", [ONE, MIXED])
def test_the_ranks_share_the_global_batch_of_one_process(bucket_of: list[str], num_processes: int) -> None:
    whole = list(BatchOrder(0, bucket_of, 4, 0, 8))
    ranks = [
        list(BatchOrder(0, bucket_of, 4, 0, 8, rank=r, num_processes=num_processes))
        for r in range(num_processes)
    ]
    for step, batch in enumerate(whole):
        assert all(rank[step] for rank in ranks)
        assert sorted(k for rank in ranks for k in rank[step] if k.weight) == sorted(batch)


@pytest.mark.parametrize("start", [1, 3, 5])
def test_a_resumed_order_continues_where_it_stopped(start: int) -> None:
    assert list(BatchOrder(0, MIXED, 4, 0, 9))[start:] == list(BatchOrder(0, MIXED, 4, start, 9))


def test_the_batches_of_a_bucket_do_not_depend_on_other_buckets() -> None:
    """More samples in one bucket do not change the order inside another."""
    more = [*MIXED, "square", "square"]
    before, after = (
        [key.sample_index for batch in epoch_batches(0, seed=1, bucket_of=each, global_batch_size=20)
         for key in batch if each[key.sample_index] == "wide"]
        for each in (MIXED, more)
    )  # fmt: skip
    assert before == after


# The keyed order


def keyed_ids(ids: list[str], bucket_of: list[str], num_steps: int = 12) -> list[list[str]]:
    """The ids of each batch, step by step."""
    order = BatchOrder(1, bucket_of, 4, 0, num_steps, sample_ids=ids)
    return [[ids[key.sample_index] for key in batch] for batch in order]


def test_the_keyed_order_is_fixed() -> None:
    """Runs with it are replayed years later."""
    batches = keyed_batches(0, seed=1, bucket_of=MIXED, global_batch_size=4, sample_ids=IDS)
    assert [[key.sample_index for key in batch] for batch in batches] == PINNED
    assert sorted(key for batch in batches for key in batch) == [SampleKey(0, i) for i in range(10)]
    assert all(len({MIXED[key.sample_index] for key in batch}) == 1 for batch in batches)
    assert keyed_ids(IDS, MIXED)[:4] != keyed_ids(IDS, MIXED)[4:8]  # another epoch
    assert (
        list(BatchOrder(1, MIXED, 4, 5, 9, sample_ids=IDS))
        == list(BatchOrder(1, MIXED, 4, 0, 9, sample_ids=IDS))[5:]
    )


@pytest.mark.parametrize("bucket_of", [ONE, MIXED])
@pytest.mark.parametrize("removed", range(10))
def test_without_a_sample_the_keyed_batches_before_it_stay(bucket_of: list[str], removed: int) -> None:
    whole = keyed_ids(IDS, bucket_of)
    kept = [i for i in range(10) if i != removed]
    rest = keyed_ids([IDS[i] for i in kept], [bucket_of[i] for i in kept])
    first = next(step for step, batch in enumerate(whole) if IDS[removed] in batch)
    assert whole[:first] == rest[:first] and whole[first] != rest[first]
    epoch = steps_per_epoch([bucket_of[i] for i in kept], 4)
    left = [id_ for batch in rest[:epoch] for id_ in batch]
    assert sorted(left) == sorted(IDS[i] for i in kept)
    if bucket_of is ONE:  # the others follow each other as before
        assert left == [id_ for batch in whole[:3] for id_ in batch if id_ != IDS[removed]]


def test_the_keyed_order_does_not_depend_on_the_order_of_the_list() -> None:
    turned = list(reversed(range(10)))
    assert keyed_ids(IDS, MIXED) == keyed_ids([IDS[i] for i in turned], [MIXED[i] for i in turned])
