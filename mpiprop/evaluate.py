"""How well objects show what was asked for: CLIP similarity, CLIP R-Precision and CLIP-FID over turntables.

R-Precision: Park et al. 2021, as in DreamFusion, section 4; CLIP-FID: Kynkaanniemi et al. 2023; protocol:
DreamPropeller, section 5 (120 azimuths at 12 degrees of elevation, top-1 retrieval among all prompts).
Letters: B images of H x W pixels, N prompts, E features, G objects.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from mpiprop.core.errors import UserError

WEIGHTS = Path(__file__).parent / "weights"
BUILTIN = WEIGHTS / "judge"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CHUNK = 32  # images at a time


class Judge:
    """A CLIP model with its own preparation of images and texts: an id, or a folder; the built-in one by default."""

    def __init__(self, folder_or_id: str | Path = BUILTIN, device: torch.device | str = "cpu") -> None:
        from transformers import AutoTokenizer, CLIPModel
        from transformers.image_processing_base import ImageProcessingMixin
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        self.name, self.device = str(folder_or_id), torch.device(device)
        try:
            self.model = CLIPModel.from_pretrained(self.name, dtype=torch.float32).to(self.device).eval()
            self.tokenizer = AutoTokenizer.from_pretrained(self.name)
            self.recipe, _ = ImageProcessingMixin.get_image_processor_dict(self.name)
            if lacking := {"size", "image_mean", "image_std"} - self.recipe.keys():
                raise ValueError(f"preprocessor_config.json lacks {', '.join(sorted(lacking))}")
        except (OSError, ValueError) as error:
            raise UserError(f"{self.name}: is not a CLIP model that can be read (a CLIPModel's folder or id, with "
                            f"tokenizer and preprocessor_config.json): {str(error).splitlines()[0]}") from None

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Image features [B, E] of images [B, H, W, 3] in [0, 1], as long as the model makes them, on the CPU."""
        return torch.cat([_pooled(self.model.get_image_features(self.prepare(chunk.to(self.device))))
                          for chunk in images.split(CHUNK)])

    def images(self, images: Tensor) -> Tensor:
        """Unit image features [B, E] of images [B, H, W, 3] in [0, 1]."""
        return normalize(self.features(images), dim=-1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit text features [N, E]."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(texts), padding="max_length", max_length=length, truncation=True,
                                return_tensors="pt")
        chunks = zip(tokens.input_ids.split(256), tokens.attention_mask.split(256))
        return normalize(torch.cat([_pooled(self.model.get_text_features(ids.to(self.device), mask.to(self.device)))
                                    for ids, mask in chunks]), dim=-1)

    def prepare(self, images: Tensor) -> Tensor:
        """The model's input [B, 3, h, w] from images [B, H, W, 3] in [0, 1]: resized, cropped and normalised."""
        x, recipe = images.float().movedim(-1, 1), self.recipe
        size = recipe["size"] if isinstance(recipe["size"], dict) else {"shortest_edge": recipe["size"]}
        if "shortest_edge" in size:
            short = min(x.shape[-2:])
            h, w = (size["shortest_edge"] * side // short for side in x.shape[-2:])
        else:
            h, w = size["height"], size["width"]
        mode = "bilinear" if recipe.get("resample", 3) == 2 else "bicubic"
        if (h, w) != tuple(x.shape[-2:]):
            x = interpolate(x, (h, w), mode=mode, antialias=True, align_corners=False).clamp(0, 1)
        if recipe.get("do_center_crop", "crop_size" in recipe):
            crop = recipe["crop_size"]
            side_h, side_w = (crop["height"], crop["width"]) if isinstance(crop, dict) else (crop, crop)
            top, left = (h - side_h) // 2, (w - side_w) // 2
            x = x[..., top:top + side_h, left:left + side_w]
        mean, std = (torch.tensor(recipe[key], device=x.device).view(3, 1, 1) for key in ("image_mean", "image_std"))
        return (x - mean) / std


def _pooled(output: object) -> Tensor:
    """Features on the CPU, from a tensor (transformers 4) or from a model output (transformers 5)."""
    return getattr(output, "pooler_output", output).float().cpu()


def clip_similarity(images: Tensor, text: Tensor) -> float:
    """The mean cosine of unit image features [B, E] with unit text features [E]."""
    return float((images @ text).mean())


def r_precision(similarity: Tensor, truth: Tensor) -> float:
    """The share of rows of similarity [B, N] whose largest value is at truth [B]; ties count against."""
    return float(_retrieved(similarity, truth).float().mean())


def _retrieved(similarity: Tensor, truth: Tensor) -> Tensor:
    own = similarity.gather(1, truth[:, None])
    return (similarity >= own).sum(1) == 1


def frechet(a: Tensor, b: Tensor) -> float:
    """The squared Frechet distance of the Gaussians of features [B, E] and [B', E] (Heusel et al. 2017, equation 6).

    Raises UserError below two features a side.
    """
    if min(len(a), len(b)) < 2:
        raise UserError(f"CLIP-FID needs at least two pictures on either side, not {len(a)} and {len(b)}")
    a, b = a.double().numpy(), b.double().numpy()
    S_a, S_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(S_a)
    root = vectors * values.clip(0) ** 0.5 @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ S_b @ root).clip(0)).sum()  # tr (S_a S_b)^1/2, without complex numbers
    return float(max(0.0, np.square(a.mean(0) - b.mean(0)).sum() + np.trace(S_a) + np.trace(S_b) - 2 * cross))


