"""What a file says about itself is printed without the terminal acting on it."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.io.messages import visible_json
from ldm.io.png import write_chunks

SPOKEN = {"prompt": "a\x1b[2Jb\x9bc\u202ed\ud800e\nf", "key\x1b]0;x\x07": 1}


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_info_escapes_what_a_png_says(tmp_path, options):
    write_chunks(tmp_path / "a.png", Image.new("RGB", (8, 8)), {"ldm": json.dumps(SPOKEN)})
    done = CliRunner().invoke(app, ["info", str(tmp_path / "a.png"), *options])
    assert done.exit_code == 0
    assert not {"\x1b", "\x9b", "\x07", "\u202e", "\ud800"} & set(done.output)
    assert "a\\" in done.output


def test_escaped_json_is_the_same_json():
    assert json.loads(visible_json(SPOKEN)) == SPOKEN
