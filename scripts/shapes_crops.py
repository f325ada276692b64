"""Train a small two-encoder model from scratch that is told size and crop, and a second one that is told nothing.

python scripts/shapes_crops.py prepare data/shapes-crops
ldm train configs/shapes/crops.yaml
ldm train configs/shapes/crops.yaml data.path=data/shapes-crops/cut data.crop_variants=1 run_dir=runs/shapes/untold
python scripts/shapes_crops.py score runs/shapes/crops runs/shapes/untold --output runs/shapes/crops-score
"""

import argparse
import json
import sys
from pathlib import Path

from ldm.demos.shapes_crops import SIZE_PX, all_scenes, write_crops
from ldm.demos.shapes_crops_score import score_crops
from ldm.diffusion.path import DDPMPath, ScheduleSettings
from ldm.errors import UserError
from ldm.models.fresh_xl import make_small_xl
from ldm.models.loading.model import load_parts, save_parts
from ldm.models.loading.source import find_model
from ldm.pipeline.pipeline import load_pipeline


def prepare(dest: Path, num_images: int) -> None:
    """Write DEST/images, DEST/cut and DEST/model, which has the autoencoder of the emoji model."""
    write_crops(dest / "images", num_images=num_images)
    write_crops(dest / "cut", num_images=num_images, cut=True)
    schedule = ScheduleSettings(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    vae, captions = (
        load_parts(find_model("emoji")[0]).autoencoder.vae,
        [scene.caption for scene in all_scenes()],
    )
    parts = make_small_xl(vae, captions, DDPMPath(schedule).scheduler_config(), size_px=SIZE_PX)
    save_parts(parts, dest / "model")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("prepare", help="draw the images and write a fresh model")
    one.add_argument("dest", type=Path, help="the folder to write into")
    one.add_argument("--num-images", type=int, default=2000)
    two = commands.add_parser("score", help="judge what both models make")
    two.add_argument("told", help="the run that was told size and crop")
    two.add_argument("untold", help="the run on the same crops, as images")
    two.add_argument("--output", type=Path, required=True, help="a new folder")
    two.add_argument("--num-seeds", type=int, default=5, help="images of each of the 40 prompts")
    options = parser.parse_args()
    try:
        if options.command == "prepare":
            prepare(options.dest, options.num_images)
        if options.command == "score":
            told, untold = load_pipeline(options.told), load_pipeline(options.untold)
            report = score_crops(told, untold, options.output, num_seeds=options.num_seeds)
            print(json.dumps(report, indent=1))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
