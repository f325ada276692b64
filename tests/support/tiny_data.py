"""Prepared samples for the tests: a folder read, decoded and placed as a run does it."""

from pathlib import Path
from typing import Any

from ldm.data.prepare import DataSettings, Prepared, prepare
from ldm.data.sources.reading import SourceSettings, read_sources
from ldm.data.survey import survey


def prepare_folder(
    folder: Path, size: int = 16, *, seed: int = 0, multiple: int = 4, **settings: Any
) -> Prepared:
    """The samples of a folder at `size` pixels, with any settings of the data."""
    data = DataSettings(path=str(folder), height=size, width=size, **settings)
    reading = read_sources([SourceSettings(path=str(folder))])
    return prepare(reading, survey(reading.samples, None), data, multiple=multiple, seed=seed)
