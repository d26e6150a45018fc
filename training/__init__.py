"""The trainer and the sampler: plain torch, diffusers and peft, free of ComfyUI."""
