"""The corrector of diffusers' `ScoreSdeVeScheduler` takes one step size for the whole batch.

It is computed from the mean norm of the batch's scores, so an image depends on the images that are made with it. In
Algorithm 4 of Song et al. 2021 the norms are those of the image itself.
"""

import torch
from diffusers import ScoreSdeVeScheduler

from ldm.diffusion.predictor_corrector import corrected
from tests.support.museum import shown_wrong

SAMPLE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
SCORE = SAMPLE * torch.tensor([1.0, 20.0]).view(2, 1, 1, 1)
NOISE = torch.randn(SAMPLE.shape, generator=torch.Generator().manual_seed(1))


def test_theirs_depends_on_the_batch_and_ours_does_not() -> None:
    both = corrected(SAMPLE, SCORE, NOISE, 0.16)
    assert torch.equal(both[:1], corrected(SAMPLE[:1], SCORE[:1], NOISE[:1], 0.16))
    scheduler = ScoreSdeVeScheduler(snr=0.16)
    theirs, alone = (
        scheduler.step_correct(
            SCORE[:rows], SAMPLE[:rows], generator=torch.Generator().manual_seed(1), return_dict=False
        )[0]
        for rows in (2, 1)
    )
    shown_wrong(float((theirs[:1] - alone).abs().max()) > 0.01)
