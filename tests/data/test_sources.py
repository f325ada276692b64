"""Sources of every kind, one and several, with repeats, weights and masks."""

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldm.config import validate
from ldm.data.masks import AlphaMask
from ldm.data.sources.reading import SourceSettings, kind_of, read_sources
from ldm.errors import UserError
from tests.support.tiny_folders import image, jsonl, row
from tests.support.tiny_sources import captioned, outcomes, parquet, png, read, tar


def folder(root: Path, *names: str) -> Path:
    for name in names:
        image(root / name)
    jsonl(root, *(row(name, f"this is {name}") for name in names))
    return root


def one_row() -> dict[str, Any]:
    return {"image": [png()], "text": ["x"]}


def test_a_folder_is_read_as_ever(tmp_path: Path) -> None:
    reading = read(folder(tmp_path / "data", "a.png", "b/c.png"))
    assert outcomes(reading) == {"a.png": ("this is a.png",), "b/c.png": ("this is b/c.png",)}
    assert [sample.image.read() for sample in reading.samples] == 2 * [
        (tmp_path / "data" / "a.png").read_bytes()
    ]


def test_named_columns_of_a_metadata_file(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    jsonl(tmp_path, {"picture": "a.png", "prompt": ["hello", "hi"], "artist": "x"})
    sample = read(tmp_path, image_column="picture", caption_column="prompt").samples[0]
    assert (sample.sample_id, sample.captions) == ("a.png", ("hello", "hi"))
    assert sample.extra == {"artist": "x"}
    with pytest.raises(UserError, match=r"line 1: no 'file_name': every row needs it; this one has picture"):
        read(tmp_path, caption_column="prompt")


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("folder", ["a.png", "a.txt"]),
        ("folder", ["metadata.parquet"]),
        ("folder", ["a.jpg", "a.txt", "metadata.parquet"]),
        ("folder", ["a.jpg", "@eaDir/a.jpg", "@eaDir/0.parquet"]),
        ("folder", ["train/metadata.jsonl"]),
        ("folder", []),
        ("parquet", ["data/train-0.parquet", "README.md"]),
        ("webdataset", ["0.tar", "0.parquet", "0_stats.json"]),
        ("webdataset", ["0.tar.gz"]),
        ("datasets", ["dataset_dict.json", "train/data.arrow"]),
        ("datasets", ["dataset_info.json", "state.json"]),
    ],
)
def test_the_kind_of_a_folder(tmp_path: Path, kind: str, files: list[str]) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert kind_of(SourceSettings(path=str(tmp_path))) == kind


@pytest.mark.parametrize(
    ("message", "files"),
    [
        ("images and parquet files: set kind to folder or parquet", ["a.jpg", "a.txt", "0.parquet"]),
        ("tars and parquet files: set kind to webdataset or parquet", ["0.tar", "1.parquet"]),
        ("metadata.jsonl and tars: set kind to folder or webdataset", ["metadata.jsonl", "a/0.tar"]),
        ("metadata.parquet and parquet files: set kind", ["a.jpg", "metadata.parquet", "0.parquet"]),
    ],
)
def test_a_folder_of_two_kinds(tmp_path: Path, message: str, files: list[str]) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=f"has {message}"):
        kind_of(SourceSettings(path=str(tmp_path)))
    assert kind_of(SourceSettings(path=str(tmp_path), kind="parquet")) == "parquet"


def test_the_kind_of_a_file(tmp_path: Path) -> None:
    assert kind_of(SourceSettings(path=str(parquet(tmp_path / "a.PARQUET", one_row())))) == "parquet"
    assert kind_of(SourceSettings(path=str(tar(tmp_path / "a.tar", {})))) == "webdataset"
    assert kind_of(SourceSettings(path="someone/something", kind="datasets")) == "datasets"
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.zip: not a file of samples"):
        read(tmp_path / "a.zip")
    with pytest.raises(
        UserError, match=r"gone: no such folder or file: name another, or set kind to datasets"
    ):
        read(tmp_path / "gone")
    with pytest.raises(UserError, match=r"a\.tar: no samples"):
        read(tmp_path / "a.tar")
    image(tmp_path / "b.png")
    with pytest.raises(UserError, match="has images and tars: set kind to folder or webdataset"):
        read(tmp_path)


def bad_second(path: Path) -> Path:
    """A parquet file of three rows, the second without a caption."""
    return parquet(path, {"image": [png(1), png(2), png(3)], "text": ["one", None, "three"]})


