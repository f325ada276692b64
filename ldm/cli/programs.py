"""The training programs: where they are, which one a configuration names, and the bundled configurations.

In a checkout the programs are in `train/` beside `ldm/` and the configurations in `configs/`; an installed package
has them in `ldm_train` and `ldm_train/configs`.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ldm
from ldm.errors import UserError, nearest, unknown_name


@dataclass(frozen=True)
class Home:
    """Where the training programs are.

    Attributes:
        root: the folder that holds the package.
        package: "train" or "ldm_train".
        configs: the folder of the bundled configurations.
    """

    root: Path
    package: str
    configs: Path

    @property
    def programs(self) -> list[str]:
        """The names of the programs: the modules at the top of the package."""
        return sorted(path.stem for path in (self.root / self.package).glob("[a-z]*.py"))

    def environment(self, current: Mapping[str, str]) -> dict[str, str]:
        """The environment for a program, in which its package is found and a `train.py` of the user's is not."""
        search = [current["PYTHONPATH"]] if current.get("PYTHONPATH") else []
        if self.package == "train":  # an installed package is found anyway
            search.insert(0, str(self.root))
        return {**current, "PYTHONPATH": os.pathsep.join(search), "PYTHONSAFEPATH": "1"}


def find_home(package_dir: Path = Path(ldm.__file__).parent) -> Home:
    """Where the training programs of this `ldm` are.

    Raises:
        UserError: they are missing.
    """
    root = package_dir.resolve().parent
    if (root / "ldm_train" / "denoiser.py").is_file():
        return Home(root, "ldm_train", root / "ldm_train" / "configs")
    if (root / "train" / "denoiser.py").is_file():
        return Home(root, "train", root / "configs")
    raise UserError(f"the training programs are not in {root}", "reinstall the package, or use a checkout")


def find_config(name: str, home: Home) -> Path:
    """A configuration: a file, or the name of a bundled one, such as `emoji/denoiser`.

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
    """The names of the bundled configurations, without those for Accelerate's launcher."""
    return sorted(
        path.relative_to(home.configs).with_suffix("").as_posix()
        for path in home.configs.rglob("*.yaml")
        if path.parent.name != "accelerate"
    )


def program_of(config: Path, overrides: Sequence[str], programs: Sequence[str]) -> str:
    """The program that a configuration names under `program:`.

    Raises:
        UserError: it names none, or one that is not among `programs`.
    """
    from ldm.config import read_yaml

    given = [
        text.partition("=")[2].strip() for text in overrides if text.partition("=")[0].strip() == "program"
    ]
    program = given[-1] if given else read_yaml(config).get("program")
    if program is None:
        raise UserError(f"{config} has no `program:`", f"write program: {' or '.join(programs)}")
    if program not in programs:
        raise unknown_name(f"program in {config}:", str(program), programs)
    return str(program)
