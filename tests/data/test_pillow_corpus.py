"""The odd and hostile files of Pillow's own tests: each is used or refused by name, in bounded time and memory.

The files come with Pillow's source package. It is downloaded from the package index, once if LDM_DOWNLOADS names a
folder to keep it in; without a network the test is skipped.
"""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import PIL
import pytest

ROOT = Path(__file__).parents[2]
MAX_SEC = 240
MAX_MORE_BYTES = 3 << 30
"""Address space besides that of the imports; the largest image allowed needs less than 2 GiB."""

# Runs in a separate process, so that a crash of a decoder does not end the tests.
PROGRAM = """
import json, resource, sys
from pathlib import Path
from ldm.data.masks import AlphaMask
from ldm.data.sample import ImageInfo, FileImage, Sample
from ldm.data.survey import survey
from ldm.errors import UserError

root, more_bytes = Path(sys.argv[1]), int(sys.argv[2])
in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + more_bytes, in_use + more_bytes))
paths = sorted(path for path in root.rglob("*") if path.is_file())
samples = [Sample(path.relative_to(root).as_posix(), FileImage(path), ("x",)) for path in paths]
outcomes = {}
for name, outcome in survey(samples, None).items():
    outcomes[name] = [outcome.width, outcome.height] if isinstance(outcome, ImageInfo) else outcome.reason
    if isinstance(outcome, ImageInfo):
        AlphaMask(FileImage(root / name)).read()
print(json.dumps(outcomes))
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def source_package(folder: Path) -> Path:
    """Pillow's source package of the installed version, in `folder`."""
    found = sorted(folder.glob(f"[Pp]illow-{PIL.__version__}.tar.gz"))
    if found:
        return found[0]
    pip = [sys.executable, "-m", "pip", "download", "--no-binary", ":all:", "--no-deps", "--quiet"]
    command = [*pip, "--dest", str(folder), f"Pillow=={PIL.__version__}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("Pillow's source package could not be downloaded in ten minutes")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"Pillow's source package could not be downloaded: {last}")
    return sorted(folder.glob(f"[Pp]illow-{PIL.__version__}.tar.gz"))[0]


def unpack_images(package: Path, root: Path) -> None:
    """Write the plain files under Tests/images to `root`."""
    with tarfile.open(package) as file:
        for member in file:
            parts = PurePosixPath(member.name).parts[1:]
            if member.isfile() and parts[:2] == ("Tests", "images") and ".." not in parts:
                path = root.joinpath(*parts[2:])
                path.parent.mkdir(parents=True, exist_ok=True)
                content = file.extractfile(member)
                assert content is not None
                path.write_bytes(content.read())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("corpus")
    kept = os.environ.get("LDM_DOWNLOADS")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("downloads")
    folder.mkdir(parents=True, exist_ok=True)
    unpack_images(source_package(folder), root)
    yield root


@pytest.fixture(scope="module")
def outcomes(corpus: Path) -> dict[str, Any]:
    """The size of each image, or why it is refused, by its name in the corpus."""
    program = [sys.executable, "-W", "error", "-c", PROGRAM, str(corpus), str(MAX_MORE_BYTES)]
    done = subprocess.run(
        program, cwd=ROOT, capture_output=True, text=True, timeout=MAX_SEC, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_file_is_used_or_refused_by_name(corpus: Path, outcomes: dict[str, Any]) -> None:
    assert outcomes.keys() == {p.relative_to(corpus).as_posix() for p in corpus.rglob("*") if p.is_file()}
    assert len(outcomes) > 1000
    refused = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, str)}
    assert not {name: reason for name, reason in refused.items() if f"{corpus / name}: " not in reason}
    assert not {name: reason for name, reason in refused.items() if "\n" in reason or len(reason) > 500}
    assert not {name: reason for name, reason in refused.items() if "memory" in reason.lower()}


KNOWN = {
    "hopper.png": [128, 128],
    "hopper.jpg": [128, 128],
    "hopper.gif": [128, 128],
    "hopper.webp": [128, 128],
    "hopper.tif": [128, 128],
    "hopper.bmp": [128, 128],
    "hopper.ppm": [128, 128],
    "hopper_bad_exif.jpg": [500, 500],
    "hopper.psd": "not an image in a known format",
    "eps/1.eps": "not an image in a known format",
    "truncated_jpeg.jpg": "truncated",
    "truncated_image.png": "truncated",
    "broken_data_stream.png": "broken image",
    "decompression_bomb.gif": "too large",
    "png_decompression_dos.png": "too large",
    "bmp/b/reallybig.bmp": "too large",
    "hopper.Lab.tif": "no fixed range",
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_file_has_the_expected_outcome(outcomes: dict[str, Any], name: str) -> None:
    expected = KNOWN[name]
    if isinstance(expected, str):
        assert expected in outcomes[name]
    else:
        assert outcomes[name] == expected
