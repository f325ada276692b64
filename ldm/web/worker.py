"""The threads that take batches from the queue and have them made."""

import sys
import threading
import traceback
from functools import partial

from ldm.errors import UserError
from ldm.io.memory import memory_fault
from ldm.io.messages import say_warning, warnings_of_thread
from ldm.web.endings import Cancelled, InternalError, ProcessEnded
from ldm.web.image_maker import BatchOrder, Maker
from ldm.web.queue import JobQueue, Turn


class Worker(threading.Thread):
    """Has batches made, one after the other. An error ends its job only."""

    def __init__(self, queue: JobQueue, maker: Maker) -> None:
        super().__init__(name="worker", daemon=True)
        self.queue = queue
        self.maker = maker

    def run(self) -> None:
        """Work until the queue is closed."""
        while (turn := self.queue.next_turn()) is not None:
            try:
                with warnings_of_thread(turn.job.warn):
                    self._make(turn)
            except Cancelled:
                self.queue.give_up(turn)
            except UserError as error:
                self.queue.give_up(turn, error)
            except ProcessEnded as end:
                self._make_again(turn, end)
            except Exception as error:
                self.queue.give_up(turn, fault(error))
            else:
                self.queue.made(turn)

    def _make(self, turn: Turn) -> None:
        job = turn.job
        order = BatchOrder(
            turn.batch, job.requests, turn.is_first, job.model, job.lora_weights, job.file_format, job.quality
        )
        for image in self.maker.make(order, partial(_report, turn)):
            job.add(image)

    def _make_again(self, turn: Turn, end: ProcessEnded) -> None:
        """Say it, unless the job was cancelled, as all are when the server ends."""
        if self.queue.put_back(turn, end.how):
            said = f"the process that makes the images {end.how} and is started again"
            turn.job.warn(f"{said}: what it had begun is made anew")
            say_warning(said)


def _report(turn: Turn, done: int, total: int, previews: tuple[bytes, ...] | None) -> None:
    if turn.job.stop_asked:
        raise Cancelled
    turn.step, turn.num_steps = done, total
    if previews is not None:
        turn.previews = previews


def fault(error: Exception) -> UserError:
    """The error to answer with; one that is not about memory is printed for whoever runs the server."""
    if shortage := memory_fault(error):
        return InternalError(shortage.what, "ask for a smaller image, or for fewer")
    traceback.print_exception(error, file=sys.stderr)
    return InternalError(
        f"the server made a mistake ({type(error).__name__})", "its terminal shows more; please report it"
    )