@dataclass(frozen=True)
class Score:
    """One object's part of the result."""

    prompt: str
    similarity: float
    r_precision: float  # share of its images that retrieve its prompt
    retrieved: str  # the prompt nearest to its images on average


@dataclass(frozen=True)
class Result:
    """The measures over all objects; R-Precision in [0, 1]."""

    judge: str
    prompts: int
    images: int
    similarity: float
    r_precision: float  # over images
    r_precision_objects: float  # over objects, by the mean similarity of their images
    fid: float | None  # None without a reference
    objects: tuple[Score, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        width = max(len("all objects"), *(len(score.prompt) for score in self.objects))
        lines = [f"{'prompt':{width}}  similarity  R-Precision  nearest prompt"]
        lines += [f"{score.prompt:{width}}  {score.similarity:10.4f}  {score.r_precision:11.1%}  "
                  f"{'its own' if score.retrieved == score.prompt else score.retrieved}" for score in self.objects]
        lines += ["-" * len(lines[0]),
                  f"{'all objects':{width}}  {self.similarity:10.4f}  {self.r_precision:11.1%}  "
                  f"{self.r_precision_objects:.1%} of the objects",
                  f"{self.images} images, {self.prompts} prompts to choose from, judge {self.judge}"]
        return "\n".join(lines + ([] if self.fid is None else [f"CLIP-FID {self.fid:.4g}"]))


def evaluate(objects: Sequence[tuple[str, Tensor]], prompts: Sequence[str], judge: Judge,
             reference: Path | None = None) -> Result:
    """The measures of objects, each a prompt and its images [B, H, W, 3] in [0, 1], among `prompts` (and their own).

    CLIP-FID compares all images with the pictures in the folder `reference`.
    """
    prompts = list(dict.fromkeys([*prompts, *(prompt for prompt, _ in objects)]))
    texts = judge.texts(prompts)
    features = [judge.features(images) for _, images in objects]
    similarity = [normalize(f, dim=-1) @ texts.T for f in features]
    truth = [prompts.index(prompt) for prompt, _ in objects]
    means = torch.stack([s.mean(0) for s in similarity])
    owners = [torch.full((len(s),), own) for own, s in zip(truth, similarity)]
    scores = tuple(Score(prompts[own], float(mean[own]), r_precision(s, owner), prompts[int(mean.argmax())])
                   for own, owner, s, mean in zip(truth, owners, similarity, means))
    every, owner = torch.cat(similarity), torch.cat(owners)
    fid = None if reference is None else frechet(torch.cat(features), reference_features(reference, judge))
    return Result(judge.name, len(prompts), len(every), float(every.gather(1, owner[:, None]).mean()),
                  r_precision(every, owner), r_precision(means, torch.tensor(truth)), fid, scores)


def reference_features(folder: Path, judge: Judge) -> Tensor:
    """Features [B, E] of all pictures in `folder` and below. Raises UserError where there are none."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in PICTURES)
    if not paths:
        raise UserError(f"{folder}: holds no pictures ({', '.join(PICTURES)})")
    return torch.cat([judge.features(picture(path)[None]) for path in paths])


def picture(path: Path) -> Tensor:
    """The picture [H, W, 3] in [0, 1] of a file, on white where it is transparent. Raises UserError if unreadable."""
    from PIL import Image

    try:
        rgba = torch.from_numpy(np.array(Image.open(path).convert("RGBA"))).float() / 255
    except OSError as error:
        raise UserError(f"{path}: is not a picture that can be read: {error}") from None
    return rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]


def builtin_prompts() -> list[str]:
    """All prompts that the built-in judge knows: "a green mushroom", "an orange chair", ..."""
    words = json.loads((WEIGHTS / "vocabulary.json").read_text())
    return [f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}"
            for shape in words["shapes"] for colour in words["colours"]]


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file, one a line, or JSON (a list, or an object of lists). Raises UserError if none."""
    try:
        text = Path(path).read_text()
        found = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as prompts: {error}") from None
    if isinstance(found, dict):
        found = [prompt for prompts in found.values() for prompt in prompts]
    prompts = [prompt.strip() for prompt in found if prompt.strip()]
    if not prompts:
        raise UserError(f"{path}: holds no prompts")
    return prompts
