"""The data report: no sample is missing, problems are listed, and the page is safe to open."""

import hashlib
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from ldm.data.buckets import BucketSettings, Placement, place
from ldm.data.duplicates import perceptual_hash
from ldm.data.report import page as report_page
from ldm.data.report.contents import DataReport
from ldm.data.report.report import check_report_folder, make_report, write_report
from ldm.data.sample import FileImage, ImageInfo, Refusal, Sample
from ldm.data.sources.reading import Reading
from ldm.errors import UserError
from ldm.io.images import open_image_noted

EVIL = '<script>alert("1")</script><img src=x onerror=alert(2)>&amp;\'"'


def picture(path: Path, seed: int, size: tuple[int, int] = (40, 32)) -> Path:
    """An image unlike any other in these tests."""
    image = Image.new("RGB", size, ["red", "lime", "blue", "white", "black", "yellow"][seed % 6])
    draw = ImageDraw.Draw(image)
    draw.rectangle((2 + 3 * seed, 4, 9 + 3 * seed, 20), "teal")
    draw.ellipse((5, 2 * seed, 20, 9 + 2 * seed), "orange")
    image.save(path)
    return path


def sample(path: Path, *captions: str, sample_id: str = "", **extra: object) -> Sample:
    return Sample(sample_id or path.name, FileImage(path), captions or ("a thing",), extra=dict(extra))


def facts_of(samples: list[Sample]) -> dict[str, ImageInfo | Refusal]:
    found: dict[str, ImageInfo | Refusal] = {}
    for one in samples:
        try:
            image, notes = open_image_noted(one.image.read(), name=one.image.name)
        except UserError as error:
            found[one.sample_id] = Refusal(one.sample_id, str(error))
            continue
        content_hash = hashlib.sha256(one.image.read()).hexdigest()
        found[one.sample_id] = ImageInfo(content_hash, *image.size, perceptual_hash(image), tuple(notes))
    return found


def report_of(samples: list[Sample], *refusals: Refusal, **more: object) -> DataReport:
    return make_report(Reading(samples, list(refusals)), facts_of(samples), **more)  # type: ignore[arg-type]


def placed(samples: list[Sample], settings: BucketSettings, size: int) -> dict[str, Placement | str]:
    return {
        sample_id: place(
            found.width,
            found.height,
            height=size,
            width=size,
            multiple=8,
            settings=settings,
            seed=0,
            sample_id=sample_id,
        )
        for sample_id, found in facts_of(samples).items()
        if isinstance(found, ImageInfo)
    }


# Nothing is dropped silently


