"""The training programs: which one a configuration names, where it lies, and the configurations shipped.

In a checkout the programs are `train/` beside `ldm/`, the configurations `configs/`; an installed package
calls them `ldm_train` and `ldm_train/configs`.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ldm
from ldm.errors import UserError, nearest, unknown_name

PROGRAMS = ("autoencoder", "text_encoder", "denoiser")


@dataclass(frozen=True)
class Home:
    """Where the training programs are.

    Attributes:
        root: the folder that holds the package.
        package: "train" or "ldm_train".
        configs: the folder of the configurations that come along.
    """

    root: Path
    package: str
    configs: Path

    def environment(self, current: Mapping[str, str]) -> dict[str, str]:
        """The environment that a program needs: its package is found, the user's own `train.py` is not."""
        search = [current["PYTHONPATH"]] if current.get("PYTHONPATH") else []
        if self.package == "train":  # an installed one is found anyway
            search.insert(0, str(self.root))
        return {**current, "PYTHONPATH": os.pathsep.join(search), "PYTHONSAFEPATH": "1"}


def find_home(package_dir: Path = Path(ldm.__file__).parent) -> Home:
    """Where the training programs are that belong to this `ldm`.

    Raises:
        UserError: they are not there.
    """
    root = package_dir.resolve().parent
    if (root / "ldm_train" / "denoiser.py").is_file():
        return Home(root, "ldm_train", root / "ldm_train" / "configs")
    if (root / "train" / "denoiser.py").is_file():
        return Home(root, "train", root / "configs")
    raise UserError(
        f"the training programs are not in {root}", "install the package again, or use a checkout"
    )


def find_config(name: str, home: Home) -> Path:
    """A configuration: a file, or the name of one that comes along, such as `emoji/denoiser`.

    Raises:
        UserError: there is neither; the message gives the nearest name.
    """
    if Path(name).is_file():
        return Path(name)
    known = shipped_configs(home)
    if name.removesuffix(".yaml") in known:
        return home.configs / f"{name.removesuffix('.yaml')}.yaml"
    guess = nearest(name, known)
    hint = f"did you mean {guess!r}? " if guess else ""
    raise UserError(f"no configuration {name!r}", f"{hint}give a YAML file or one of {', '.join(known)}")


def shipped_configs(home: Home) -> list[str]:
    """The names of the configurations that come along; those of Accelerate's launcher are none."""
    return sorted(
        path.relative_to(home.configs).with_suffix("").as_posix()
        for path in home.configs.rglob("*.yaml")
        if path.parent.name != "accelerate"
    )


def program_of(config: Path, overrides: Sequence[str]) -> str:
    """The program that a configuration names under `program:`.

    Raises:
        UserError: it names none, or one that there is not.
    """
    from ldm.config import read_yaml

    given = [
        text.partition("=")[2].strip() for text in overrides if text.partition("=")[0].strip() == "program"
    ]
    program = given[-1] if given else read_yaml(config).get("program")
    if program is None:
        raise UserError(f"{config} has no `program:`", f"write program: {' or '.join(PROGRAMS)}")
    if program not in PROGRAMS:
        raise unknown_name(f"program in {config}:", str(program), PROGRAMS)
    return str(program)
