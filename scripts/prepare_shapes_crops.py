"""Prepare the training of a small two-encoder model that is told size and crop, and of one that is told nothing.

python scripts/prepare_shapes_crops.py data/shapes-crops
ldm train configs/shapes/crops.yaml
ldm train configs/shapes/crops.yaml data.path=data/shapes-crops/cut data.crop_variants=1 run_dir=runs/shapes/untold
python scripts/score_shapes_crops.py runs/shapes/crops runs/shapes/untold --output runs/shapes/crops-score
"""

import argparse
import sys
from pathlib import Path

from ldm.demos.shapes_crops import SIZE_PX, all_scenes, write_crops
from ldm.diffusion.path import DDPMPath, ScheduleSettings
from ldm.errors import UserError
from ldm.models.fresh_xl import make_small_xl
from ldm.models.loading.model import load_parts, save_parts
from ldm.models.loading.source import find_model


def prepare(dest: Path, num_images: int) -> None:
    """Write DEST/images, their crops DEST/cut, and DEST/model, fresh but for the autoencoder of the emoji model."""
    write_crops(dest / "images", num_images=num_images)
    write_crops(dest / "cut", num_images=num_images, cut=True)
    schedule = ScheduleSettings(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    vae = load_parts(find_model("emoji")[0]).autoencoder.vae
    captions = [scene.caption for scene in all_scenes()]
    parts = make_small_xl(vae, captions, DDPMPath(schedule).scheduler_config(), size_px=SIZE_PX)
    save_parts(parts, dest / "model")


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw shapes that crops cut off, and make a fresh model.")
    parser.add_argument("dest", type=Path, help="the folder to create")
    parser.add_argument("--num-images", type=int, default=2000, help="number of images (2000)")
    options = parser.parse_args()
    try:
        prepare(options.dest, options.num_images)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