def test_repeats_have_different_ids_and_the_same_image(tmp_path: Path) -> None:
    reading = read(bad_second(tmp_path / "a.parquet"), repeats=3, loss_weight=0.25)
    rows = [f"a.parquet/{row}" for row in range(3)]
    ids = [sample.sample_id for sample in reading.samples]
    assert ids == [f"{rows[row]}{end}" for end in ("", "#2", "#3") for row in (0, 2)]
    assert [refusal.sample_id for refusal in reading.refusals] == [rows[1], f"{rows[1]}#2", f"{rows[1]}#3"]
    assert len({sample.image for sample in reading.samples}) == 2
    assert {sample.loss_weight for sample in reading.samples} == {0.25}
    assert reading.num_found == 9


def test_several_sources_with_different_weights(tmp_path: Path) -> None:
    folder(tmp_path / "mine", "a.png")
    tar(tmp_path / "regular.tar", captioned("a", "b"))
    settings = [
        SourceSettings(path=str(tmp_path / "mine"), repeats=2),
        SourceSettings(path=str(tmp_path / "regular.tar"), loss_weight=0.5),
        SourceSettings(path=str(bad_second(tmp_path / "a.parquet"))),
    ]
    reading = read_sources(settings)
    assert {sample.sample_id: sample.loss_weight for sample in reading.samples} == {
        "0/a.png": 1.0, "0/a.png#2": 1.0, "1/regular.tar/a": 0.5, "1/regular.tar/b": 0.5,
        "2/a.parquet/0": 1.0, "2/a.parquet/2": 1.0,
    }  # fmt: skip
    assert [refusal.sample_id for refusal in reading.refusals] == ["2/a.parquet/1"]
    assert read_sources(settings[:1]).samples[0].sample_id == "a.png"


def test_two_samples_with_the_same_id(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", captioned("a", "a#2"))
    assert len(read(tmp_path / "a.tar").samples) == 2
    with pytest.raises(UserError, match=r"a\.tar: two samples are called 'a\.tar/a#2'"):
        read(tmp_path / "a.tar", repeats=2)


def test_a_folder_of_masks(tmp_path: Path) -> None:
    folder(tmp_path / "data", "a.jpg", "b/c.png")
    for name in ("a.png", "b/c.webp"):
        image(tmp_path / "masks" / name)
    samples = read(tmp_path / "data", masks=tmp_path / "masks").samples
    paths = [sample.loss_mask.path.relative_to(tmp_path).as_posix() for sample in samples]
    assert paths == ["masks/a.png", "masks/b/c.webp"]
    rows = bad_second(tmp_path / "a.parquet")
    for row_number in range(3):
        image(tmp_path / "more" / "a.parquet" / f"{row_number}.png")
    repeated = read(rows, masks=tmp_path / "more", repeats=2).samples
    assert [s.loss_mask.path.name for s in repeated] == ["0.png", "2.png"] * 2


def test_masks_and_samples_match_or_nothing_is_read(tmp_path: Path) -> None:
    data, masks = folder(tmp_path / "data", "a.png", "b.png"), tmp_path / "masks"
    with pytest.raises(UserError, match="masks: no such folder"):
        read(data, masks=masks)
    image(masks / "a.png")
    with pytest.raises(UserError, match=r"masks: no mask for b\.png: add white masks"):
        read(data, masks=masks)
    image(masks / "b.png")
    image(masks / "bb.png")
    with pytest.raises(UserError, match=r"masks: no sample for the masks bb\.png"):
        read(data, masks=masks)
    image(masks / "b.jpg")
    with pytest.raises(UserError, match=r"b\.jpg and b\.png are masks of the same sample"):
        read(data, masks=masks)


def pixels(data: bytes) -> list[int]:
    return list(Image.open(io.BytesIO(data)).convert("L").tobytes())


def test_transparency_as_a_mask(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    picture.putpixel((0, 0), (0, 0, 0, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned: its left becomes its top
    folder(tmp_path, "a.png", "b.png")
    picture.save(tmp_path / "a.png", exif=exif)
    clear, opaque = read(tmp_path, alpha_mask=True).samples
    assert pixels(clear.loss_mask.read()) == [10, 255]
    assert Image.open(io.BytesIO(clear.loss_mask.read())).size == (1, 2) == clear.open().size
    assert pixels(opaque.loss_mask.read()) == [255] * 4
    assert pickle.loads(pickle.dumps(clear.loss_mask)) == AlphaMask(clear.image)
    path, *rest = clear.image.stamp()
    assert clear.loss_mask.stamp() == (f"{path}#alpha", *rest)
    assert clear.loss_mask.name == f"transparency of {tmp_path / 'a.png'}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"masks": "m", "alpha_mask": True}, "alpha_mask = True: masks is set already; keep one"),
        ({"repeats": 0}, "repeats = 0"),
        ({"loss_weight": 0}, "loss_weight = 0"),
        ({"caption": "x"}, "unknown setting 'caption': did you mean 'caption_column'"),
        ({"kind": "zip"}, "kind = 'zip'"),
    ],
)
def test_settings_that_are_wrong(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(SourceSettings, {"path": "data", **settings})
