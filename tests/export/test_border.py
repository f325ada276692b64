"""What leaves in an export has no private text in any of its files."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from ldm.errors import LdmWarning, UserError
from ldm.export.artefact import export
from ldm.export.border import clean_folder
from ldm.export.card.samples import SampleImage, write_samples
from ldm.export.export_options import ExportOptions
from ldm.export.export_source import ExportSource, load_source
from ldm.export.hub.leaks import scan
from ldm.export.hub.outgoing import OutgoingFile, list_outgoing
from ldm.export.model_files import is_vocabulary
from ldm.export.verify import compare, readers
from ldm.io.files import write_json, write_tensors
from ldm.io.image_metadata import read_metadata
from ldm.io.png import read_texts, write_chunks
from ldm.io.redaction import public_file_name, public_text
from ldm.io.safetensors_header import read_header
from ldm.pipeline.record import ImageRecord, encode_with_record, read_record, write_png
from ldm.provenance.marks import EDITED, MADE, source_type_in
from tests.support.tiny_card import make_run

TOKEN = "hf_" + "aB3" * 11
USER, HOST = "alice", "tower-7"
PLANTED = (
    f"{TOKEN} and swordfish-swordfish of {USER} on {HOST}, in /home/{USER}/photos, mail {USER}@example.org"
)
CLEANED = "<secret> and <secret> of <name> on <name>, in photos, mail <e-mail>"
PRIVATE = re.compile(f"{TOKEN}|swordfish|{USER}|{HOST}|/home/|@example", re.IGNORECASE)


@pytest.fixture(autouse=True)
def somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user alice on the computer tower-7, with a secret in the environment."""
    monkeypatch.setattr("socket.gethostname", lambda: HOST)
    monkeypatch.setattr("getpass.getuser", lambda: USER)
    monkeypatch.setenv("SERVICE_PASSWORD", "swordfish-swordfish")


def record(**changes: Any) -> ImageRecord:
    return ImageRecord(prompt=PLANTED, seed=1, model_id="m", **changes)


def write_everything(folder: Path) -> None:
    """One file of each kind, with private text in every place that text can have."""
    for name in ("samples", "unet", "tokenizer"):
        (folder / name).mkdir(parents=True)
    origin = {"model_id": PLANTED, "weights_hash": "0" * 64, "deep": [{"note": PLANTED}]}
    write_json(folder / "export.json", {"source": origin, "format": "diffusers"})
    write_json(folder / "ldm.json", {"defaults": {"scheduler": "ddim"}, "provenance": {"source": PLANTED}})
    config = {"act_fn": "silu", "_name_or_path": USER, "note": f"see /home/{USER}/x", "in_channels": 4}
    write_json(folder / "unet" / "config.json", config)
    write_json(folder / "tokenizer" / "vocab.json", {"alice": 0, "tower": 1})
    metadata = {"format": "pt", "modelspec.title": PLANTED, "ss_args": json.dumps({"path": [PLANTED]})}
    write_tensors(folder / "model.safetensors", {"w": torch.ones(3)}, metadata)
    write_png(folder / "samples" / "01.png", Image.new("RGB", (8, 8), "red"), record())
    write_chunks(folder / "samples" / "02.png", Image.new("RGB", (8, 8)), {"Comment": PLANTED})
    (folder / "README.md").write_text(f"# A model\nby {TOKEN} from /home/{USER}/photos\n")


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}


def test_every_text_of_an_export_is_cleaned(tmp_path: Path) -> None:
    write_everything(tmp_path)
    assert len(clean_folder(tmp_path)) == 7
    found = all_bytes(tmp_path)
    vocabulary = found.pop("tokenizer/vocab.json")
    assert json.loads(vocabulary) == {"alice": 0, "tower": 1}
    for name, data in found.items():
        text = (
            " ".join(read_texts(tmp_path / name).values()) if name.endswith("png") else data.decode("latin-1")
        )
        assert not PRIVATE.search(text), name
    with pytest.warns(LdmWarning, match="private text was removed from its prompt"):
        made = read_record(tmp_path / "samples" / "01.png")
    assert (made.prompt, made.seed, made.settings.recorded()) == (CLEANED, 1, record().settings.recorded())
    assert read_texts(tmp_path / "samples" / "01.png")["parameters"].startswith(CLEANED)
    metadata = read_header(tmp_path / "model.safetensors").metadata
    assert metadata == {
        "format": "pt",
        "modelspec.title": CLEANED,
        "ss_args": json.dumps({"path": [CLEANED]}),
    }
    assert json.loads(found["unet/config.json"]) == {"act_fn": "silu", "note": "see <path>", "in_channels": 4}
    assert json.loads(found["ldm.json"])["defaults"] == {"scheduler": "ddim"}


