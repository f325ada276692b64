"""Tiny parquet files, tars and saved datasets of captioned images, for the tests of sources."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.data.sources.reading import Reading, SourceSettings, read_source


def png(level: int = 0, size: tuple[int, int] = (4, 3)) -> bytes:
    """A grey PNG."""
    file = io.BytesIO()
    Image.new("RGB", size, (level, level, level)).save(file, "PNG")
    return file.getvalue()


def parquet(path: Path, columns: dict[str, Any], row_group_size: int = 2) -> Path:
    """Write a parquet file; a column with invalid UTF-8 must be a pyarrow array."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=row_group_size)
    return path


def raw_text(values: Sequence[bytes]) -> Any:
    """A text column with arbitrary bytes, as from a careless writer."""
    import pyarrow

    return pyarrow.Array.from_buffers(pyarrow.string(), len(values), pyarrow.array(values).buffers())


def tar(path: Path, members: dict[str, Any]) -> Path:
    """A tar of files by name: bytes, text, or a TarInfo's attributes for anything else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            data = content.encode() if isinstance(content, str) else content
            if isinstance(data, dict):
                for key, value in data.items():
                    setattr(info, key, value)
                data = b""
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def captioned(*names: str) -> dict[str, Any]:
    """The members of a tar with an image and a caption for each name."""
    members: dict[str, Any] = {}
    for level, name in enumerate(names):
        members |= {f"{name}.png": png(level), f"{name}.txt": f"a {name}"}
    return members


def read(path: Path, **settings: Any) -> Reading:
    return read_source(SourceSettings(path=str(path), **settings))


def outcomes(reading: Reading) -> dict[str, str | tuple[str, ...]]:
    """The captions of what is used and the reasons of what is refused, by id."""
    assert reading.num_found == len(reading.samples) + len(reading.refusals)
    used = {sample.sample_id: sample.captions for sample in reading.samples}
    return {**used, **{refusal.sample_id: refusal.reason for refusal in reading.refusals}}


def json_text(**values: Any) -> str:
    return json.dumps(values)
