"""Cases of a parametrised test, of which `make test` runs some and `make test-all` all."""

from collections.abc import Iterable
from typing import Any

import pytest


def rest_slow(cases: Iterable[Any], *kept: Any) -> list[Any]:
    """The cases as parameters; all but those `kept` are marked slow."""
    found = list(cases)
    assert set(kept) <= set(found), "a case that is kept is not there"
    return [case if case in kept else pytest.param(case, marks=pytest.mark.slow) for case in found]
