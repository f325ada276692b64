"""How often `ldm ledger` finds captions that were swapped on purpose.

python scripts/score_ledger.py plant DATA DEST --share 0.05     # a copy of a folder with some captions swapped
ldm train CONFIG data.path=DEST ...
ldm ledger RUN --output ledger
python scripts/score_ledger.py score DEST ledger/ledger.json
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from ldm.evaluation.ledger import auroc
from ldm.evaluation.metrics import Share
from ldm.io.files import write_bytes, write_json
from ldm.noise import permutation

PLANTED = "planted.json"


def plant(data: Path, dest: Path, share: float, seed: int) -> None:
    """Copy a folder with `metadata.jsonl`, and pass the captions of some of its images around in a circle.

    An image whose new caption happens to be the same text counts as not swapped.
    """
    rows = [json.loads(line) for line in (data / "metadata.jsonl").read_text("utf-8").splitlines()]
    chosen = permutation(len(rows), seed, "planted")[: max(2, round(share * len(rows)))]
    texts = {one: rows[other]["text"] for one, other in zip(chosen, chosen[1:] + chosen[:1], strict=True)}
    swapped = [rows[i]["file_name"] for i, text in texts.items() if rows[i]["text"] != text]
    for index, text in texts.items():
        rows[index] = {"file_name": rows[index]["file_name"], "text": text}
    shutil.copytree(data, dest)
    write_bytes(dest / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    write_json(dest.with_name(f"{dest.name}-{PLANTED}"), {"seed": seed, "swapped": swapped})


def score(dest: Path, ledger: Path) -> dict[str, Any]:
    """AUROC of the caption scores, precision among as many as were planted, and precision and recall of the flags."""
    planted = set(json.loads(dest.with_name(f"{dest.name}-{PLANTED}").read_text())["swapped"])
    found = json.loads(ledger.read_text())
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    planting = commands.add_parser("plant")
    planting.add_argument("data", type=Path)
    planting.add_argument("dest", type=Path)
    planting.add_argument("--share", type=float, default=0.05)
    planting.add_argument("--seed", type=int, default=0)
    scoring = commands.add_parser("score")
    scoring.add_argument("dest", type=Path)
    scoring.add_argument("ledger", type=Path)
    options = parser.parse_args()
    if options.command == "plant":
        plant(options.data, options.dest, options.share, options.seed)
    else:
        print(json.dumps(score(options.dest, options.ledger), indent=2))


if __name__ == "__main__":
    main()
