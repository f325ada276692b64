"""Captions that are swapped on purpose, and the score of a ledger that ranks them."""

import json
from pathlib import Path
from typing import Any

from ldm.evaluation.planted_captions import plant, score_planted


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_captions_are_swapped_and_all_else_stays(tmp_path: Path) -> None:
    """What else the metadata says is about the image: without it, the swapped ones would stand out."""
    (tmp_path / "data").mkdir()
    rows = [{"file_name": f"{i}.png", "text": f"caption {i}", "flip": i % 2 == 0} for i in range(40)]
    (tmp_path / "data/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plant(tmp_path / "data", tmp_path / "planted", 0.1, seed=0)
    found = rows_of(tmp_path / "planted")
    other = [i for i, (row, was) in enumerate(zip(found, rows, strict=True)) if row["text"] != was["text"]]
    assert [{**row, "text": ""} for row in found] == [{**row, "text": ""} for row in rows]
    assert sorted(row["text"] for row in found) == sorted(row["text"] for row in rows)
    assert len(other) == 4

    scores = [
        {"sample_id": row["file_name"], "caption_score": float(i in other)} for i, row in enumerate(rows)
    ]
    samples = [{**each, "held_out": i == other[0], "reasons": ["caption"]} for i, each in enumerate(scores)]
    (tmp_path / "ledger.json").write_text(json.dumps({"step": 7, "samples": samples}))
    report = score_planted(tmp_path / "planted", tmp_path / "ledger.json")
    assert (report["num_samples"], report["num_planted"], report["auroc"]) == (39, 3, 1.0)
    assert report["precision_at_planted_rate"]["share"] == 1.0
    assert report["flagged_precision"]["num_judged"] == 39 and report["flagged_recall"]["share"] == 1.0