def test_pixels_and_numbers_are_not_touched(tmp_path: Path) -> None:
    write_everything(tmp_path)
    before = Image.open(tmp_path / "samples" / "01.png").tobytes()
    clean_folder(tmp_path)
    assert Image.open(tmp_path / "samples" / "01.png").tobytes() == before
    assert all_bytes(tmp_path)["model.safetensors"].endswith(torch.ones(3).numpy().tobytes())


def test_the_marks_of_an_image_are_read_after_cleaning(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for model in (f"{USER}-model", "model"):
        private = {**record().to_json(), "model_id": model}
        write_png(path, Image.new("RGB", (8, 8)), private, overwrite=True)
        clean_folder(tmp_path)
        properties = read_metadata(path).properties
        assert source_type_in(read_metadata(path)) == MADE
        assert properties["Iptc4xmpExt:AISystemUsed"] == model.replace(USER, "<name>")


def test_every_image_of_a_card_is_marked(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), "red")
    samples = [SampleImage("a", image), SampleImage("b", image, record().to_json(), given=image)]
    for shown, grid_kind in ((samples, EDITED), (samples[:1] * 2, MADE)):
        write_samples(tmp_path, shown)
        assert source_type_in(read_metadata(tmp_path / "samples/01.png")) == MADE
        assert source_type_in(read_metadata(tmp_path / "samples/grid.png")) == grid_kind


def test_an_export_without_anything_private_keeps_its_bytes(tmp_path: Path) -> None:
    write_everything(tmp_path)
    clean_folder(tmp_path)
    before = all_bytes(tmp_path)
    assert clean_folder(tmp_path) == []
    assert all_bytes(tmp_path) == before


def test_what_cannot_be_cleaned_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    write_json(tmp_path / "tokenizer" / "added_tokens.json", {TOKEN: 0})
    with pytest.raises(UserError, match=r"tokenizer/added_tokens.json \(line 2\): a token, hf_a..."):
        clean_folder(tmp_path)
    (tmp_path / "tokenizer" / "added_tokens.json").unlink()
    write_tensors(tmp_path / "model.safetensors", {f"/home/{USER}/w": torch.ones(1)})
    with pytest.raises(UserError, match=r"model.safetensors \(header\): an absolute path"):
        clean_folder(tmp_path)


def test_the_name_of_the_repository_is_public(tmp_path: Path) -> None:
    write_json(tmp_path / "export.json", {"source": {"model_id": "alice-style on tower-7"}})
    clean_folder(tmp_path, repo_id="alice/style")
    assert json.loads((tmp_path / "export.json").read_text())["source"] == {
        "model_id": "alice-style on <name>"
    }


def leaks_in(path: Path) -> list[str]:
    return [str(leak) for leak in scan([OutgoingFile(path.name, path, path.stat().st_size)])]


def test_a_push_finds_names_in_what_programs_write(tmp_path: Path) -> None:
    kind = "the name of this user or this computer, alice"
    write_png(tmp_path / "a.png", Image.new("RGB", (8, 8)), ImageRecord(prompt="of Alice", seed=0))
    assert leaks_in(tmp_path / "a.png") == [f"a.png (ldm): {kind[:-5]}Alice"]
    for kind_of_file in ("jpeg", "webp"):
        (tmp_path / f"a.{kind_of_file}").write_bytes(
            encode_with_record(Image.new("RGB", (8, 8)), ImageRecord(prompt="of Alice", seed=0), kind_of_file)  # type: ignore[arg-type]
        )
        assert leaks_in(tmp_path / f"a.{kind_of_file}") == [f"a.{kind_of_file} (record): {kind[:-5]}Alice"]
    write_tensors(tmp_path / "a.safetensors", {"w": torch.ones(1)}, {"ss_output_name": "alice-1"})
    assert leaks_in(tmp_path / "a.safetensors") == [f"a.safetensors (ss_output_name): {kind}"]
    write_json(tmp_path / "ldm.json", {"provenance": {"run": "alice_run"}})
    assert leaks_in(tmp_path / "ldm.json") == [f"ldm.json (record): {kind}"]
    (tmp_path / "README.md").write_text("A model by Alice.")  # who signs a card wants to be read
    assert leaks_in(tmp_path / "README.md") == []


