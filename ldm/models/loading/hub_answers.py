"""What huggingface_hub raises when a server does not answer as the Hub does: nearly anything."""

from traceback import walk_tb

HINT = "check HF_ENDPOINT, the proxy and the name; if it is a mirror, try the Hub itself"


def is_from_the_library(error: BaseException) -> bool:
    """Whether huggingface_hub raised an error, or what it calls, while it handled an answer."""
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    return any(str(frame.f_globals.get("__name__")).startswith("huggingface_hub") for frame in frames)


def reason_of(error: BaseException) -> str:
    """One line about an error of the library."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    if isinstance(error, OSError):
        return first
    return f"its answer is not what the Hub answers: {type(error).__name__}: {first}"
