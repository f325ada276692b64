"""For tests/museum/: the half of a test that shows a defect of another library, which may be mended one day."""

from importlib.metadata import version

import pytest


def shown_wrong(is_wrong: bool, library: str = "diffusers") -> None:
    """Skip a test with the reason if the defect is gone; the last line of the test, after the half that is ours."""
    if not is_wrong:
        pytest.skip(f"{library} {version(library)} no longer has this defect")
