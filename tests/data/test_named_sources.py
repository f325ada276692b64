"""Further images and texts of samples, read from folders, parquet files, tars and saved datasets."""

from pathlib import Path
from typing import Any

import pytest

from ldm.data.captions import flip_allowed
from ldm.data.report.report import make_report
from ldm.data.sample import NO_INPUTS, ImageInput, Refusal, Sample, TaskInputs
from ldm.data.sources.reading import Reading, SourceSettings, read_source
from ldm.data.stream_shards import list_shards, read_shard
from ldm.data.survey import survey
from ldm.errors import UserError
from tests.support.tiny_folders import jsonl, row
from tests.support.tiny_sources import json_text, parquet, png, tar

SOURCE = TaskInputs((ImageInput("source", encoded=True),))
EDIT = TaskInputs((ImageInput("source", encoded=True), ImageInput("mask", "mask")), ("instruction",))


def read(path: Path, inputs: TaskInputs = NO_INPUTS, **settings: Any) -> Reading:
    return read_source(SourceSettings(path=str(path), **settings), inputs=inputs)


def write(root: Path, **levels: int) -> None:
    """Grey PNGs by stem; two underscores stand for a slash."""
    for stem, level in levels.items():
        path = root / f"{stem.replace('__', '/')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(level))


def edit_folder(root: Path) -> Path:
    """Two edited images, each with its source, its mask and an instruction."""
    write(root, a=1, b=2, before__a=3, before__b=4, masks__a=5, masks__b=6)
    rows = [
        row(
            f"{stem}.png",
            source_file_name=f"before/{stem}.png",
            mask_file_name=f"masks/{stem}.png",
            instruction=f" make it {stem} ",
        )
        for stem in "ab"
    ]
    jsonl(root, *rows)
    return root


def levels(sample: Sample) -> dict[str, bytes]:
    return {name: image.read() for name, image in sample.images.items()}


def faults(reading: Reading) -> dict[str, str]:
    found = survey(reading.samples, None)
    refused = [one for one in [*reading.refusals, *found.values()] if isinstance(one, Refusal)]
    assert all("\n" not in one.reason for one in refused)
    return {one.sample_id: one.reason for one in refused}


# Folders


def test_a_folder_names_images_in_columns_that_end_in_file_name(tmp_path: Path) -> None:
    samples = read(edit_folder(tmp_path), EDIT).samples
    assert [one.sample_id for one in samples] == ["a.png", "b.png"]
    assert [levels(one) for one in samples] == [
        {"source": png(3), "mask": png(5)},
        {"source": png(4), "mask": png(6)},
    ]
    assert [one.texts for one in samples] == [{"instruction": "make it a"}, {"instruction": "make it b"}]
    assert read(tmp_path, SOURCE).samples[0].images.keys() == {"source"}


def test_without_a_task_that_needs_them_the_columns_are_only_columns(tmp_path: Path) -> None:
    (sample, _) = read(edit_folder(tmp_path)).samples
    assert (sample.images, sample.texts) == ({}, {})
    assert sample.extra == {
        "source_file_name": "before/a.png",
        "mask_file_name": "masks/a.png",
        "instruction": " make it a ",
    }


def test_columns_of_original_file_names_are_ignored(tmp_path: Path) -> None:
    """Such data was usable before samples had named images, and its report has not changed."""
    write(tmp_path / "plain", a=1), write(tmp_path / "more", a=1)
    jsonl(tmp_path / "plain", row("a.png"))
    jsonl(tmp_path / "more", row("a.png", original_file_name="/home/me/DSC_0001.NEF", source_file_name=7))
    plain, more = (read(tmp_path / name) for name in ("plain", "more"))
    assert [one.captions for one in plain.samples] == [one.captions for one in more.samples]
    assert make_report(more, survey(more.samples, None)) == make_report(plain, survey(plain.samples, None))


def test_other_images_without_a_row_are_still_refused(tmp_path: Path) -> None:
    write(edit_folder(tmp_path), c=7)
    with pytest.raises(UserError, match=r"1 image without a row \(c\.png\)"):
        read(tmp_path, EDIT)


