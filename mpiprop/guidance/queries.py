"""Questions to denoising networks, and the coroutines that ask them.

A guidance does not call a network. It is a coroutine that yields queries and receives the predictions, so that

- queries of all views, and of several coroutines that run `together`, go to each network in one call;
- an objective whose questions depend on earlier answers (DDIM inversion, for one) is written like any other.

    def difference(x_t, t, condition):
        positive, unconditional = yield [Query(prior, x_t, t, condition.positive),
                                         Query(prior, x_t, t, condition.unconditional)]
        return positive - unconditional

    answered(difference(x_t, t, condition))  # [B, C, h, w]
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from mpiprop.priors.base import Inputs, Latents, Timesteps

Answer = TypeVar("Answer")
Asking = Generator[Sequence["Query"], Sequence[Tensor], Answer]
"""A coroutine that yields queries, is sent a prediction for each, and returns an Answer."""


class Network(Protocol):
    """A denoising network: a prior, or what a guidance trains."""

    def eps(self, x_t: Latents, t: Timesteps, /, *args: Any, **inputs: Any) -> Latents:
        """Returns the noise predicted in x_t at timesteps t; not differentiable."""


@dataclass(frozen=True)
class Query:
    """Which noise does `network` see in x_t at t, under these inputs?"""

    network: Network
    x_t: Latents
    t: Timesteps  # int64, on the device of x_t
    inputs: Inputs  # a row for each image


def answered(asking: Asking[Answer]) -> Answer:
    """Runs a coroutine to its end, each round of its queries in one call of each network; returns what it returns."""
    try:
        queries = next(asking)
        while True:
            queries = asking.send(_predictions(queries))
    except StopIteration as end:
        return end.value


def together(*askings: Asking[Any]) -> Asking[list[Any]]:
    """A coroutine that runs others side by side, their queries of each round in common; returns what they return."""
    returned: list[Any] = [None] * len(askings)
    waiting: dict[int, Sequence[Query]] = {}

    def go_on(i: int, answers: Sequence[Tensor] | None) -> None:
        try:
            waiting[i] = next(askings[i]) if answers is None else askings[i].send(answers)
        except StopIteration as end:
            waiting.pop(i, None)
            returned[i] = end.value
    for i in range(len(askings)):
        go_on(i, None)
    while waiting:
        asked = dict(waiting)
        answers = iter((yield [query for queries in asked.values() for query in queries]))
        for i, queries in asked.items():
            go_on(i, [next(answers) for _ in queries])
    return returned


def _predictions(queries: Sequence[Query]) -> list[Tensor]:
    """The answers to a round of queries, by one call for all that ask the same network with the same kinds of inputs."""
    answers: dict[int, Tensor] = {}
    calls: dict[tuple[int, frozenset[str]], list[int]] = {}
    for i, query in enumerate(queries):
        calls.setdefault((id(query.network), frozenset(query.inputs)), []).append(i)
    for rows in calls.values():
        asked = [queries[i] for i in rows]
        inputs = {name: _joined([query.inputs[name] for query in asked]) for name in asked[0].inputs}
        x_t, t = _joined([query.x_t for query in asked]), _joined([query.t for query in asked])
        eps = asked[0].network.eps(x_t, t, **inputs)
        answers |= zip(rows, eps.split([len(query.x_t) for query in asked]))
    return [answers[i] for i in range(len(queries))]


def _joined(batches: Sequence[Tensor]) -> Tensor:
    """All rows as one batch. It is laid out in order, whatever the parts are: networks round otherwise in other layouts."""
    return batches[0] if len(batches) == 1 else torch.cat([*batches]).contiguous()
