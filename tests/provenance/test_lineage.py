"""From an image back to the training data: each step is found by the hash that the later one names."""

from pathlib import Path

import pytest

from ldm.data.fingerprint import Fingerprint
from ldm.io.files import write_bytes, write_json, write_manifest
from ldm.models.loading.folder import weights_hash
from ldm.models.loading.source import EMBEDDED
from ldm.provenance.lineage import lineage
from train.run.checkpoints import origin_of


def model(folder: Path, weights: bytes, **files: object) -> str:
    """A folder that has what the hash of a model is made of; returns the hash."""
    write_json(folder / "model_index.json", {"unet": ["diffusers", "UNet2DConditionModel"]})
    for part in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        write_bytes(folder / f"{part}.safetensors", weights)
    for name, tree in files.items():
        write_json(folder / f"{name}.json", tree)
    return weights_hash(folder)


@pytest.fixture
def chain(tmp_path: Path) -> dict[str, str]:
    """A run with a checkpoint, and an export of its model, far from each other."""
    checkpoint = tmp_path / "runs/photos/checkpoints/step-000003"
    data = Fingerprint({"a.png": "0" * 32, "b.png": "1" * 32})
    write_bytes(checkpoint / "average.safetensors", b"average")
    write_bytes(checkpoint / "data.json", data.encoded)
    write_manifest(checkpoint)
    origin = origin_of(checkpoint)
    assert origin["data_hash"] == data.hash
    trained = model(tmp_path / "runs/photos/pipeline", b"trained", ldm={"provenance": origin})
    exported = model(tmp_path / "out/model", b"half", export={"source": {"weights_hash": trained}})
    return {"exported": exported, "trained": trained, **origin}


def test_the_whole_way(tmp_path: Path, chain: dict[str, str]) -> None:
    steps = lineage(chain["exported"], [tmp_path])
    run = tmp_path / "runs/photos"
    assert [(step.kind, step.hash, step.place) for step in steps] == [
        ("model", chain["exported"], tmp_path / "out/model"),
        ("model", chain["trained"], run / "pipeline"),
        ("checkpoint", chain["checkpoint_hash"], run / "checkpoints/step-000003"),
        ("data", chain["data_hash"], run / "checkpoints/step-000003/data.json"),
    ]
    assert str(steps[-1]).endswith(f"({chain['data_hash'][:10]}, 2 samples)")


def test_what_is_not_at_hand_is_named_by_its_hash(tmp_path: Path, chain: dict[str, str]) -> None:
    steps = lineage(chain["exported"], [tmp_path / "out"])
    assert [(step.hash, step.place is None) for step in steps] == [
        (chain["exported"], False),
        (chain["trained"], True),
    ]
    assert str(steps[1]) == f"model not at hand ({chain['trained'][:10]})"


def test_files_that_changed_are_not_part_of_it(tmp_path: Path, chain: dict[str, str]) -> None:
    (tmp_path / "runs/photos/pipeline/unet/diffusion_pytorch_model.safetensors").write_bytes(b"other")
    assert [step.place is None for step in lineage(chain["exported"], [tmp_path])] == [False, True]


def test_a_changed_data_set_is_not_the_one(tmp_path: Path, chain: dict[str, str]) -> None:
    other = Fingerprint({"a.png": "2" * 32})
    (tmp_path / "runs/photos/checkpoints/step-000003/data.json").write_bytes(other.encoded)
    assert lineage(chain["exported"], [tmp_path])[-1].place is None


def test_models_that_name_each_other_end(tmp_path: Path) -> None:
    first = model(tmp_path / "a", b"a")
    second = model(tmp_path / "b", b"b", export={"source": {"weights_hash": first}})
    write_json(tmp_path / "a/export.json", {"source": {"weights_hash": second}})
    assert [step.hash for step in lineage(first, [tmp_path])] == [first, second]


def test_the_model_that_comes_with_the_program_is_at_hand() -> None:
    place = EMBEDDED["emoji"]
    assert [step.place for step in lineage(weights_hash(place), [])] == [place]


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"source": 3, "provenance": [1]}', '{"source": {"weights_hash": 5}}']
)
def test_records_of_another_shape_lead_nowhere(tmp_path: Path, content: str) -> None:
    found = model(tmp_path / "a", b"a")
    for name in ("export.json", "ldm.json", "adapter.json"):
        (tmp_path / "a" / name).write_text(content)
    assert [step.kind for step in lineage(found, [tmp_path])] == ["model"]