def test_the_column_of_the_main_image_may_be_another(tmp_path: Path) -> None:
    write(tmp_path, a=1, b=2)
    jsonl(tmp_path, {"edited_file_name": "a.png", "source_file_name": "b.png", "text": "x"})
    (sample,) = read(tmp_path, SOURCE, image_column="edited_file_name").samples
    assert (sample.sample_id, sample.image.read(), levels(sample)) == ("a.png", png(1), {"source": png(2)})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, r"metadata.jsonl, line 1: no 'source_file_name': the task needs it in every row"),
        ({"source_file_name": ""}, "line 1: no 'source_file_name': fill it in"),
        ({"source_file_name": "gone.png"}, "line 1: 'gone.png' is not in"),
        ({"source_file_name": "../a.png"}, "line 1: '../a.png' points outside"),
        ({"source_file_name": ["a.png"]}, r"line 1: 'source_file_name' is \['a.png'\], not text"),
        ({"source_file_name": "a.png", "instruction": " "}, "line 1: empty caption"),
        ({"source_file_name": "a.png"}, "line 1: no 'instruction': the task needs it in every row"),
    ],
)
def test_a_row_without_what_the_task_needs_is_refused_by_name(
    tmp_path: Path, more: dict[str, object], message: str
) -> None:
    write(tmp_path, a=1)
    jsonl(tmp_path, row("a.png", **more))
    read(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, TaskInputs(SOURCE.images, ("instruction",)))
    assert "\n" not in str(error.value)


def test_captions_in_txt_files_cannot_have_further_images(tmp_path: Path) -> None:
    write(tmp_path, a=1)
    (tmp_path / "a.txt").write_text("x")
    read(tmp_path)
    with pytest.raises(
        UserError, match="the task needs source_file_name, mask_file_name, instruction: write metadata"
    ):
        read(tmp_path, EDIT)


# Decoding


def test_a_further_image_is_decoded_and_has_the_aspect_ratio_of_its_main_image(tmp_path: Path) -> None:
    given = {
        "same": png(9),
        "larger": png(9, size=(40, 30)),
        "cut": png(9)[:-30],
        "wide": png(9, size=(4, 2)),
        "turned": png(9, size=(3, 4)),
    }
    for name, data in given.items():
        write(tmp_path, **{f"{name}": 0})
        (tmp_path / f"source-{name}.png").write_bytes(data)
    jsonl(tmp_path, *(row(f"{name}.png", source_file_name=f"source-{name}.png") for name in given))
    found = faults(read(tmp_path, SOURCE))
    assert found == {
        "cut.png": found["cut.png"],
        "wide.png": f"{tmp_path}/source-wide.png: the image 'source' is 4 x 2, its image 4 x 3: "
        "give both the same aspect ratio",
        "turned.png": f"{tmp_path}/source-turned.png: the image 'source' is 3 x 4, its image 4 x 3: "
        "give both the same aspect ratio",
    }
    assert f"{tmp_path}/source-cut.png: broken image" in found["cut.png"]
    assert not faults(read(tmp_path))


