"""The table of compared objectives."""

import pytest

from ldm.evaluation.objectives import OBJECTIVES, collect, markdown_table, mean_interval


def report(share: float) -> dict[str, dict[str, dict[str, float]]]:
    return {kind: {"shape": {"share": share}} for kind in ("seen", "held_out")}


def test_the_interval_of_three_runs_is_students() -> None:
    # t at 0.975 with two degrees of freedom is 4.3027; the standard deviation of the three is 0.1
    middle, low, high = mean_interval([0.4, 0.5, 0.6])
    spread = 4.3027 * 0.1 / 3**0.5
    assert (middle, low, high) == pytest.approx((0.5, 0.5 - spread, 0.5 + spread), abs=1e-4)
    with pytest.raises(ValueError, match="gives no interval"):
        mean_interval([0.5])


def test_runs_are_gathered_under_their_own_objective() -> None:
    shares = {"epsilon": 0.2, "v": 0.4, "v-min-snr": 0.6}
    reports = {f"{name}-{seed}": report(share) for name, share in shares.items() for seed in range(3)}
    table = collect(reports)
    assert table.keys() == OBJECTIVES.keys()
    assert {name: kinds["seen"]["shape"]["mean"] for name, kinds in table.items()} == pytest.approx(shares)
    rows = markdown_table(table).splitlines()
    assert "| v-min-snr | held out | 0.600 [0.600, 0.600] | - | - | - | - | - |" in rows