def test_a_push_looks_at_file_names_and_unknown_segments(tmp_path: Path) -> None:
    write_tensors(tmp_path / f"my_{TOKEN}.safetensors", {"w": torch.ones(1)})
    (leak,) = leaks_in(tmp_path / f"my_{TOKEN}.safetensors")
    assert "its name" in leak and "a token, hf_a..." in leak
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with (tmp_path / "a.png").open("ab") as file:
        file.write(f"after the image: {TOKEN}".encode())
    assert leaks_in(tmp_path / "a.png") == ["a.png (image): a token, hf_a..."]


def test_the_name_of_a_model_in_an_image_is_public(tmp_path: Path) -> None:
    names = {
        f"{USER}-model": "name-model",
        f"run_{TOKEN}": "run_secret",
        f"{USER}/style": f"{USER}/style",
        "x y": "x y",
    }
    for given, written in names.items():
        record = ImageRecord.from_json(
            {"model_id": given, "loras": [{"name": f"on-{HOST}", "sha256": "0", "weight": 1}]}
        )
        write_png(tmp_path / "a.png", Image.new("RGB", (8, 8)), record, overwrite=True)
        found = read_record(tmp_path / "a.png")
        assert (found.model_id, found.loras[0].name) == (written, "on-name")
        assert USER not in read_texts(tmp_path / "a.png")["parameters"] or "/" in given


@pytest.mark.parametrize(
    "text", ["a red apple", "Stable Diffusion 1.5", "alicent", "https://example.org/a/b"]
)
def test_ordinary_text_stays(text: str) -> None:
    assert public_text(text) == text == public_file_name(text)


def test_nothing_in_a_public_text_is_refused_by_a_push(tmp_path: Path) -> None:
    for text in (
        "file:///srv/x",
        "https://example.org?dir=/home/bob/x",
        "C:\\Users\\bob",
        '{"log": "a\\n/home/bob"}',
    ):
        (tmp_path / "README.md").write_text(public_text(text))
        assert leaks_in(tmp_path / "README.md") == [], text


def read_alone(source: ExportSource, task: Path) -> None:
    """The reader, in this process; by then the writer has freed the model."""
    assert all(weight.is_meta for weight in source.parts.denoiser.parameters())
    readers.main([str(task)])


@pytest.mark.filterwarnings("ignore:the prompt is too long")
@pytest.mark.parametrize("format", ["lora-kohya", "diffusers"])
def test_nothing_that_was_planted_in_a_run_leaves_with_its_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """In the names of the run and of the export, in the prompts of its previews, and in the title."""
    run = make_run(tmp_path).rename(tmp_path / "runs" / f"{USER}_{TOKEN}")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings |= {"preview": {"prompts": [PLANTED, "a red apple"]}, "run_dir": str(run)}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    dest, source = tmp_path / f"{USER}-{HOST}", load_source(run)
    monkeypatch.setattr(compare, "_run", lambda task, _: read_alone(source, task))
    export(source, dest, ExportOptions(format=format, num_samples=2, title=f"by {USER}"))
    if format == "lora-kohya":
        assert read_header(dest / "name-name.safetensors").metadata["ss_output_name"] == "by <name>"
    for name, data in all_bytes(dest).items():
        text = data.decode("latin-1") if not name.endswith("png") else str(read_texts(dest / name))
        assert is_vocabulary(name) or not PRIVATE.search(text), name
        assert str(tmp_path) not in text, name
    assert list_outgoing(dest).files and scan(list_outgoing(dest).files) == []


def test_a_password_that_is_a_word_is_not_found_in_a_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_PASSWORD", "password")
    (tmp_path / "tokenizer").mkdir()
    write_json(tmp_path / "tokenizer" / "vocab.json", {"password": 0})
    assert clean_folder(tmp_path) == []
