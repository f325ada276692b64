"""Settings: files, overrides, round trip, and errors that name the key and a hint."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from ldm.config import Settings, all_keys, load_settings, to_yaml, validate
from ldm.errors import SYNONYMS, UserError
from train.autoencoder import AutoencoderSettings
from train.settings.schema import SETTINGS, settings_of


class Inner(Settings):
    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)


class Outer(Settings):
    name: str
    inner: Inner = Inner()
    maybe: Inner | None = None


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: file\ninner: {rate: 1e-4}\n")
    settings = load_settings(Outer, path, ["name=line", "inner.sizes=[3]"])
    assert settings == Outer(name="line", inner=Inner(rate=0.0001, sizes=(3,)))


def test_resolved_settings_survive_a_round_trip(tmp_path: Path) -> None:
    settings = validate(
        AutoencoderSettings,
        {"program": "autoencoder", "run_dir": "runs/é", "num_steps": 300, "data": {"path": "d"}},
    )
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(settings), encoding="utf-8")
    assert load_settings(AutoencoderSettings, path) == settings


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("inner.rat=1", "unknown setting 'inner.rat': did you mean 'rate'?"),
        ("maybe.sises=1", "unknown setting 'maybe.sises': did you mean 'sizes'?"),
        ("zzz=1", "unknown setting 'zzz': valid keys here: name, inner, maybe"),
        ("inner.rate=fast", "inner.rate = 'fast'"),
        ("inner.rate=.nan", "inner.rate = nan"),
        ("name.first=x", "'name' is a value, not a group"),
        ("name", "'name' is not a setting: write key=value"),
        ("inner.sizes=[1", "inner.sizes=[1 cannot be read"),
    ],
)
def test_a_wrong_setting_is_named_with_a_hint(tmp_path: Path, override: str, said: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: file\n")
    with pytest.raises(UserError) as error:
        load_settings(Outer, path, [override])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        (b"name: [1\n", "line 2 is not valid YAML"),
        (b"- 1\n", "contains no settings"),
        (b"\xff\xfe", "cannot be read"),
        (b"inner: {}\n", "setting 'name' is missing"),
    ],
)
def test_a_faulty_file_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "a.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.yaml") as error:
        load_settings(Outer, path)
    assert said in str(error.value)


class Listed(Settings):
    places: tuple[Outer, ...] = ()


def test_a_mistyped_key_in_a_list_of_groups_is_named_before_what_it_leaves_missing() -> None:
    with pytest.raises(UserError) as error:
        validate(Listed, {"places": [{"name": "a"}, {"nme": "b"}]})
    assert "unknown setting 'places.1.nme'" in str(error.value)
    assert "did you mean 'name'?" in str(error.value)


class Deep(Settings):
    num_steps: int = 3
    batch_size: int = 1
    global_batch_size: int = 1
    outer: Outer = Outer(name="a")
    optim: Inner = Inner()
    either: int | tuple[int, ...] = 1
    list: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sizes=1", "did you mean 'optim.sizes'?"),
        ("optim_rate=1", "did you mean 'optim.rate'?"),
        ("steps=1", "did you mean 'num_steps'?"),
        ("optim.steps=1", "did you mean 'num_steps'?"),
        ("batch=1", "did you mean 'global_batch_size'?"),
        ("optim.name=1", "did you mean 'outer.name'?"),
        ("list=[{rat: 1}]", "unknown setting 'list.0.rat': did you mean 'rate'?"),
        ("either=a", "settings: either = 'a'"),
        ("either=[a]", "settings: either ="),
        ("list=[{rate: x}]", "list.0.rate = 'x'"),
        ("steps", "'steps' is not a setting: write key=value, for example num_steps=1000"),
    ],
)
def test_a_hint_names_only_settings_that_exist(override: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        load_settings(Deep, None, [override])
    assert said in str(error.value)


@pytest.mark.parametrize("program", SETTINGS)
def test_what_other_programs_call_a_setting_leads_to_one_that_exists(program: str) -> None:
    """Every synonym, in every group, is answered with the key of a setting, and is not a setting itself."""
    kind = settings_of(program)
    keys = set(all_keys(kind))
    groups = {"", *(key.rpartition(".")[0] for key in keys)}
    tree = {"program": program, "run_dir": "r", "num_steps": 300, "data": {"path": "d"}}
    for group in groups:
        for synonym in SYNONYMS:
            key = f"{group}.{synonym}".removeprefix(".")
            if key in keys or group == "data.sources":
                continue
            hint = hint_for(kind, tree, key)
            if named := re.search("did you mean '(.*)'", hint):
                assert named[1] in keys or f"{group}.{named[1]}" in keys, key


def hint_for(kind: type[Settings], tree: dict[str, Any], key: str) -> str:
    changed = copy.deepcopy(tree)
    *parents, leaf = key.split(".")
    inner = changed
    for parent in parents:
        inner = inner.setdefault(parent, {})
    inner[leaf] = 1
    with pytest.raises(UserError) as error:
        validate(kind, changed)
    return error.value.hint
