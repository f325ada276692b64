"""The survey decodes every image once, remembers what it found, and refuses by name."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from PIL import Image

from ldm.data.duplicates import perceptual_hash
from ldm.data.image_index import ImageIndex
from ldm.data.masks import AlphaMask
from ldm.data.sample import FileImage, ImageInfo, Refusal, Sample
from ldm.data.survey import check_bad_fraction, survey
from ldm.errors import UserError
from tests.support.tiny_sources import png

READS: list[str] = []


@dataclass(frozen=True)
class Noted(FileImage):
    """A file that records when it is read."""

    def read(self) -> bytes:
        READS.append(self.path.name)
        return super().read()


@pytest.fixture(autouse=True)
def nothing_read() -> None:
    READS.clear()


def sample(path: Path, data: bytes) -> Sample:
    path.write_bytes(data)
    return Sample(path.name, Noted(path), ("x",))


def truncated_jpeg(path: Path) -> bytes:
    """A file that `Image.verify()` accepts."""
    Image.effect_noise((64, 64), 50).save(path, "JPEG")
    data = path.read_bytes()[:-200]
    path.write_bytes(data)
    with Image.open(path) as image:
        image.verify()
    return data


def samples_of(root: Path) -> list[Sample]:
    good, turned = sample(root / "a.png", png(9)), root / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 2)).save(turned, exif=exif)
    gif = root / "moving.gif"
    Image.new("L", (3, 3)).save(gif, save_all=True, append_images=[Image.new("L", (3, 3), 255)])
    return [
        good,
        sample(root / "cut.jpg", truncated_jpeg(root / "cut.jpg")),
        Sample("turned.jpg", Noted(turned), ("x",)),
        sample(root / "text.png", b"hello\n"),
        Sample("moving.gif", Noted(gif), ("x",)),
        sample(root / "empty.png", b""),
        Sample("gone.png", Noted(root / "gone.png"), ("x",)),
        replace(good, sample_id="a.png#2"),
        sample(root / "same.png", png(9)),
    ]


def test_good_images_are_described_and_bad_ones_refused_with_a_reason(tmp_path: Path) -> None:
    samples = samples_of(tmp_path)
    found = survey(samples, None)
    assert list(found) == [sample.sample_id for sample in samples]
    assert found["a.png"] == ImageInfo(
        hashlib.sha256(png(9)).hexdigest(), 4, 3, perceptual_hash(samples[0].open()), ()
    )
    assert found["a.png#2"] == found["same.png"] == found["a.png"]
    turned = found["turned.jpg"]
    assert isinstance(turned, ImageInfo)
    assert (turned.width, turned.height) == (2, 6)
    assert found["moving.gif"].notes == ("animated: first of 2 frames used",)
    reasons = {key: outcome.reason for key, outcome in found.items() if isinstance(outcome, Refusal)}
    assert reasons == {
        "cut.jpg": reasons["cut.jpg"],
        "text.png": f"{tmp_path}/text.png: not an image in a known format, or its header is broken: "
        "save it again as PNG or JPEG, or take it out",
        "empty.png": f"{tmp_path}/empty.png: the file is empty: save it again as PNG or JPEG, or take it out",
        "gone.png": f"{tmp_path}/gone.png: No such file or directory: name a readable image file",
    }
    assert "cut.jpg: broken image (image file is truncated" in reasons["cut.jpg"]


def test_an_image_is_read_once_and_not_again_with_an_index(tmp_path: Path) -> None:
    samples, image_index = samples_of(tmp_path), ImageIndex(tmp_path / "cache")
    first = survey(samples, image_index)
    assert sorted(READS) == sorted({sample.image.path.name for sample in samples})
    READS.clear()
    assert survey(samples, image_index) == first
    assert sorted(READS) == ["cut.jpg", "empty.png", "gone.png", "text.png"]
    READS.clear()
    sample(tmp_path / "a.png", png(10, size=(5, 5)))
    again = survey(samples, image_index)["a.png"]
    assert isinstance(again, ImageInfo)
    assert (again.width, again.content_hash) == (5, hashlib.sha256(png(10, size=(5, 5))).hexdigest())
    assert "a.png" in READS
    READS.clear()
    assert survey(samples, None).keys() == first.keys()
    assert len(READS) == len(samples) - 1


def test_the_shares_of_the_processes_cover_everything(tmp_path: Path) -> None:
    samples = samples_of(tmp_path)
    whole, image_index = survey(samples, None), ImageIndex(tmp_path / "cache")
    READS.clear()
    shares = [survey(samples, image_index, rank=rank, num_processes=3) for rank in range(3)]
    assert len(READS) == len(set(READS)) == len(samples) - 1  # the repeat is read by one of them only
    assert sum(map(len, shares)) == len(samples)
    assert {key: outcome for share in shares for key, outcome in share.items()} == whole
    assert [len(survey(samples[:1], None, rank=rank, num_processes=2)) for rank in range(2)] == [1, 0]


def test_truncated_exif_data_is_accepted_without_a_warning(tmp_path: Path) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x09\0\x12\x01"  # announces nine entries, none of them complete
    Image.new("RGB", (6, 2)).save(tmp_path / "a.jpg", exif=exif, dpi=(72, 72))
    outcome = survey([Sample("a.jpg", FileImage(tmp_path / "a.jpg"), ("x",))], None)["a.jpg"]
    assert isinstance(outcome, ImageInfo)
    assert (outcome.width, outcome.height) == (6, 2)


def test_progress_is_reported(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    survey(samples_of(tmp_path), None, on_progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 8) for done in range(1, 9)]


def test_a_mask_is_decoded_and_has_the_size_of_its_image(tmp_path: Path) -> None:
    whole = sample(tmp_path / "a.png", png())
    masks = {"good": png(1), "small": png(255, size=(2, 2)), "broken": png()[:-30], "black": png()}
    samples = [
        replace(whole, sample_id=name, loss_mask=sample(tmp_path / f"mask-{name}.png", data).image)
        for name, data in masks.items()
    ]
    found = survey([*samples, replace(whole, sample_id="alpha", loss_mask=AlphaMask(whole.image))], None)
    assert found["good"] == found["alpha"] == survey([whole], None)["a.png"]
    assert "mask-small.png: the mask is 2 x 2, its image 4 x 3" in found["small"].reason
    assert "mask-broken.png: not an image" in found["broken"].reason
    assert (
        "mask-black.png: black everywhere, so nothing of the image would count: fix it"
        in found["black"].reason
    )


def test_a_fully_transparent_image_is_refused_with_an_alpha_mask(tmp_path: Path) -> None:
    clear, image_index = tmp_path / "clear.png", ImageIndex(tmp_path / "cache")
    Image.new("RGBA", (4, 3), (255, 0, 0, 0)).save(clear)
    image = FileImage(clear)
    samples = [Sample("plain", image, ("x",)), Sample("clear", image, ("x",), loss_mask=AlphaMask(image))]
    for _ in range(2):  # the second time from the index
        found = survey(samples, image_index)
        assert isinstance(found["plain"], ImageInfo)
        assert isinstance(found["clear"], Refusal)
        assert f"transparency of {clear}: transparent everywhere" in found["clear"].reason


def bad(number: int) -> list[Refusal]:
    return [Refusal(str(index), f"image {index}: broken: fix it") for index in range(number)]


def test_a_few_bad_samples_are_accepted() -> None:
    check_bad_fraction(100, bad(29), 0.29)
    check_bad_fraction(0, [], 0.05)
    check_bad_fraction(5, bad(5), 1.0)


def test_many_bad_samples_stop_the_run_and_ten_are_named() -> None:
    with pytest.raises(
        UserError, match=r"^6 of 100 samples are bad, more than max_bad_fraction 0\.05"
    ) as error:
        check_bad_fraction(100, bad(6), 0.05)
    assert all(refusal.reason in str(error.value) for refusal in bad(6))
    with pytest.raises(UserError) as error:
        check_bad_fraction(100, [twice for refusal in bad(12) for twice in (refusal, refusal)], 0.2)
    assert [f"image {index}:" in str(error.value) for index in range(12)] == [True] * 10 + [False] * 2
    assert str(error.value).count("image 9:") == 1
    with pytest.raises(UserError, match="1 of 1000"):
        check_bad_fraction(1000, bad(1), 0.0)
