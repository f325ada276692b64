"""A sample's images are cropped and mirrored together, noticed when they change, and cached by their own content."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from ldm.data.batches import LatentSamples, collate, read_inputs, read_pixels
from ldm.data.buckets import BucketSettings, Placement, place
from ldm.data.cache.moments import MomentsCache, cache_items, moments_reader, variant_keys
from ldm.data.captions import CaptionSettings
from ldm.data.fingerprint import fingerprint
from ldm.data.image_index import ImageIndex
from ldm.data.order import SampleKey
from ldm.data.prepare import BucketedSample, DataSettings, prepare
from ldm.data.sample import MAIN_INPUT, NO_INPUTS, FileImage, ImageInfo, ImageInput, Sample, TaskInputs
from ldm.data.sources.reading import read_sources
from ldm.data.stream_shards import contents_hash
from ldm.data.streaming import StreamedSamples, Turn
from ldm.data.survey import survey
from ldm.data.transform import transform_image, transform_input
from ldm.errors import UserError
from tests.support.tiny_cache import MODEL, Encoder
from tests.support.tiny_folders import jsonl, row

SOURCE = ImageInput("source", encoded=True)
SEEN = ImageInput("source")
MASK = ImageInput("mask", "mask")
EDIT = TaskInputs((SOURCE, SEEN, MASK), ("instruction",))


def texture(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def inverted(image: Image.Image) -> Image.Image:
    return image.point(lambda value: 255 - value)


def write_edits(root: Path, size: tuple[int, int] = (40, 16), num: int = 2) -> Path:
    """Images with their negatives as sources, and masks that are white where the image is brighter than grey."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(num):
        image = texture(*size, seed=number)
        image.save(root / f"{number}.bmp")
        inverted(image).save(root / f"source-{number}.bmp")
        image.convert("L").point(lambda value: 255 * (value > 127)).save(root / f"mask-{number}.bmp")
    rows = (
        row(
            f"{number}.bmp",
            source_file_name=f"source-{number}.bmp",
            mask_file_name=f"mask-{number}.bmp",
            instruction=f"edit {number}",
        )
        for number in range(num)
    )
    jsonl(root, *rows)
    return root


def prepared(root: Path, inputs: TaskInputs = EDIT, **changes: object) -> list[BucketedSample]:
    tree = {"path": str(root), "height": 16, "width": 16, "crop_variants": 4, **changes}
    data = DataSettings.model_validate(tree)
    reading = read_sources(data.all_sources(), inputs)
    return prepare(reading, survey(reading.samples, None), data, multiple=4, seed=0).placed


def samples_of(placed: list[BucketedSample], inputs: TaskInputs = EDIT) -> LatentSamples:
    return LatentSamples(
        placed,
        read_pixels(placed),
        "pixel_values",
        3,
        CaptionSettings(),
        latent_channels=4,
        downscale=4,
        flip=True,
        images={image.key: read_inputs(placed, image) for image in inputs.images},
        texts=inputs.texts,
    )


