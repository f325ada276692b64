"""The files of a folder that may be sent."""

import json
from pathlib import Path

import pytest

from ldm.errors import UserError
from ldm.export.hub.outgoing import list_outgoing
from tests.support.tiny_push import SENT, make_folder


def names(folder: Path) -> list[str]:
    return [file.name for file in list_outgoing(folder).files]


def test_only_files_with_known_names_are_sent(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    for name in (
        "optimizer.safetensors",
        "metadata.jsonl",
        "metrics.jsonl",
        "config.yaml",
        ".env",
        "notes.md",
        "unet/optimizer.bin",
        "unet/optimizer.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/train.py",
        "samples/hidden.png",
        "images/0.png",
        "cache/moments.safetensors",
        ".git/config",
        ".cache/huggingface/x.json",
        "checkpoints/step-1/state.json",
        "checkpoints/step-1/unet/config.json",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    outgoing = list_outgoing(folder)
    assert [file.name for file in outgoing.files] == SENT
    assert outgoing.left_out == (
        ".cache/",
        ".env",
        ".git/",
        "cache/",
        "checkpoints/",
        "config.yaml",
        "images/",
        "metadata.jsonl",
        "metrics.jsonl",
        "notes.md",
        "optimizer.safetensors",
        "samples/hidden.png",
        "unet/diffusion_pytorch_model.bin",
        "unet/optimizer.bin",
        "unet/optimizer.safetensors",
        "unet/train.py",
    )
    assert outgoing.size_bytes == sum((folder / name).stat().st_size for name in SENT)


def test_shards_variants_and_other_formats_are_sent(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    expected = [
        "text_encoder/adapter_model.safetensors",
        "text_encoder/model.fp16.safetensors",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "vae_decoder/openvino_model.bin",
        "vae_decoder/openvino_model.xml",
        "pytorch_lora_weights.safetensors",
        "model.safetensors",
        "other name.safetensors",
    ]
    for name in expected:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    index = {"unet": ["diffusers", "A"], "vae": ["diffusers", "B"], "tokenizer": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    report = {"files": dict.fromkeys(["other name.safetensors", "model.safetensors", "../a.safetensors"])}
    (folder / "export.json").write_text(json.dumps(report))
    assert names(folder) == sorted([*SENT, *expected, "export.json"])


def test_links_and_paths_out_of_the_folder_are_not_sent(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.json").write_text("{}")
    (folder / "LICENSE").symlink_to(tmp_path / "secret.png")
    (folder / "vae").symlink_to(tmp_path / "elsewhere")
    (folder / "README.md").write_text("samples/0.png ../secret.png samples/../../secret.png /secret.png")
    outgoing = list_outgoing(folder)
    assert [file.name for file in outgoing.files] == SENT
    assert outgoing.left_out == ("LICENSE", "vae")


def test_an_incomplete_model_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    with pytest.raises(UserError, match=r"nowhere is not a folder"):
        list_outgoing(tmp_path / "nowhere")
    (folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(UserError, match=r"scheduler has no file to send: the model is incomplete"):
        list_outgoing(folder)
    (folder / "unet" / "openvino_model.xml").write_text("<net/>")
    with pytest.raises(UserError, match=r"openvino_model\.xml has no \.bin file beside it"):
        list_outgoing(folder)
    for path in folder.glob("unet/*"):
        path.unlink()
    with pytest.raises(UserError, match="model has no weights to send"):
        list_outgoing(folder)
    (folder / "state.json").write_text("{}")
    with pytest.raises(UserError, match="is a checkpoint, not a model to send"):
        list_outgoing(folder)


def test_a_run_must_be_exported_first(tmp_path: Path) -> None:
    make_folder(tmp_path / "run" / "pipeline")
    (tmp_path / "run" / "config.yaml").write_text("program: denoiser")
    with pytest.raises(
        UserError, match="is a training run, not a model to send: export it: ldm export RUN DEST"
    ):
        list_outgoing(tmp_path / "run")
    assert names(tmp_path / "run" / "pipeline") == SENT


def test_a_folder_of_the_hub_cache_is_sent_with_its_links(tmp_path: Path) -> None:
    """Every file of a snapshot is a link to `blobs/`; a link to any other place is still left out."""
    made, repository = make_folder(tmp_path / "made"), tmp_path / "models--ann--model"
    folder, blobs = repository / "snapshots" / "0a1b", repository / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(path for path in sorted(made.rglob("*")) if path.is_file()):
        link = folder / path.relative_to(made)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(blobs / str(number))
        link.symlink_to(Path("../" * len(link.relative_to(repository).parts[:-1])) / "blobs" / str(number))
    (tmp_path / "secret.json").write_text("{}")
    (folder / "unet" / "generation_config.json").symlink_to(tmp_path / "secret.json")
    assert names(folder) == SENT


def test_weights_that_are_links_are_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"model\.safetensors is a link to another place.*cp -rL"):
        list_outgoing(folder)
