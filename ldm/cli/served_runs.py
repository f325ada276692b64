"""The training runs that `ldm serve --run` names: folders of runs, and configurations to train from."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.plot import run_names
from ldm.cli.programs import find_config, find_home, program_of
from ldm.config import read_yaml
from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.web.watched_run import RunSource


def run_sources(given: Sequence[str]) -> "list[RunSource]":
    """The runs, each named by its folder.

    Raises:
        UserError: one is neither a run nor a configuration, a configuration is broken, or two name the same folder.
    """
    from ldm.web.watched_run import RunSource

    home = find_home()
    environment = home.environment(os.environ)
    configs = {text: None if Path(text).is_dir() else find_config(text, home) for text in given}
    folders = [_folder_of(text, configs[text], home.programs) for text in given]
    return [
        RunSource(name, folder.absolute(), config, _command(config), environment)
        for name, folder, config in zip(run_names(folders), folders, map(configs.get, given), strict=True)
    ]


def _folder_of(text: str, config: Path | None, programs: Sequence[str]) -> Path:
    """The run's folder: the one given, or the one that a configuration names.

    Raises:
        UserError: it is not a run's folder, or the configuration is broken.
    """
    if config is None:
        folder = Path(text)
        if not any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl")):
            what = f"--run {folder} is not the folder of a training run"
            raise UserError(what, "name a run's folder, or a configuration")
        return folder
    program_of(config, (), programs)
    run_dir = read_yaml(config).get("run_dir")
    if not isinstance(run_dir, str) or not run_dir:
        raise UserError(f"{config} has no `run_dir:`", "write run_dir: FOLDER")
    return Path(run_dir)


def _command(config: Path | None) -> list[str]:
    return [] if config is None else [sys.executable, "-m", "ldm", "train", str(config)]
