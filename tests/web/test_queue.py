"""The queue: fair between clients, bounded, and every job can be cancelled."""

import pytest
from PIL import Image

from ldm.errors import UserError
from ldm.models.generation_settings import GenerationSettings
from ldm.pipeline.batches import Prompt, list_images
from ldm.pipeline.input_images import memory_image
from ldm.pipeline.record import ImageRecord
from ldm.web.caps import Caps
from ldm.web.endings import InternalError
from ldm.web.queue import Job, JobQueue, NotFound, QueueFull, ServedImage, Turn


def job_of(client: str, num_images: int = 1, batch_size: int = 2) -> Job:
    settings = GenerationSettings(num_images=num_images)
    return Job(client, list_images([Prompt("a", settings)]), batch_size)


def taken_from(queue: JobQueue) -> Turn:
    """The next turn, of a worker that begins with it."""
    turn = queue.next_turn()
    assert turn is not None
    return turn


def turns(queue: JobQueue) -> list[str]:
    """Work through the queue; whose batch each turn was."""
    found = []
    while queue.num_waiting():
        turn = taken_from(queue)
        found.append(turn.job.client)
        queue.made(turn)
    return found


def test_clients_take_turns_batch_by_batch() -> None:
    queue = JobQueue(Caps())
    for job in (
        job_of("greedy", num_images=6),
        job_of("greedy"),
        job_of("late"),
        job_of("later", num_images=4),
    ):
        queue.submit(job)
    assert turns(queue) == ["greedy", "late", "later", "greedy", "later", "greedy", "greedy"]


def test_a_client_who_comes_late_does_not_wait_for_all_who_came_before() -> None:
    queue = JobQueue(Caps(waiting_each=50))
    for _ in range(50):
        queue.submit(job_of("greedy"))
    last = job_of("late")
    queue.submit(last)
    assert queue.place_of(last) == 1
    assert turns(queue)[:3] == ["greedy", "late", "greedy"]


def test_the_place_in_the_queue_is_the_number_of_turns_before() -> None:
    queue = JobQueue(Caps())
    jobs = [job_of(client) for client in ("a", "a", "a", "b", "b", "c")]
    for job in jobs:
        queue.submit(job)
    expected = {job: queue.place_of(job) for job in jobs}
    for turn in range(len(jobs)):
        taken = taken_from(queue)
        assert expected[taken.job] == turn
        queue.made(taken)


def test_the_queue_is_bounded() -> None:
    queue = JobQueue(Caps(waiting=3, waiting_each=2))
    queue.submit(job_of("a"))
    queue.submit(job_of("a"))
    with pytest.raises(QueueFull, match="2 of your requests are waiting"):
        queue.submit(job_of("a"))
    queue.submit(job_of("b"))
    with pytest.raises(QueueFull, match="the queue is full with 3 requests: try again later"):
        queue.submit(job_of("c"))
    assert queue.num_waiting() == 3


def test_the_images_that_waiting_jobs_hold_are_bounded() -> None:
    image = memory_image(Image.new("RGB", (100, 100)), "photo")
    prompt = Prompt("a", inputs={"image": image})
    queue = JobQueue(Caps(held_bytes=50_000))
    queue.submit(Job("a", list_images([prompt]), 1))
    with pytest.raises(QueueFull, match="take too much memory"):
        queue.submit(Job("b", list_images([prompt]), 1))
    (job,) = queue.jobs_of("a")
    queue.cancel(job)
    queue.submit(Job("b", list_images([prompt]), 1))


def test_a_thousand_jobs_are_queued_and_cancelled() -> None:
    queue = JobQueue(Caps(waiting=1000, waiting_each=1000, kept_jobs=10))
    jobs = [job_of(f"client {number % 7}", num_images=4) for number in range(1000)]
    for job in jobs:
        queue.submit(job)
    turn = taken_from(queue)
    for job in reversed(jobs):
        queue.cancel(job)
    assert turn.job.stop_asked and not turn.job.is_finished
    queue.give_up(turn)
    assert {job.state for job in jobs} == {"cancelled"} and queue.num_waiting() == 0
    assert all(job.ended.done() and not job.requests and not job.waiting for job in jobs)
    assert sum(map(len, map(queue.jobs_of, [f"client {number}" for number in range(7)]))) == 10
    queue.submit(job_of("again"))
    assert turns(queue) == ["again"]