@pytest.mark.parametrize("size", [(64, 43), (96, 64), (320, 213), (320, 214), (1280, 854)])
def test_a_scaled_copy_passes_whichever_way_its_sides_were_rounded(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    (tmp_path / "a.png").write_bytes(png(1, size=(640, 427)))
    (tmp_path / "b.png").write_bytes(png(1, size=size))
    jsonl(tmp_path, row("a.png", source_file_name="b.png"))
    assert not faults(read(tmp_path, SOURCE))


def test_an_instruction_that_names_a_direction_forbids_mirroring(tmp_path: Path) -> None:
    write(tmp_path, a=1)
    jsonl(tmp_path, row("a.png", instruction="move it to the left"))
    (plain,), (edit,) = (
        read(tmp_path, inputs).samples for inputs in (NO_INPUTS, TaskInputs(texts=("instruction",)))
    )
    assert flip_allowed(plain) and not flip_allowed(edit)


# Parquet files, tars and datasets


def columns() -> dict[str, Any]:
    return {
        "image": [png(level) for level in range(4)],
        "source": [{"bytes": png(10 + level), "path": None} for level in range(4)],
        "mask": [png(20 + level) for level in range(4)],
        "text": ["x"] * 4,
        "instruction": [f"do {level}" for level in range(4)],
    }


def check_rows(reading: Reading) -> None:
    assert [one.image.read() for one in reading.samples] == [png(level) for level in range(4)]
    assert [levels(one) for one in reading.samples] == [
        {"source": png(10 + level), "mask": png(20 + level)} for level in range(4)
    ]
    assert [one.texts["instruction"] for one in reading.samples] == [f"do {level}" for level in range(4)]
    stamps = {image.stamp() for one in reading.samples for image in (one.image, *one.images.values())}
    assert len(stamps) == 12  # or the image index would take one image for another


def test_a_parquet_file_has_a_column_for_each_image(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", columns())
    check_rows(read(path, EDIT))
    (shard,) = list_shards([SourceSettings(path=str(path))])
    check_rows(read_shard(shard, EDIT))
    assert read(path).samples[0].images == {}


def test_a_row_of_a_parquet_file_without_an_image_is_refused(tmp_path: Path) -> None:
    table = columns()
    table["source"][1] = None
    table["mask"][2] = b"no image"
    table["instruction"][3] = None
    path = parquet(tmp_path / "a.parquet", table)
    found = faults(read(path, EDIT))
    assert found.keys() == {f"a.parquet/{number}" for number in (1, 2, 3)}
    assert found["a.parquet/1"] == "a.parquet row 1, source: no image bytes: remove the row"
    assert found["a.parquet/2"].startswith("a.parquet row 2, mask: not an image")
    assert found["a.parquet/3"] == "a.parquet row 3: no 'instruction': fill it in"
    assert not faults(read(path))


def test_a_parquet_file_without_the_column_is_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", {"image": [png()], "text": ["x"], "mask": ["a.png"]})
    with pytest.raises(
        UserError, match=r"no column 'source', which the task needs: rename one of image, text"
    ):
        read(path, SOURCE)
    with pytest.raises(UserError, match="column 'mask' holds string: put images in it"):
        read(path, TaskInputs((ImageInput("mask", "mask"),)))


def test_a_saved_dataset_has_a_column_for_each_image(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict(columns()).save_to_disk(tmp_path / "saved")
    check_rows(read(tmp_path / "saved", EDIT))
    table = columns()
    table["source"][1] = None
    datasets.Dataset.from_dict(table).save_to_disk(tmp_path / "lost")
    (reason,) = faults(read(tmp_path / "lost", EDIT)).values()
    assert reason.endswith("row 1, source: no image bytes: remove the row")


def test_members_of_a_tar_have_the_name_of_the_image_before_their_suffix(tmp_path: Path) -> None:
    members: dict[str, Any] = {}
    for level in range(4):
        members |= {
            f"{level}.png": png(level),
            f"{level}.source.png": png(10 + level),
            f"{level}.mask.PNG": png(20 + level),
        }
        if level % 2:
            members |= {f"{level}.txt": "x", f"{level}.instruction.txt": f"do {level}\n"}
        else:
            members[f"{level}.json"] = json_text(text="x", instruction=f"do {level}")
    check_rows(read(tar(tmp_path / "a.tar", members), EDIT))
    members |= {"1.source.jpg": png(), "2.json": json_text(text="x")}
    del members["3.source.png"]
    assert faults(read(tar(tmp_path / "b.tar", members), EDIT)) == {
        "b.tar/1": "b.tar: 1: several images 'source': keep one of them",
        "b.tar/2": "b.tar: 2: no 'instruction': the task needs it in every row; this one has text: "
        "add it or rename a column",
        "b.tar/3": "b.tar: 3: no image 'source', which the task needs: add it as 3.source.png",
    }
    assert not faults(read(tmp_path / "b.tar"))
