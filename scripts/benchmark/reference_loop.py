"""A training loop with the same calls as diffusers' text-to-image example, for use when that script is not available.

It uses the example's libraries, order of work and defaults: images are read and encoded at each step, AdamW is torch's
default, the weight average is diffusers' EMAModel, and two numbers are fetched per step. Run it with
`python reference_loop.py --pretrained_model_name_or_path DIR --train_data_dir DIR ...`; the options are the example's.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from datasets import load_dataset
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from transformers import CLIPTextModel, CLIPTokenizer


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("pretrained_model_name_or_path", "train_data_dir", "cache_dir", "output_dir"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("resolution", "train_batch_size", "max_train_steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--mixed_precision", default="no")
    for name in ("center_crop", "use_ema"):
        parser.add_argument(f"--{name}", action="store_true")
    return parser.parse_args()


class Model:
    """The parts of a Stable Diffusion folder, with the UNet ready for training."""

    def __init__(self, folder: str, device: torch.device, frozen_dtype: torch.dtype) -> None:
        self.scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        self.tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
        self.unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").to(device).train()
        self.vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
        self.text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
        for frozen in (self.vae, self.text_encoder):
            frozen.requires_grad_(False)
            frozen.to(device, dtype=frozen_dtype)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Encode images and captions, add noise to the latents, and compare the UNet's prediction with the noise."""
        pixels = batch["pixel_values"].to(self.vae.dtype)
        latents = self.vae.encode(pixels).latent_dist.sample() * self.vae.config.scaling_factor
        noise = torch.randn_like(latents)
        num_levels = self.scheduler.config.num_train_timesteps
        timesteps = torch.randint(0, num_levels, (len(latents),), device=latents.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        prompt_embeds = self.text_encoder(batch["input_ids"], return_dict=False)[0]
        output = self.unet(noisy, timesteps, prompt_embeds, return_dict=False)[0]
        return torch.nn.functional.mse_loss(output.float(), noise.float(), reduction="mean")


def make_loader(options: argparse.Namespace, tokenizer: CLIPTokenizer) -> DataLoader[Any]:
    """Batches that are read, resized and tokenized in the training process, again in each epoch."""
    crop = transforms.CenterCrop if options.center_crop else transforms.RandomCrop
    steps = [
        transforms.Resize(options.resolution, interpolation=transforms.InterpolationMode.LANCZOS),
        crop(options.resolution),
        transforms.ToTensor(),
        transforms.Normalize([0.5], [0.5]),
    ]
    transform = transforms.Compose(steps)

    def prepare(rows: dict[str, list[Any]]) -> dict[str, Any]:
        images = [transform(image.convert("RGB")) for image in rows["image"]]
        tokens = tokenizer(
            rows["text"], max_length=tokenizer.model_max_length, padding="max_length", truncation=True
        )
        return {"pixel_values": images, "input_ids": [torch.tensor(ids) for ids in tokens.input_ids]}

    found = load_dataset(options.train_data_dir, cache_dir=options.cache_dir, split="train")
    return DataLoader(
        found.with_transform(prepare), batch_size=options.train_batch_size, shuffle=True, drop_last=True
    )


def repeat(loader: Any) -> Iterator[dict[str, Tensor]]:
    while True:
        yield from loader


def main() -> None:
    options = parse()
    accelerator = Accelerator(mixed_precision=options.mixed_precision, cpu=not torch.cuda.is_available())
    frozen_dtype = torch.bfloat16 if options.mixed_precision == "bf16" else torch.float32
    model = Model(options.pretrained_model_name_or_path, accelerator.device, frozen_dtype)
    average = EMAModel(model.unet.parameters()) if options.use_ema else None
    optimizer = torch.optim.AdamW(model.unet.parameters(), lr=options.learning_rate, weight_decay=1e-2)
    rate = get_scheduler("constant", optimizer)
    loader = make_loader(options, model.tokenizer)
    model.unet, optimizer, loader, rate = accelerator.prepare(model.unet, optimizer, loader, rate)
    for batch, _ in zip(repeat(loader), range(options.max_train_steps), strict=False):
        loss = model.loss(batch)
        logged = accelerator.gather(loss.repeat(options.train_batch_size)).mean().item()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.unet.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        if average is not None:
            average.step(model.unet.parameters())
        print(logged, loss.detach().item(), rate.get_last_lr()[0])


if __name__ == "__main__":
    main()