def test_a_job_is_cancelled_between_its_batches() -> None:
    queue = JobQueue(Caps())
    job = job_of("a", num_images=4)
    queue.submit(job)
    queue.made(taken_from(queue))
    assert job.state == "running" and job.progress == 0.5
    queue.cancel(job)
    assert job.state == "cancelled" and queue.num_waiting() == 0


def test_several_workers_make_batches_of_one_job_at_once() -> None:
    queue = JobQueue(Caps())
    job = job_of("a", num_images=6)
    queue.submit(job)
    first, second, third = (taken_from(queue) for _ in range(3))
    assert [turn.is_first for turn in (first, second, third)] == [True, False, False]
    numbers = [image.number for turn in (first, second, third) for image in turn.batch]
    assert numbers == sorted(set(numbers)) and len(numbers) == 6
    second.step, second.num_steps = 1, 2
    assert job.progress == 1 / 6 and job.oldest_turn is first
    queue.made(third)
    queue.made(first)
    assert job.state == "running" and job.progress == 5 / 6 and job.oldest_turn is second
    queue.made(second)
    assert job.state == "done" and job.ended.done()


def test_a_job_ends_when_its_last_batch_at_work_does() -> None:
    """A failure and a cancellation stop the batches of other workers; the job is not finished before they are."""
    for error, state in ((UserError("it broke"), "failed"), (None, "cancelled")):
        queue = JobQueue(Caps())
        job, other = job_of("a", num_images=6), job_of("b")
        queue.submit(job)
        first, second = taken_from(queue), taken_from(queue)
        queue.submit(other)
        queue.give_up(first, error)
        assert job.stop_asked and not job.is_finished
        assert taken_from(queue).job is other
        queue.made(second)
        assert job.state == state and job.error is error and job.ended.done() and not job.waiting


def test_a_failed_job_has_its_error_and_the_others_go_on() -> None:
    queue = JobQueue(Caps())
    first, second = job_of("a"), job_of("a")
    queue.submit(first)
    queue.submit(second)
    queue.give_up(taken_from(queue), UserError("it broke"))
    assert first.state == "failed" and first.error is not None and first.ended.done()
    assert turns(queue) == ["a"] and second.state == "done"


def test_old_images_are_dropped_and_the_newest_are_kept() -> None:
    queue = JobQueue(Caps(kept_bytes=250))
    jobs = [job_of("a") for _ in range(4)]
    for job in jobs:
        queue.submit(job)
        turn = taken_from(queue)
        job.add(ServedImage(1, 0, "a.png", bytes(100), ImageRecord()))
        queue.made(turn)
    assert queue.jobs_of("a") == jobs[2:]
    with pytest.raises(NotFound):
        queue.find(jobs[0].id)


def test_a_closed_queue_cancels_and_refuses() -> None:
    queue = JobQueue(Caps())
    waiting = job_of("a")
    queue.submit(waiting)
    queue.close()
    assert waiting.state == "cancelled" and queue.next_turn() is None
    with pytest.raises(QueueFull, match="stopping"):
        queue.submit(job_of("a"))


def test_a_batch_whose_process_ended_is_made_again_once() -> None:
    queue = JobQueue(Caps())
    job = job_of("a", num_images=4)
    queue.submit(job)
    first = taken_from(queue)
    assert queue.put_back(first, "was killed by SIGKILL")
    again = taken_from(queue)
    assert again.batch is first.batch and again.is_first and job.at_work == [again]
    queue.made(again)
    second = taken_from(queue)
    assert not second.is_first and not queue.put_back(second, "was killed by SIGKILL")
    said = "the process that made the images was killed by SIGKILL, 2 times: ask for a smaller image, or for fewer"
    assert job.state == "failed" and isinstance(job.error, InternalError) and str(job.error) == said
    assert queue.num_waiting() == 0


def test_a_cancelled_batch_whose_process_ended_is_not_made_again() -> None:
    queue = JobQueue(Caps())
    job = job_of("a", num_images=4)
    queue.submit(job)
    turn = taken_from(queue)
    queue.cancel(job)
    assert not queue.put_back(turn, "was killed by SIGKILL")
    assert job.state == "cancelled" and job.error is None


def test_an_image_that_is_made_again_is_there_once() -> None:
    job = job_of("a")
    for _ in range(2):
        job.add(ServedImage(1, 0, "a.png", b"", ImageRecord()))
    assert len(job.images) == 1
