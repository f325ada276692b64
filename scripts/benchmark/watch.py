"""Record when a method of a class is called and when it returns, without changes to the calling program."""

from typing import Any

from .samples import Clock


class Calls:
    """The calls of `owner.name` on any object since the last `clear`."""

    def __init__(self, owner: type, name: str, device: str = "cpu") -> None:
        self._clock = Clock(device)
        self._marks: list[tuple[Any, Any]] = []
        original, clock = getattr(owner, name), self._clock

        def watched(*args: Any, **kwargs: Any) -> Any:
            start = clock.now()
            output = original(*args, **kwargs)
            self._marks.append((start, clock.now()))
            return output

        setattr(owner, name, watched)

    def clear(self) -> None:
        self._marks = []

    def inside_sec(self) -> float:
        """Total time in all calls."""
        self._clock.finish()
        return sum(self._clock.between(start, end) for start, end in self._marks)

    def between_sec(self) -> float | None:
        """Mean time from the end of a call to the start of the next; None with fewer than two calls."""
        self._clock.finish()
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        gaps = [self._clock.between(before[1], after[0]) for before, after in pairs]
        return sum(gaps) / len(gaps) if gaps else None
