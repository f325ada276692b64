"""Networks that control a denoiser by an image: ControlNets, T2I-Adapters and IP-Adapters."""
