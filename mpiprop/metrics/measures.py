"""The measures, from features alone: CLIP similarity, CLIP R-Precision, the Frechet distance of CLIP-FID.

R-Precision: Park et al. 2021, as in DreamFusion, section 4; CLIP-FID: Kynkaanniemi et al. 2023.
Letters: B pictures, N prompts, E features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import normalize

from mpiprop.core.errors import UserError


@dataclass(frozen=True)
class Score:
    """One object's part of the result."""

    prompt: str
    similarity: float  # mean cosine of its pictures with its prompt
    r_precision: float  # share of its pictures that retrieve its prompt, in [0, 1]
    retrieved: str  # the prompt nearest to its pictures on average


@dataclass(frozen=True)
class Result:
    """The measures over all objects; R-Precision in [0, 1]."""

    prompts: tuple[str, ...]  # retrieved from
    images: int
    similarity: float
    r_precision: float  # over pictures
    r_precision_objects: float  # over objects, by the mean similarity of their pictures
    objects: tuple[Score, ...]


def measure(objects: Sequence[tuple[str, Tensor]], prompts: Sequence[str], texts: Tensor) -> Result:
    """The measures of objects, each a prompt and the features [B, E] of its pictures, among `prompts`.

    prompts: N different ones, those of the objects among them
    texts: their unit features [N, E]
    """
    truth = [prompts.index(prompt) for prompt, _ in objects]
    similarity = [normalize(features, dim=-1) @ texts.T for _, features in objects]
    means = torch.stack([s.mean(0) for s in similarity])
    owners = [torch.full((len(s),), own) for own, s in zip(truth, similarity)]
    scores = tuple(Score(prompts[own], float(mean[own]), r_precision(s, owner), prompts[int(mean.argmax())])
                   for own, owner, s, mean in zip(truth, owners, similarity, means))
    every, owner = torch.cat(similarity), torch.cat(owners)
    return Result(tuple(prompts), len(every), float(every.gather(1, owner[:, None]).mean()), r_precision(every, owner),
                  r_precision(means, torch.tensor(truth)), scores)


def r_precision(similarity: Tensor, truth: Tensor) -> float:
    """The share of rows of similarity [B, N] whose largest value is at truth [B]; ties count against."""
    own = similarity.gather(1, truth[:, None])
    return float(((similarity >= own).sum(1) == 1).float().mean())


@dataclass(frozen=True)
class Moments:
    """Mean and scatter of features in double precision: `a + b` are those of both sets together."""

    count: int
    mean: ndarray  # [E]
    scatter: ndarray  # [E, E] sum of the outer products of the deviations from the mean

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Those of features [B, E]."""
        x = features.double().numpy()
        mean = x.mean(0)
        return cls(len(x), mean, (x - mean).T @ (x - mean))

    def __add__(self, other: "Moments") -> "Moments":
        """Chan, Golub and LeVeque 1983, equation 2.1."""
        count, apart = self.count + other.count, other.mean - self.mean
        return Moments(count, self.mean + apart * (other.count / count), self.scatter + other.scatter
                       + np.outer(apart, apart) * (self.count * other.count / count))


def frechet(a: Moments, b: Moments) -> float:
    """The squared Frechet distance of two Gaussians (Heusel et al. 2017, equation 6), covariances unbiased.

    Raises UserError below two pictures a side.
    """
    if min(a.count, b.count) < 2:
        raise UserError(f"CLIP-FID needs at least two pictures on either side, not {a.count} and {b.count}")
    S_a, S_b = a.scatter / (a.count - 1), b.scatter / (b.count - 1)
    values, vectors = np.linalg.eigh(S_a)
    root = vectors * values.clip(0) ** 0.5 @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ S_b @ root).clip(0)).sum()  # tr (S_a S_b)^1/2, without complex numbers
    return float(max(0.0, np.square(a.mean - b.mean).sum() + np.trace(S_a) + np.trace(S_b) - 2 * cross))
