"""Parquet files and saved datasets that claim or expand to far more than they hold."""

import struct
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from ldm.data.sample import Refusal
from ldm.data.sources import parquet, parquet_pages
from ldm.data.sources.hf_datasets import check_saved
from ldm.data.sources.metadata import MAX_CAPTION_BYTES, read_rows
from ldm.data.sources.parquet import read_parquet
from ldm.data.sources.parquet_pages import PageHeader, _pages, read_group
from ldm.errors import UserError


def write(path: Path, images: object, texts: object, **options: object) -> Path:
    table = pyarrow.table(
        {"image": pyarrow.array(images, pyarrow.binary()), "text": pyarrow.array(texts, pyarrow.string())}
    )
    pyarrow.parquet.write_table(table, path, compression="zstd", **options)
    return path


def outcomes(path: Path) -> list[object]:
    return list(read_parquet("a", path, image_column="image", caption_column="text"))


def test_pages_say_what_the_reader_then_takes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [b"x" * 100_000, b"y" * 200_000] * 20, ["a dog", None] * 20)
    with pyarrow.parquet.ParquetFile(path) as file:
        chunks = file.metadata.row_group(0)
        for index, name in enumerate(("image", "text")):
            pages = list(_pages(path, chunks, [name]))
            assert pages[0].is_dictionary and len(pages) > 1
            headers = chunks.column(index).total_uncompressed_size - sum(page.num_bytes for page in pages)
            assert 0 < headers < 100 * len(pages)  # the size in the footer counts the headers too
        assert read_group(file, path, 0, ["image", "text"]).equals(file.read_row_group(0))


def test_a_text_of_gigabytes_in_a_few_bytes_is_one_bad_row(tmp_path: Path) -> None:
    found = outcomes(write(tmp_path / "a.parquet", [b"x", b"y"], ["a" * (MAX_CAPTION_BYTES + 1), "a dog"]))
    assert isinstance(found[0], Refusal) and "more than 1,048,576 bytes" in found[0].reason
    assert found[1].captions == ("a dog",)


def test_a_repeated_text_that_expands_beyond_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet", [b"x"] * 4000, ["a" * 100_000] * 4000)  # 400 MB in 1 kB
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(parquet_pages, "free_memory_bytes", lambda: 200 * 2**20)
    monkeypatch.setattr(parquet_pages, "BATCH_BYTES", 10 * 2**20)
    with pytest.raises(UserError, match="row group 0 does not fit in memory"):
        outcomes(path)


def test_a_cell_larger_than_the_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet", [bytes(50_000_000)], ["a"])
    assert path.stat().st_size < 20_000
    monkeypatch.setattr("ldm.io.memory.free_memory_bytes", lambda: 40e6)
    with (
        pytest.raises(UserError, match=r"row group 0 needs about 0.1 GB"),
        pyarrow.parquet.ParquetFile(path) as file,
    ):
        read_group(file, path, 0, ["image"])


def test_more_rows_than_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "metadata.parquet", pyarrow.nulls(10**6), pyarrow.nulls(10**6))
    monkeypatch.setattr("ldm.io.memory.free_memory_bytes", lambda: 5e8)
    for read in (lambda: list(read_rows(path)), lambda: outcomes(path)):
        with pytest.raises(UserError, match=r"1,000,000 rows needs about 1.0 GB"):
            read()


def test_many_row_groups_do_not_read_the_footer_for_each_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet", [b"x"] * 50, ["a"] * 50, row_group_size=1)
    samples, opened = outcomes(path), []
    monkeypatch.setattr(
        parquet,
        "open_parquet",
        lambda p, footer=None, o=parquet.open_parquet: opened.append(footer) or o(p, footer),
    )
    assert [sample.image.read() for sample in samples] == [b"x"] * 50
    assert opened.count(None) == 1


def test_a_row_group_is_read_once_for_all_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, read = outcomes(write(tmp_path / "a.parquet", [b"x"] * 50, ["a"] * 50)), []
    monkeypatch.setattr(parquet, "read_group", lambda *given, o=read_group: read.append(given) or o(*given))
    assert [sample.image.read() for sample in samples] == [b"x"] * 50
    assert len(read) == 1


@pytest.mark.parametrize(
    "damage", [b"", b"\x15", b"\x15\x80", b"\xff" * 40, b"\x1c" * 40, b"\x18\xff\xff\xff\xff\x0f"]
)
def test_a_damaged_page_header_is_an_error(damage: bytes) -> None:
    with pytest.raises(ValueError, match="a page header is damaged"):
        PageHeader(damage).size(2)


def saved(folder: Path) -> Path:
    """As `save_to_disk` writes it; its texts begin at 0, 3 and 8 of their buffer."""
    folder.mkdir()
    table = pyarrow.table({"image": [b"1", b"2"], "text": ["dog", "a cat"]})
    with (
        pyarrow.OSFile(str(folder / "data.arrow"), "wb") as file,
        pyarrow.ipc.new_stream(file, table.schema) as stream,
    ):
        stream.write_table(table)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    return folder


def test_broken_offsets_of_a_saved_dataset_are_found_outside_this_process(tmp_path: Path) -> None:
    folder = saved(tmp_path / "saved")
    check_saved(folder)
    raw = (folder / "data.arrow").read_bytes()
    place = raw.index(struct.pack("<iii", 0, 3, 8))
    (folder / "data.arrow").write_bytes(raw[: place + 4] + struct.pack("<i", 2**31 - 5) + raw[place + 8 :])
    with pytest.raises(UserError, match=r"data\.arrow is not a valid Arrow file"):
        check_saved(folder)


@pytest.mark.parametrize("name", ["../data.arrow", "/dev/zero", "..", ""])
def test_a_saved_dataset_names_files_of_its_own_folder_only(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path / "saved")
    (folder / "state.json").write_text(f'{{"_data_files": [{{"filename": "{name}"}}]}}')
    with pytest.raises(UserError, match="must be in the same folder"):
        check_saved(folder)


def test_a_device_as_the_file_of_a_saved_dataset_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "saved")
    (folder / "data.arrow").unlink()
    (folder / "data.arrow").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="it is a device, not a regular file"):
        check_saved(folder)
