"""kohya's train_control_net.py for Stable Diffusion 1 gives the ControlNet its hints in [-1, 1], and use in [0, 1].

That script is part of no package, so it cannot be run here. What is shown is ours: a map reaches the network with the
same values in training and in use.
"""

import numpy as np
import torch
from PIL import Image

from ldm.data.buckets import Placement
from ldm.data.transform import transform_input
from ldm.pipeline.control_images import read_control
from ldm.tasks.control import MAPS

MAP = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")


def test_training_and_use_give_the_same_values_from_0_to_1() -> None:
    (wanted,) = MAPS.images
    for size in (16, 8):
        placement = Placement(height=size, width=size, scaled_height=size, scaled_width=size)
        trained = transform_input(MAP, placement, kind=wanted.kind)
        for kind in ("scribble", "depth"):
            used = read_control(kind, MAP).hint(size, size, 2, (100, 200))
            assert torch.equal(trained, used)
    full = read_control("scribble", MAP).hint(16, 16, 2, (100, 200))
    assert (float(full.min()), float(full.max())) == (0.0, 1.0)