def test_every_sample_found_has_an_entry(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(picture(tmp_path / "0.png", 0).read_bytes()[:80])
    small, large = picture(tmp_path / "s.png", 1, (12, 40)), picture(tmp_path / "l.png", 2, (80, 41))
    samples = [sample(path) for path in (large, tmp_path / "broken.png", small)]
    placements = placed(samples, BucketSettings(), 16)
    report = report_of(samples, Refusal("row 9", "row 9: no caption"), placements=placements)
    assert (report.num_found, report.num_used, report.num_refused) == (4, 1, 3)
    used, broken, too_small, row = report.samples
    assert (used.sample_id, used.used, used.reason, used.width, used.height) == ("l.png", True, "", 80, 41)
    assert (used.bucket, used.scaled, used.crops) == ("16 x 16", "31 x 16", ((0, 7),))
    assert (broken.sample_id, broken.used, broken.width) == ("broken.png", False, None)
    assert str(tmp_path / "broken.png") in broken.reason
    assert (too_small.used, too_small.width, too_small.bucket) == (False, 12, None)
    assert "12 x 40 pixels" in too_small.reason
    assert (row.sample_id, row.used, row.reason) == ("row 9", False, "row 9: no caption")


def test_a_sample_without_facts_or_placement_is_an_error(tmp_path: Path) -> None:
    samples = [sample(picture(tmp_path / "a.png", 0))]
    with pytest.raises(KeyError, match=r"a\.png"):
        make_report(Reading(samples, []), {})
    with pytest.raises(KeyError, match=r"a\.png"):
        make_report(Reading(samples, []), facts_of(samples), {})


def test_a_report_on_no_samples(tmp_path: Path) -> None:
    report = report_of([], count_tokens=len, context_length=4)
    assert (report.num_found, report.captions.num_captions, report.buckets) == (0, 0, {})
    write_report(report, tmp_path, [])
    check_report_folder(tmp_path)  # it may be written again
    assert json.loads((tmp_path / "data_report.json").read_text())["num_found"] == 0


# Problems


def test_repeats_are_not_duplicates(tmp_path: Path) -> None:
    first, other = picture(tmp_path / "a.png", 0), picture(tmp_path / "z.png", 1)
    copy, again = tmp_path / "b.png", tmp_path / "c.jpg"
    copy.write_bytes(first.read_bytes())
    Image.open(first).save(again, quality=95)
    samples = [sample(path) for path in (first, copy, again, other)]
    samples += [sample(first, sample_id="a.png#2"), sample(copy, sample_id="z.png#2")]
    report = report_of(samples)
    assert report.exact_duplicates == [["a.png", "b.png", "z.png#2"]]  # z.png#2 is not a repeat of z.png
    assert report.near_duplicates == [["a.png", "c.jpg"]]
    assert report.num_repeats == 1


def test_a_refused_image_is_not_a_duplicate(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 0)
    samples = [sample(path), sample(path, sample_id="again")]
    assert report_of(samples).exact_duplicates == [["a.png", "again"]]
    report = report_of(samples, placements={"a.png": Placement(8, 8, 8, 10), "again": "too small"})
    assert (report.exact_duplicates, report.near_duplicates) == ([], [])


def count_words(caption: str) -> int:
    return len(caption.split()) + 2


def test_captions_against_the_context(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 0)
    samples = [
        sample(path, "one", "one two three", sample_id="a"),
        sample(path, "one", "one two three four", sample_id="b"),
    ]
    report = report_of(samples, count_tokens=count_words, context_length=5)
    captions = report.captions
    assert (captions.num_captions, captions.num_different, captions.unit) == (4, 3, "tokens")
    assert captions.lengths == [(3, 2), (5, 1), (6, 1)]
    assert [(one.sample_id, one.num_tokens) for one in captions.truncated] == [("b", 6)]
    assert [outcome.num_tokens for outcome in report.samples] == [5, 6]
    cut = report_of(samples, count_tokens=count_words, context_length=4).captions.truncated
    assert [one.sample_id for one in cut] == ["b", "a"]  # the longest first
    letters = report_of(samples).captions
    assert (letters.unit, letters.context_length, letters.truncated) == ("letters", None, [])
    assert letters.lengths == [(3, 2), (13, 1), (18, 1)]


def test_buckets_sizes_notes_and_licences(tmp_path: Path) -> None:
    wide, tall = picture(tmp_path / "w.png", 0, (64, 32)), picture(tmp_path / "t.png", 1, (32, 64))
    frames = tmp_path / "f.gif"
    Image.open(wide).save(frames, save_all=True, append_images=[Image.new("RGB", (64, 32), "red")])
    samples = [
        sample(wide, License="CC0", author="A"),
        sample(tall, License="", licence_url="x", Author=None),
        sample(frames, colour="red", author="B"),
    ]
    report = report_of(samples, placements=placed(samples, BucketSettings(buckets=True), 32))
    assert report.buckets == {"24 x 40": 1, "40 x 24": 2}
    assert report.sizes == {"64 x 32": 2, "32 x 64": 1}
    assert report.notes == {"animated: first of 2 frames used": ["f.gif"]}
    assert report.licences.fields == {
        "License": {"CC0": 1},
        "author": {"A": 1, "B": 1},
        "licence_url": {"x": 1},
    }
    assert report.licences.num_without == 1


# The files


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text outside of <style>."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(report: DataReport, folder: Path, samples: list[Sample]) -> Elements:
    return Elements(write_report(report, folder, samples)[1].read_text(encoding="utf-8"))


def test_the_page_escapes_what_comes_from_the_data(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 0)
    Image.open(path).save(tmp_path / "a.jpg", quality=95)
    samples = [
        sample(path, EVIL, sample_id=EVIL, **{"licence" + EVIL: EVIL}),
        sample(tmp_path / "a.jpg", EVIL),
    ]
    samples.append(sample(path, EVIL, sample_id="copy"))
    facts = {id_: replace(found, notes=(EVIL,)) for id_, found in facts_of(samples).items()}  # type: ignore[type-var]
    reading = Reading(samples, [Refusal(EVIL, EVIL)])
    report = make_report(reading, facts, None, count_words, 2)  # type: ignore[arg-type]
    assert report.exact_duplicates and report.near_duplicates and report.captions.truncated
    page = page_of(report, tmp_path / "report", samples)
    assert page.text.count(EVIL) >= 9
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, _ in page.tags)
    attributes = [(name, value or "") for _, found in page.tags for name, value in found.items()]
    assert not [name for name, _ in attributes if name.startswith("on")]
    sources = [value for name, value in attributes if name in ("src", "href", "srcset")]
    assert sources and all(value.startswith("data:image/jpeg;base64,") for value in sources)
    policy = [found["content"] for tag, found in page.tags if "http-equiv" in found]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_the_page_shows_a_limited_number_of_images_and_counts_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_page, "MAX_THUMBNAILS", 5)
    monkeypatch.setattr(report_page, "MAX_ROWS", 2)
    samples = [sample(picture(tmp_path / f"{index}.png", index)) for index in range(9)]
    refusals = [Refusal(f"row {index}", "no caption") for index in range(4)]
    page = page_of(report_of(samples, *refusals), tmp_path / "report", samples)
    assert sum(tag == "img" for tag, _ in page.tags) == 5
    shown = [name for name in (f"{index}.png" for index in range(9)) if name in page.text]
    assert shown == ["0.png", "1.png", "3.png", "5.png", "7.png"]
    assert "4 more used samples in data_report.json" in page.text
    samples.append(sample(tmp_path / "4.png", sample_id="copy"))
    page = page_of(report_of(samples, *refusals), tmp_path / "report", samples)
    assert sum(tag == "img" for tag, _ in page.tags) == 5  # two of them in the group of duplicates
    assert "row 1" in page.text and "row 2" not in page.text
    assert "2 more lines in data_report.json" in page.text


