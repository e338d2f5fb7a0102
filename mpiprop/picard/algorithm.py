"""Algorithm 2 of the DreamPropeller paper (arXiv 2311.17082, appendix B) in the paper's order and letters.

Every iteration evaluates the whole window anew, waits for all of it, rolls it out, and only then slides. Steps that are new
to the window start as copies of the last iterate. `pipelined` has the same arguments and needs less time.
"""

from collections.abc import Callable, Iterator, Sequence

from mpiprop.core.theta import Drift, State, Theta
from mpiprop.picard.window import ComputationUnit, Distance, PseudoInverse, Threshold, Window, distance, fit, moved, nothing


def propel(window: Window, s: ComputationUnit, h_dagger: PseudoInverse, *, p: int, T: int,
           threshold: Threshold, d: Distance = distance, gathered: Callable[[], None] = nothing) -> Iterator[Window]:
    """Slide `window` until theta_T is reached, yielding it after every iteration.

    window: x at the first step, the guesses that there are already, and e
    s: the computation unit; hands out a step and returns a promise of its drift
    h_dagger: the pseudo-inverse; takes over the moments of the state that it is given
    p: size of the window, smaller at the horizon
    T: number of steps
    threshold: rule for the next e
    d: mean square distance of two thetas
    gathered: called in each iteration when its last drift is there. Nothing waits after that, so whoever keeps the window that
        was yielded before, in case the run is interrupted, may let its guesses go
    Raises what promises of `s` raise; the window that was yielded last is unchanged then.
    """
    window = fit(window, p, T)  # theta^0_i <- theta for all i
    while window.x.tau < T:
        window = iteration(window, s, h_dagger, T, threshold, d, gathered)
        yield window


def iteration(window: Window, s: ComputationUnit, h_dagger: PseudoInverse, T: int, threshold: Threshold,
              d: Distance, gathered: Callable[[], None]) -> Window:
    """The body of the paper's while loop."""
    tau, p, e = window.x.tau, len(window.guess), window.e
    old = [window.x.theta, *window.guess]  # theta^k_{tau+j}, j = 0 .. p

    # Dispatch theta^k_{tau+j} to different ranks and gather s(theta^k_{tau+j}), j = 0 .. p - 1.
    drift = evaluated(s, old[:p], tau)
    gathered()

    # theta^{k+1}_{tau+j+1} <- h_dagger(s(theta^k_{tau+j}), ... h_dagger(s(theta^k_tau), theta^k_tau) ...)
    # error <- {d(theta^{k+1}_{tau+j}, theta^k_{tau+j})}, j = 1 .. p, the mean square, 1/D d^2 in the paper
    # skip <- min({j : error_j > e} with {p}); the optimiser's averages are kept of that state alone
    x, new, error = window.x.copy(), [window.x.theta], []
    accepted: State | None = None
    for j in range(1, p + 1):
        x = h_dagger(drift[j - 1].read_as(old[j - 1], x.theta), x)
        new.append(x.theta)
        error.append(d(new[j], old[j]))
        if accepted is None and (j == p or not error[-1] <= e):  # NaN is beyond e, too
            accepted, skip = x.copy() if j < p else x, j

    # theta^{k+1}_{tau+j} <- theta^{k+1}_{tau+p}, j = p .. skip + p: the new window
    new += [new[p]] * skip

    assert accepted is not None, "j = p ends the loop"
    # tau <- tau + skip, k <- k + 1, e <- gamma e + (1 - gamma) M(error), p <- min(p, T - tau)
    tau = tau + skip
    p = min(p, T - tau)
    return Window(accepted, tuple(new[skip + 1:skip + 1 + p]), threshold(e, window.k, error, moved(old[0], new[1], d)),
                  window.k + 1, skip, tuple(error), tuple(each.scalars for each in drift[:skip]))


def evaluated(s: ComputationUnit, theta: Sequence[Theta], tau: int) -> list[Drift]:
    """The drifts of theta_tau, theta_{tau+1}, ...: all dispatched before the first is waited for."""
    promises = [s(each, tau + j) for j, each in enumerate(theta)]
    return [promise.result() for promise in promises]
