"""Captions that are swapped on purpose, and how well a ledger finds them."""

import json
import shutil
from pathlib import Path
from typing import Any

from ldm.evaluation.loss_ledger import auroc
from ldm.evaluation.metrics import Share
from ldm.io.files import write_bytes, write_json
from ldm.io.json_files import parse_json, read_object
from ldm.io.opening import read_text
from ldm.noise import permutation

PLANTED = "planted.json"
MAX_LEDGER_BYTES = 2**30


def plant(data: Path, dest: Path, share: float, seed: int) -> None:
    """Copy a folder with `metadata.jsonl`, and pass the captions of some of its images around in a circle.

    An image whose new caption happens to be the same text counts as not swapped.
    """
    rows = [parse_json(line) for line in read_text(data / "metadata.jsonl").splitlines()]
    chosen = permutation(len(rows), seed, "planted")[: max(2, round(share * len(rows)))]
    texts = {one: rows[other]["text"] for one, other in zip(chosen, chosen[1:] + chosen[:1], strict=True)}
    swapped = [rows[i]["file_name"] for i, text in texts.items() if rows[i]["text"] != text]
    for index, text in texts.items():
        rows[index] = {**rows[index], "text": text}
    shutil.copytree(data, dest)
    write_bytes(dest / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    write_json(dest.with_name(f"{dest.name}-{PLANTED}"), {"seed": seed, "swapped": swapped})


def score_planted(dest: Path, ledger: Path) -> dict[str, Any]:
    """AUROC of the caption scores, precision among as many as were planted, and precision and recall of the flags."""
    planted = set(read_object(dest.with_name(f"{dest.name}-{PLANTED}"))["swapped"])
    found = read_object(ledger, max_bytes=MAX_LEDGER_BYTES)
    samples = [each for each in found["samples"] if not each["held_out"]]
    is_planted = [each["sample_id"] in planted for each in samples]
    num_planted = sum(is_planted)
    order = sorted(samples, key=lambda each: float(each["caption_score"]), reverse=True)
    flagged = [each for each in samples if "caption" in each["reasons"]]
    top = sum(each["sample_id"] in planted for each in order[:num_planted])
    right = sum(each["sample_id"] in planted for each in flagged)
    return {
        "step": found["step"],
        "num_samples": len(samples),
        "num_planted": num_planted,
        "auroc": auroc([float(each["caption_score"]) for each in samples], is_planted),
        "precision_at_planted_rate": Share(top, num_planted).to_dict(),
        "flagged_precision": Share(right, len(flagged)).to_dict() if flagged else None,
        "flagged_recall": Share(right, num_planted).to_dict(),
    }