def test_the_page_frames_what_is_trained_on(tmp_path: Path) -> None:
    samples = [sample(picture(tmp_path / "a.png", 0)), sample(picture(tmp_path / "b.png", 1))]
    cut = Placement(24, 24, 24, 48, ((0, 12), (0, 3)))
    placements = {"a.png": cut, "b.png": Placement(32, 40, 32, 40, ((0, 0),))}
    page = page_of(report_of(samples, placements=placements), tmp_path / "report", samples)
    (style,) = [found["style"] for _, found in page.tags if found.get("class") == "crop"]
    assert style == "left:25.00%;top:0.00%;width:50.00%;height:100.00%"


def test_the_json_has_every_sample(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 0)
    samples = [sample(path, "a猫 \ud800"), sample(path, sample_id="again")]
    report = report_of(samples, Refusal("x", "gone"), count_tokens=count_words, context_length=3)
    write_report(report, tmp_path / "report", samples)
    value = json.loads((tmp_path / "report" / "data_report.json").read_bytes())
    assert [outcome["sample_id"] for outcome in value["samples"]] == ["a.png", "again", "x"]
    assert value["num_found"] == value["num_used"] + value["num_refused"] == 3
    assert value["captions"]["truncated"][0]["caption"] == "a猫 \ud800"
    assert value["exact_duplicates"] == [["a.png", "again"]]


def test_the_page_is_complete_when_an_image_is_gone(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 0)
    samples = [sample(path)]
    report = report_of(samples)
    path.unlink()
    page = page_of(report, tmp_path / "report", samples)
    assert "No such file" in page.text
    assert "img" not in {tag for tag, _ in page.tags}


def test_the_page_shows_the_further_images_of_a_sample_with_the_same_crop(tmp_path: Path) -> None:
    main, source = picture(tmp_path / "a.png", 0), picture(tmp_path / "s.png", 1)
    gone = FileImage(tmp_path / "gone.png")
    samples = [replace(sample(main), images={"source": FileImage(source), "mask": gone})]
    placements = {"a.png": Placement(24, 24, 24, 48, ((0, 12),))}
    report = report_of(samples, placements=placements)
    page = page_of(report, tmp_path / "report", samples)
    assert [found["alt"] for tag, found in page.tags if tag == "img"] == ["", "source"]
    assert len([found["style"] for _, found in page.tags if found.get("class") == "crop"]) == 2
    assert "gone.png: No such file" in page.text


@pytest.mark.parametrize("name", ["data_report.json", "data_report.html"])
def test_only_reports_are_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(UserError, match=f"{name} exists already"):
        check_report_folder(tmp_path)
    assert (tmp_path / name).read_text() == '{"mine": 1}'