def flip_byte_of(path: Path) -> None:
    """Change the colour of one pixel; the file can still be decoded."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


# One crop for all images of a sample


@settings(max_examples=60, deadline=None)
@given(
    image_size=st.tuples(st.integers(8, 70), st.integers(8, 70)),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 9),
)
def test_the_same_image_under_another_name_has_the_same_pixels(
    image_size: tuple[int, int], size: tuple[int, int], seed: int
) -> None:
    image = texture(*image_size, seed=seed)
    placement = place(
        *image_size,
        height=8 * size[0],
        width=8 * size[1],
        multiple=8,
        settings=BucketSettings(upscale=True, crop_variants=4),
        seed=seed,
        sample_id="a",
    )
    assert isinstance(placement, Placement)
    for crop in range(4):
        for flip in (False, True):
            main = transform_image(image, placement, crop, flip)
            assert torch.equal(transform_input(image, placement, crop, flip), main)


def test_two_images_of_a_sample_never_have_different_crops(tmp_path: Path) -> None:
    """At every draw the source is the negative of its image and the mask its bright part, pixel by pixel."""
    dataset = samples_of(prepared(write_edits(tmp_path)))
    seen = set()
    for epoch in range(40):
        for index in range(2):
            item = dataset[SampleKey(epoch, index)]
            shown = item["pixel_values"]
            torch.testing.assert_close(item["source"], -shown, rtol=0, atol=1e-6)
            assert torch.equal(item["source"], item["source_pixels"])
            grey = texture(40, 16, index).convert("L")
            assert item["mask_pixels"].shape == (1, 16, 16)
            assert set(item["mask_pixels"].unique().tolist()) == {0.0, 1.0}
            bright = _grey_levels(shown) > 127
            assert torch.equal(item["mask_pixels"][0] == 1, bright), grey
            assert item["instruction"] == f"edit {index}"
            seen.add((index, shown.sum().item()))
    assert len(seen) > 10  # several crops, mirrored and not


def _grey_levels(pixel_values: Tensor) -> Tensor:
    pixels = ((pixel_values + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return torch.from_numpy(np.array(Image.fromarray(pixels).convert("L")))


def test_an_image_of_another_resolution_is_cropped_at_the_same_place(tmp_path: Path) -> None:
    """Dark on the left, bright on the right: at twice the resolution the edge is at the same place of the crop."""
    image = Image.new("RGB", (40, 16), "black")
    image.paste("white", (21, 0, 40, 16))
    placement = place(
        40,
        16,
        height=16,
        width=16,
        multiple=4,
        settings=BucketSettings(crop_variants=8),
        seed=0,
        sample_id="a",
    )
    assert isinstance(placement, Placement)
    large = image.resize((80, 32), Image.Resampling.NEAREST)
    for crop in range(8):
        small = transform_input(image, placement, crop, kind="control")
        assert torch.equal(transform_input(large, placement, crop, kind="control"), small)
        assert torch.equal(small, (transform_image(image, placement, crop) + 1) / 2)


def test_each_kind_is_resampled_in_its_own_way() -> None:
    checks = Image.fromarray(np.indices((16, 16)).sum(0).astype(np.uint8) % 2 * 255).convert("RGB")
    placement = place(16, 16, height=8, width=8, multiple=8, settings=BucketSettings(), seed=0, sample_id="a")
    assert isinstance(placement, Placement)
    mask = transform_input(checks, placement, kind="mask")
    assert mask.shape == (1, 8, 8) and mask.dtype == torch.float32
    torch.testing.assert_close(mask, torch.full((1, 8, 8), 128 / 255))  # the mean of each area
    assert torch.equal(transform_input(checks, placement, kind="control"), mask.expand(3, 8, 8))
    labels = transform_input(checks, placement, kind="labels")
    assert labels.shape == (3, 8, 8) and set(labels.unique().tolist()) <= {0.0, 1.0}  # no colour is mixed
    photo = transform_input(checks, placement)
    assert photo.shape == (3, 8, 8) and photo.min() >= -1
    with pytest.raises(UserError, match="an image is 16 x 8 pixels and has another shape than its image"):
        transform_input(checks.resize((16, 8)), placement)


def test_a_stream_gives_out_the_same_items(tmp_path: Path) -> None:
    placed = prepared(write_edits(tmp_path))
    like = samples_of([], TaskInputs())
    streamed = StreamedSamples(like, EDIT)
    for index, one in enumerate(placed):
        item, expected = streamed[Turn(2, one)], samples_of(placed)[SampleKey(2, index)]
        assert item.keys() == expected.keys()
        assert all(torch.equal(item[n], expected[n]) for n in ("source", "mask_pixels", "pixel_values"))


def test_named_images_change_no_draw(tmp_path: Path) -> None:
    root = write_edits(tmp_path)
    plain, edits = prepared(root, NO_INPUTS), prepared(root)
    assert [one.placement for one in plain] == [one.placement for one in edits]
    one, other = samples_of(plain, NO_INPUTS)[SampleKey(1, 0)], samples_of(edits)[SampleKey(1, 0)]
    assert other.keys() - one.keys() == {"source", "source_pixels", "mask_pixels", "instruction"}
    assert all(torch.equal(one[n], other[n]) for n in ("noise", "posterior_noise", "pixel_values"))
    assert (one["position"], one["caption"]) == (other["position"], other["caption"])


def test_a_batch_stacks_the_images_and_lists_the_texts(tmp_path: Path) -> None:
    dataset = samples_of(prepared(write_edits(tmp_path)))
    batch = collate([dataset[SampleKey(0, index)] for index in range(2)])
    assert batch["source"].shape == (2, 3, 16, 16) and batch["mask_pixels"].shape == (2, 1, 16, 16)
    assert batch["instruction"] == ["edit 0", "edit 1"]


@pytest.mark.parametrize("name", ["noise", "moments", "loss_mask", "caption"])
def test_a_name_that_a_batch_already_has_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be called '{name}'"):
        samples_of([], TaskInputs((ImageInput(name, encoded=True),)))
    with pytest.raises(ValueError, match=f"cannot be called '{name}'"):
        samples_of([], TaskInputs(texts=(name,)))
    with pytest.raises(ValueError, match="only photos can be encoded"):
        ImageInput("mask", "mask", encoded=True)


# Surveyed once, and noticed when it changes

READS: list[str] = []


@dataclass(frozen=True)
class Noted(FileImage):
    """A file that records when it is read."""

    def read(self) -> bytes:
        READS.append(self.path.name)
        return super().read()


def test_a_further_image_is_decoded_once_and_remembered(tmp_path: Path) -> None:
    texture(8, 8).save(tmp_path / "a.png")
    texture(8, 8, 1).save(tmp_path / "s.png")
    main, source = Noted(tmp_path / "a.png"), Noted(tmp_path / "s.png")
    samples = [Sample(name, main, ("x",), images={"source": source}) for name in ("a", "b")]
    READS.clear()
    index = ImageIndex(tmp_path / "cache")
    first = survey(samples, index)
    index.save()
    assert sorted(READS) == ["a.png", "s.png"]
    READS.clear()
    again = survey(samples, ImageIndex(tmp_path / "cache"))
    assert again == first and not READS
    assert isinstance(again["a"], ImageInfo) and again["a"].named["source"].width == 8
    assert survey([Sample("a", main, ("x",))], ImageIndex(tmp_path / "cache"))["a"].named == {}  # type: ignore[union-attr]
    lines = next((tmp_path / "cache/facts").iterdir()).read_text().splitlines()
    assert len(lines) == 2 and not any("named" in json.loads(line)[-1] for line in lines)


def test_a_changed_source_is_a_changed_sample(tmp_path: Path) -> None:
    root = write_edits(tmp_path)
    edits, plain = fingerprint(prepared(root), {}), fingerprint(prepared(root, NO_INPUTS), {})
    keys = variant_keys(prepared(root), MODEL, True, SOURCE)
    kept = prepared(root)
    flip_byte_of(root / "source-1.bmp")
    after = prepared(root)
    assert fingerprint(after, {}).changes_since(edits) == "1 changed ('1.bmp')"
    assert fingerprint(prepared(root, NO_INPUTS), {}) == plain
    new_keys = variant_keys(after, MODEL, True, SOURCE)
    assert new_keys[0] == keys[0] and not set(new_keys[1].values()) & set(keys[1].values())
    assert variant_keys(after, MODEL, True) == variant_keys(kept, MODEL, True)
    with pytest.raises(UserError, match=r"source-1\.bmp has changed since it was checked"):
        kept[1].input_pixels(SOURCE)
    kept[0].input_pixels(SOURCE)


def test_a_changed_instruction_is_a_changed_sample(tmp_path: Path) -> None:
    root = write_edits(tmp_path)
    data = DataSettings(path=str(root), height=16, width=16)

    def hashes(inputs: TaskInputs) -> tuple[str, str]:
        reading = read_sources(data.all_sources(), inputs)
        found = prepare(reading, survey(reading.samples, None), data, multiple=4, seed=0)
        return fingerprint(found.placed, {}).hash, contents_hash(found)

    before = {inputs: hashes(inputs) for inputs in (EDIT, NO_INPUTS)}
    text = (root / "metadata.jsonl").read_text()
    (root / "metadata.jsonl").write_text(text.replace("edit 1", "edit it"))
    assert all(a != b for a, b in zip(hashes(EDIT), before[EDIT], strict=True))
    assert hashes(NO_INPUTS) == before[NO_INPUTS]
    assert len({*before[EDIT], *before[NO_INPUTS]}) == 4


# The cache


def test_moments_of_a_further_image_are_cached_by_its_own_content(tmp_path: Path) -> None:
    placed = prepared(write_edits(tmp_path / "data"))
    cache, encoder = MomentsCache(tmp_path / "cache", MODEL), Encoder()
    keys = {image: variant_keys(placed, MODEL, True, image) for image in (MAIN_INPUT, SOURCE)}
    wanted = [item for image in keys for item in cache_items(placed, keys[image], image)]
    filled = cache.fill(wanted, encoder, batch_size=4)
    assert filled.num_encoded == len({item.key for item in wanted}) == encoder.num_images
    for image in keys:
        read = moments_reader(cache, keys[image])
        for index, one in enumerate(placed):
            for crop in range(4):
                for flip in (False, True):
                    expected = Encoder()(one.input_pixels(image, crop, flip)[None])[0]
                    torch.testing.assert_close(read(index, crop, flip), expected, atol=1e-2, rtol=0)
    assert not set(keys[MAIN_INPUT][0].values()) & set(keys[SOURCE][0].values())


def test_the_same_image_under_another_name_is_one_entry(tmp_path: Path) -> None:
    """So its moments are equal, bit by bit, for every crop and flip."""
    texture(40, 16).save(tmp_path / "a.png")
    jsonl(tmp_path, row("a.png", source_file_name="a.png"))
    placed = prepared(tmp_path, TaskInputs((SOURCE,)))
    assert variant_keys(placed, MODEL, True, SOURCE) == variant_keys(placed, MODEL, True)
    assert len(variant_keys(placed, MODEL, True)[0]) == 8
