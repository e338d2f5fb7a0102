"""Algorithm 2 without its barrier, with drifts that are kept and guesses that are predicted: what runs by default.

It differs from `algorithm` in three ways:

- Early dispatch: a step is handed to s as soon as its own iterate is rolled out, not when all are. It shows in no number.
- Reuse (`reuse`): a drift whose theta moved by no more than e since its evaluation is kept instead of evaluated anew. It
  shows in no number at e = 0.
- Prediction (`predict`): steps that are new to the window start from a prediction instead of copies of the last iterate. At
  e = 0 it decides how many iterations are needed, not what comes out.

Where h_dagger changes the points of a cloud, iterates of one step may have different ones: `read_as` reads a drift, and
`distance` a theta, evaluated on some points for others, by their lineage (the paper's proj and unproj). So does `algorithm`.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

from mpiprop.core.theta import State, Theta
from mpiprop.picard.window import (
    ComputationUnit,
    Distance,
    Predictor,
    Promise,
    PseudoInverse,
    Threshold,
    Window,
    copies,
    distance,
    fit,
    moved,
    nothing,
)


def propel(window: Window, s: ComputationUnit, h_dagger: PseudoInverse, *, p: int, T: int, threshold: Threshold,
           d: Distance = distance, gathered: Callable[[], None] = nothing, predict: Predictor = copies,
           reuse: bool = True) -> Iterator[Window]:
    """Slide `window` until theta_T is reached, yielding it after every iteration; see `algorithm.propel`."""
    window = fit(window, p, T, predict)
    theta = deque([window.x.theta, *window.guess])  # theta^k_{tau+j}; each is dropped when its drift is rolled out
    drift = deque(s(theta[j], window.x.tau + j) for j in range(len(window.guess)))  # s(theta^k_{tau+j}), in parallel

    while window.x.tau < T:
        x, errors, scalars = window.x.copy(), [], []
        accepted: State | None = None
        ahead: list[tuple[Theta, Promise | None]] = []  # theta^{k+1} and its drift, from the new tau on
        for j in range(p := len(window.guess)):
            old, arrived = theta.popleft(), drift.popleft().result()
            if j + 1 == p:
                window = replace(window, guess=())
                gathered()
            x = h_dagger(arrived.read_as(old, x.theta), x)  # theta^{k+1}_{tau+j+1}
            losses = arrived.scalars
            del old, arrived  # each is as large as theta
            errors.append(d(x.theta, theta[0]))
            if j == 0:
                step = moved(window.x.theta, x.theta, d)
            if accepted is None:
                scalars.append(losses)
                if errors[j] <= window.e and j + 1 < p:
                    continue
                accepted, stride = x.copy() if j + 1 < p else x, j + 1  # exact up to here
            if reuse and errors[j] <= window.e and j + 1 < p:
                ahead.append((theta[0], drift[0]))
            else:
                ahead.append((x.theta, s(x.theta, x.tau) if x.tau < T else None))

        assert accepted is not None, "the last step of a window ends it"
        q = min(p, T - accepted.tau)
        for new in predict(x, max(0, q + 1 - len(ahead))):  # the window slides on
            ahead.append((new, s(new, accepted.tau + len(ahead)) if len(ahead) < q else None))

        theta, drift = (deque(each) for each in zip(*ahead[:q + 1]))
        window = Window(accepted, tuple(theta)[1:], threshold(window.e, window.k, errors, step), window.k + 1,
                        stride, tuple(errors), tuple(scalars))
        yield window
