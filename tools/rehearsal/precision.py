"""Half precision against float32 on the same inputs: the predicted noise, the latents, the gradient that the encoder carries
to the picture, and the gradient in a LoRA. Figures are |found - truth| / |truth|; the truth is computed without TF32."""

import torch
from torch import Tensor

from mpiprop.core.streams import Streams, normal, uniform
from mpiprop.priors.diffusion import StableDiffusion
from mpiprop.priors.lora import Lora
from tools.rehearsal.book import Section, apart

LIMITS = {"float32": 1e-2, "float16": 5e-2, "bfloat16": 3e-1}  # float32 as runs have it: convolutions of CUDA in TF32
RNG = Streams(0, 0)


def numbers(device: torch.device, folder: str, dtype: str, size: int, text: Tensor) -> dict[str, Tensor]:
    """What a prior of that precision makes of fixed inputs, on the CPU."""
    prior = StableDiffusion(device, model=folder, dtype=dtype)
    rgb = uniform(RNG("rgb"), 2, 3, size, size).to(device).requires_grad_()
    x0 = prior.encode(rgb, RNG)
    (grad,) = torch.autograd.grad((x0 * normal(RNG("weights"), *x0.shape).to(device)).mean(), rgb)
    x_t, t = normal(RNG("x_t"), *x0.shape).to(device), torch.tensor([300, 700], device=device)
    lora = Lora(prior, RNG).to(device)
    camera = normal(RNG("camera"), 2, 16).to(device)
    loss = lora.loss(x0, t, x_t, text, camera, 0)
    loss.backward()
    found = {"noise": prior.eps(x_t, t, text), "latents": x0, "gradient in the picture": grad,
             "gradient in the LoRA": lora.lanes[0]["adapter"].grad}
    return {name: tensor.detach().float().cpu() for name, tensor in found.items()}


def main() -> None:
    section = Section.of(__doc__)
    device, folder = section.device(), str(section.work / "model")
    size = 16 if section.small else 64
    text = StableDiffusion(device, model=folder).embed(["a red chair", ""]).to(device)
    tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    truth = numbers(device, folder, "float32", size, text)
    torch.backends.cudnn.allow_tf32 = tf32
    for dtype, limit in LIMITS.items():
        with section.attempt(dtype):
            for name, found in numbers(device, folder, dtype, size, text).items():
                section.row(f"{dtype}: {name}", apart(found, truth[name]), limit=limit)


if __name__ == "__main__":
    main()
