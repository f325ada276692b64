"""Errors and warnings take one line, and a terminal acts on nothing in them."""

import warnings

import pytest

from ldm.errors import warn
from ldm.io.messages import every_warning, own_warnings, say_error, say_warning

HOSTILE = "a\x1b[2Jb\x9bc\u202ed\ud800e\rf\ng"
SHOWN = "a\\x1b[2Jb\\x9bc\\u202ed\\ud800e\\rf g\n"


@pytest.mark.parametrize(("say", "kind"), [(say_error, "error"), (say_warning, "warning")])
def test_a_message_is_one_harmless_line(say, kind, capsys):
    say(HOSTILE)
    assert capsys.readouterr().err == f"{kind}: {SHOWN}"


def test_a_command_prints_our_warnings_once_and_hides_those_of_libraries(capsys):
    with own_warnings():
        warn(HOSTILE)
        warn(HOSTILE)
        warnings.warn("a library's", stacklevel=1)
    assert capsys.readouterr().err == f"warning: {SHOWN}"


def test_a_run_prints_our_warnings_each_time_and_leaves_the_others(capsys):
    with pytest.warns(UserWarning, match="a library's"), every_warning():
        warn(HOSTILE)
        warn(HOSTILE)
        warnings.warn("a library's", stacklevel=1)
    assert capsys.readouterr().err == f"warning: {SHOWN}" * 2


def test_the_former_way_of_showing_warnings_is_restored():
    before = warnings.showwarning
    with every_warning(), own_warnings():
        assert warnings.showwarning is not before
    assert warnings.showwarning is before
