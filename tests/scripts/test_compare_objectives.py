"""The table of compared objectives."""

from pathlib import Path
from typing import Any

import pytest

from ldm.config import load_settings
from ldm.evaluation.objectives import (
    OBJECTIVES,
    collect,
    markdown_table,
    mean_interval,
    run_name,
    training_command,
    verdict,
)
from train.settings.denoiser import DenoiserSettings

RECIPE = Path(__file__).parents[2] / "configs" / "shapes" / "compare.yaml"


def report(share: float) -> dict[str, Any]:
    return {kind: {name: {"share": share} for name in ("shape", "all")} for kind in ("seen", "held_out")}


def test_the_interval_of_three_runs_is_students() -> None:
    # t at 0.975 with two degrees of freedom is 4.3027; the standard deviation of the three is 0.1
    middle, low, high = mean_interval([0.4, 0.5, 0.6])
    spread = 4.3027 * 0.1 / 3**0.5
    assert (middle, low, high) == pytest.approx((0.5, 0.5 - spread, 0.5 + spread), abs=1e-4)
    with pytest.raises(ValueError, match="gives no interval"):
        mean_interval([0.5])


def test_the_verdict_follows_the_interval_of_the_difference() -> None:
    # Welch: 0.2 apart, standard error 0.0816, 4 degrees of freedom, t = 2.776: 0.2 +- 0.227
    assert verdict([0.6, 0.7, 0.8], [0.4, 0.5, 0.6]) == "cannot tell"
    assert verdict([0.65, 0.75, 0.85], [0.4, 0.5, 0.6]) == "better"  # 0.25 +- 0.227
    assert verdict([0.4, 0.5, 0.6], [0.65, 0.75, 0.85]) == "worse"
    assert verdict([0.4, 0.5, 0.6], [0.4, 0.5, 0.6]) == "cannot tell"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_recipe_takes_the_settings_of_each_objective(objective: str) -> None:
    *command, _ = training_command("shapes/compare", objective, 3, Path("run"))[:4]
    read = load_settings(
        DenoiserSettings, RECIPE, training_command("shapes/compare", objective, 3, Path("run"))[4:]
    )
    assert command == ["-m", "ldm", "train"] and (read.seed, read.run_dir) == (3, Path("run"))


def test_runs_are_gathered_under_their_own_objective() -> None:
    shares = {"epsilon": 0.2, "v": 0.4, "v, min-SNR": 0.6}
    names = {run_name(objective, seed): objective for objective in shares for seed in range(3)}
    scores = {name: report(shares[objective] + 0.01 * int(name[-1])) for name, objective in names.items()}
    bits = {name: {"latents": {"mean": 2.5}} for name, objective in names.items() if objective != "v"}
    table = collect(scores, bits, {name: 60.0 + int(name[-1]) for name in names})
    assert list(table) == ["v", "v, min-SNR", "epsilon"]
    means = {name: row["seen"]["shape"]["mean"] for name, row in table.items()}
    assert means == pytest.approx({name: share + 0.01 for name, share in shares.items()})
    assert [row["verdict"] for row in table.values()] == ["cannot tell", "better", "worse"]
    rows = markdown_table(table).splitlines()
    assert rows[2].startswith(
        "| v | 0.410 [0.385, 0.435] | 0.410 [0.385, 0.435] | - | 61 [59, 63] | cannot tell |"
    )
    assert "| epsilon | held out | 0.210 [0.185, 0.235] | - | - | - | - | 0.210 [0.185, 0.235] |" in rows


def test_an_interval_of_shares_ends_at_one() -> None:
    scores = {run_name("v", seed): report(share) for seed, share in enumerate([0.9, 1.0, 1.0])}
    assert "| v | 0.967 [0.823, 1.000] |" in markdown_table(collect(scores, {}, {}))
