"""The model card as text: it renders, its examples run, and text from elsewhere is shown literally."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from jinja2 import UndefinedError
from markdown_it import MarkdownIt
from PIL import Image, ImageCms

from ldm.demos.emoji_card import emoji_card, emoji_edit_card, emoji_fast_card
from ldm.export.card.markdown import code, escaped, fenced, render
from ldm.export.card.samples import SampleImage, draw_samples, write_samples
from ldm.export.card.source_card import read_source_card
from ldm.export.export_source import load_source
from ldm.models.adapters.lora_files import write_lora_diffusers, write_lora_peft
from ldm.models.loading.model import save_parts
from ldm.pipeline.pipeline import Pipeline
from ldm.pipeline.record import read_settings
from tests.support.tiny_card import card_of, make_run, sample_image, section, whole_model
from tests.support.tiny_single_file import make_narrow_sd2

ROOT = Path(__file__).parents[2]
HOSTILE = (
    "</details><script>alert(1)</script> | `*x*` ![a](b) [c](d) --- $x$ &amp; \n# no heading\n\n- no list"
)


class Page(HTMLParser):
    """The rendered card: its headings, images, elements, and text without markup."""

    def __init__(self, card: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.images: list[str] = []
        self.open: list[str] = []
        self.elements: set[str] = set()
        self.text = ""
        body = card.partition("\n---\n")[2]
        self.feed(MarkdownIt("commonmark").enable("table").render(body))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.images += [value or "" for key, value in attrs if (tag, key) == ("img", "src")]
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)
        self.text += data


def code_of(card: str, language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", section(card, "Use"), re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def test_the_card_of_a_run_renders(tmp_path: Path) -> None:
    samples = [sample_image(), sample_image("a blue square", "blue"), sample_image(HOSTILE, "green")]
    run = make_run(tmp_path)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config + "note: |\n  ```\n  </details> </details>\n  ````\n")
    page = Page(card_of(load_source(run), tmp_path / "out", title=f"T {HOSTILE}", samples=samples))
    assert page.open == []
    assert page.headings[1:] == [
        "Samples", "Use", "Model", "Training", "Data", "Curves", "Measured", "Hashes", "Software", "Licence",
        "Intended use", "Limits and risks",
    ]  # fmt: skip
    assert page.images == ["samples/grid.png", "samples/curves.png"]
    assert all((tmp_path / "out" / name).is_file() for name in page.images)
    assert page.elements == {
        "h1", "h2", "p", "img", "a", "pre", "code", "table", "thead", "tbody", "tr", "th", "td", "details",
        "summary", "ul", "li",
    }  # fmt: skip
    assert page.text.count(" ".join(HOSTILE.split())) == 2  # the title, and the prompt below the images


def rendered(markdown: str) -> str:
    return MarkdownIt("commonmark").enable("table").render(markdown)


def test_text_from_elsewhere_is_shown_literally() -> None:
    assert rendered(escaped("a *b* <c> |")) == "<p>a *b* &lt;c&gt; |</p>\n"
    assert rendered(code("a `` b`")) == "<p><code>a `` b`</code></p>\n"
    assert rendered(fenced("a\n````\nb")) == "<pre><code>a\n````\nb\n</code></pre>\n"


@pytest.mark.parametrize(
    "text", ["- a", "+ a", "1. a", "12) a", "---", "- - -", "===", "-", "# a", "> a", "1.5", "-2"]
)
def test_a_line_of_such_text_is_a_plain_paragraph(text: str) -> None:
    page = rendered(f"above\n{escaped(text)}\n")
    assert page == f"<p>above\n{text.replace('>', '&gt;')}</p>\n"


def test_a_template_escapes_by_default(tmp_path: Path) -> None:
    """Only filters and macros give Markdown; a fact that is missing is an error."""
    lines = [
        "{% macro bold(text) %}**{{ text }}**{% endmacro %}",
        "{{ text }} and {{ bold(text) }}",
        "",
        "| a | b |",
        "|---|---|",
        "| {{ text | code | cell }} | {{ text }} |",
    ]
    (tmp_path / "card.jinja").write_text("\n".join(lines))
    page = rendered(render(tmp_path / "card.jinja", text="*x*|<y>"))
    assert "<p>*x*|&lt;y&gt; and <strong>*x*|&lt;y&gt;</strong></p>" in page
    assert "<td><code>*x*|&lt;y&gt;</code></td>\n<td>*x*|&lt;y&gt;</td>" in page
    with pytest.raises(UndefinedError):
        render(tmp_path / "card.jinja")


def test_the_embedded_models_card_is_made_of_its_reports(tmp_path: Path) -> None:
    put(tmp_path, "emoji-score", "composed-evaluation/report.json")
    put(tmp_path, "emoji-composed-score", "composed-score/report.json")
    put(tmp_path, "evaluation-copies-emoji", "copies/audit.json")
    card = (ROOT / "ldm" / "assets" / "emoji" / "README.md").read_text(encoding="utf-8")
    assert emoji_card(tmp_path, composed=True) == card
    assert Page(card).headings == ["OpenLDM emoji", "Use", "Data", "Measured", "Limits"]


def put(runs: Path, measured: str, place: str) -> None:
    """A report that is kept in the documentation, where the run left it."""
    (runs / place).parent.mkdir(exist_ok=True)
    (runs / place).write_bytes((ROOT / "docs" / "benchmarks" / f"{measured}.json").read_bytes())


def test_the_first_models_card_has_its_parts(tmp_path: Path) -> None:
    share = {"share": 1.0, "low": 0.99, "high": 1.0, "num_judged": 256}
    found = {"num_images": 526, "image_to_text_recall_at_1": 0.94, "text_to_image_recall_at_1": 0.97}
    reports = {
        "autoencoder": {"held_out": {"num_images": 90, "psnr_db": 31.0, "ssim": 0.922}},
        "text_encoder": {"train": found},
        "evaluation": {"recall": {"num_training_images": 526, "top_1": share, "top_5": share}},
    }
    for name, report in reports.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report))
    put(tmp_path, "evaluation-copies-emoji", "copies/audit.json")
    card = emoji_card(tmp_path)
    assert Page(card).headings == ["OpenLDM emoji", "Use", "Data", "Measured", "Limits"]
    assert "| autoencoder, 90 held-out images | PSNR 31.0 dB, SSIM 0.922 |" in card


def test_the_editing_models_card_is_made_of_its_report(tmp_path: Path) -> None:
    put(tmp_path, "emoji-edit", "edit-score/report.json")
    card = (ROOT / "ldm" / "assets" / "emoji-edit" / "README.md").read_text(encoding="utf-8")
    assert emoji_edit_card(tmp_path) == card
    assert Page(card).headings == ["OpenLDM emoji, editing", "Use", "Data", "Measured", "Limits"]


def test_the_card_of_the_fast_adapter_has_its_scenes(tmp_path: Path) -> None:
    share = {"share": 0.85, "low": 0.78, "high": 0.91, "num_judged": 120}
    recall = {"num_training_images": 526, "top_1": share, "top_5": share}
    score = {kind: {"held_out": {"object": share, "all": share}} for kind in ("colour", "count", "pair")}
    for name, report in (("lcm-evaluation", {"recall": recall}), ("lcm-score", score)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report))
    card = emoji_fast_card(tmp_path)
    assert Page(card).headings == ["OpenLDM emoji, four steps", "Use", "Data", "Measured", "Limits"]
    assert (
        "| pairs of objects that never occur in training: all right | 0.85 \\[0.78, 0.91\\] of 120 images |"
        in card
    )
    assert card.count("--model emoji-fast ") == 8 and "--model emoji " not in card


# The examples


def test_the_example_of_a_folder_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = whole_model(tmp_path)
    save_parts(source.parts, tmp_path / "out" / "model", dtype=torch.float16, variant="fp16")
    card = card_of(source, tmp_path / "out" / "model")
    assert 'variant="fp16"' in card and "DPMSolverMultistepScheduler.from_config" in card
    assert code_of(card, "bash") == "ldm generate 'a red apple' --model model\n"
    monkeypatch.chdir(tmp_path / "out")
    exec(code_of(card, "python"), {})
    with Image.open(tmp_path / "out" / "image.png") as image:
        assert image.size == (16, 16)


@pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)  # peft's call of it
@pytest.mark.parametrize("format", ["lora-diffusers", "lora-peft"])
def test_the_example_of_a_lora_runs(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = replace(load_source(make_run(tmp_path)), run=None)
    assert source.lora is not None
    folder = tmp_path / "hands"
    folder.mkdir()
    if format == "lora-peft":
        write_lora_peft(source.lora, folder)
    else:
        write_lora_diffusers(source.lora, folder / "pytorch_lora_weights.safetensors")
    card = card_of(source, folder, format=format)
    monkeypatch.chdir(tmp_path)
    exec(code_of(card, "python"), {})
    assert (tmp_path / "image.png").is_file()
    file = "/pytorch_lora_weights.safetensors" if format == "lora-diffusers" else ""
    assert code_of(card, "bash") == f"ldm generate 'a red apple' --model base-model --lora hands{file}\n"


def test_the_examples_name_the_files_of_each_format(tmp_path: Path) -> None:
    source = load_source(make_run(tmp_path))
    told = {
        format: section(
            card_of(replace(source, run=None), tmp_path / "film", format=format, repo_id="me/art"), "Use"
        )
        for format in ("single-file", "lora-kohya", "openvino", "diffusers")
    }
    assert 'file = hf_hub_download("me/art", "film.safetensors")' in told["single-file"]
    assert "ldm generate 'a red apple' --model film/film.safetensors" in told["single-file"]
    assert 'pipe.load_lora_weights("me/art", weight_name="film.safetensors")' in told["lora-kohya"]
    assert "hf download me/art --local-dir film\n" in told["lora-kohya"]
    assert "ComfyUI" not in told["lora-kohya"]  # which would not load this one, of two levels
    known = replace(source, run=None, parts=make_narrow_sd2())
    card = card_of(known, tmp_path / "known", format="lora-kohya", repo_id="me/art")
    assert "`models/loras` of ComfyUI" in section(card, "Use")
    assert 'OVStableDiffusionPipeline.from_pretrained("me/art")' in told["openvino"]
    assert "ldm generate" not in told["openvino"]
    assert "load_lora_weights" not in told["diffusers"]
    (tmp_path / "film" / "pytorch_lora_weights.safetensors").touch()  # the LoRA kept apart
    apart = section(card_of(replace(source, run=None), tmp_path / "film"), "Use")
    assert 'pipe.load_lora_weights("film", weight_name="pytorch_lora_weights.safetensors")' in apart
    assert "--model film --lora film/pytorch_lora_weights.safetensors" in apart


# Images, and the card that a model came with


def test_the_samples_are_what_the_model_draws(tmp_path: Path) -> None:
    source = load_source(make_run(tmp_path))
    samples = draw_samples(source, 3)
    assert [(one.prompt, (one.settings or {})["seed"]) for one in samples] == [
        ("a red apple", seed) for seed in range(3)
    ]
    again = Pipeline(source.parts).generate("a red apple", seed=2).images[0]
    assert samples[2].image.tobytes() == again.tobytes()
    assert draw_samples(source, 0) == []
    assert [one.prompt for one in draw_samples(whole_model(tmp_path), 2)] == ["a red apple", "a cat"]


def test_an_image_is_written_with_its_settings_and_nothing_else(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8825)[1] = "N"
    exif[0x010E] = "taken at home"
    image = Image.new("RGB", (300, 8), "red")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.save(tmp_path / "camera.png", exif=exif, icc_profile=profile)
    with Image.open(tmp_path / "camera.png") as photo:
        samples = [
            SampleImage("red", photo),
            SampleImage("a red thing", photo, {"prompt": "a red thing", "seed": 3}),
        ]
        names = write_samples(tmp_path, samples)
    assert names == ["samples/01.png", "samples/02.png"]
    assert read_settings(tmp_path / names[1])["seed"] == 3
    for name in (*names, "samples/grid.png"):
        with Image.open(tmp_path / name) as written:
            written.load()
            assert not written.getexif() and written.mode == "RGB"
            if name in names:
                assert written.tobytes() == image.tobytes()
            marks = {"Comment", "XML:com.adobe.xmp", "xmp"}  # that an AI made it; Pillow has the packet twice
            assert set(written.info) <= {"parameters", "ldm", *marks}
            assert "home" not in str(written.info)


def test_the_card_of_a_converted_model_quotes_its_own_card(tmp_path: Path) -> None:
    source = whole_model(tmp_path)
    own = [
        "---", "license: cc-by-4.0", "---", "# Plain", "", "![chart](images/chart.png) of /home/x/plain", "## Data", "",
        "```bash", "# a comment", "ls", "```", "## Limits", "~~~", "## code left open",
    ]  # fmt: skip
    (source.folder / "README.md").write_text("\n".join(own))
    card = card_of(source, tmp_path / "out", licence=None)
    assert "license: cc-by-4.0\n" in card
    assert card.partition("\n## The card of `plain`\n\n")[2] == (
        "### Plain\n\nchart of plain\n#### Data\n\n```bash\n# a comment\nls\n```\n#### Limits\n~~~\n"
        "## code left open\n~~~\n"
    )
    assert "the text of its own card below" in section(card, "Limits and risks")


@pytest.mark.parametrize(
    ("text", "licence", "body"),
    [
        ("---\nlicense: other\nlicense_name: mine\n---\nx", "mine", "x"),
        ("---\nlicense: [mit]\n---\nx", None, "x"),
        ("---\na: !!python/object/apply:os.system [x]\n---\nx", None, "x"),
        ("no front matter\n---\nlicense: mit\n---\n", None, "no front matter\n---\nlicense: mit\n---"),
    ],
)
def test_any_card_can_be_read(text: str, licence: str | None, body: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    card = read_source_card(tmp_path)
    assert card is not None
    assert (card.licence, card.quoted()) == (licence, body)


def test_an_unreadable_card_is_ignored(tmp_path: Path) -> None:
    assert read_source_card(tmp_path) is None
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    assert read_source_card(tmp_path) is None
