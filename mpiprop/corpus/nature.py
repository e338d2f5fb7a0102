"""Plants and food. Design units; each is scaled to one size later."""

from __future__ import annotations

from mpiprop.corpus.colours import BRICK, BROWN, CLAY, CREAM, LEAF, LIGHT, ROSE, TAN, WHITE
from mpiprop.corpus.solids import (BACK, DOWN, UP, Part, Sdf, around, ball, blend, box, capsule, cut, ellipsoid,
                                   frustum, grown, hollow, join, mirrored, moved, plane, prism, rowed, torus, tube,
                                   turned, waved)


def mushroom() -> list[Part]:
    cap = cut(ellipsoid((0, 0, 0.0), (0.54, 0.54, 0.48)), plane(DOWN, -0.02))

    def spots(count: int, latitude: tuple[float, float], size: float, phase: float = 0.0) -> Sdf:
        return around(ball((latitude[0], 0, latitude[1]), size), count, phase)

    return [
        (blend(0.05, cap, torus((0, 0, 0.03), 0.49, 0.045)), 1.0),
        (frustum((0, 0, -0.02), (0, 0, 0.02), 0.36, 0.5), CREAM),
        (blend(0.1, frustum((0, 0, -0.52), (0, 0, 0.0), 0.17, 0.13), ellipsoid((0, 0, -0.44), (0.22, 0.22, 0.13))),
         CREAM),
        (frustum((0, 0, -0.18), (0, 0, -0.1), 0.23, 0.14), WHITE),
        (join(ball((0, 0, 0.415), 0.115), spots(5, (0.31, 0.33), 0.105), spots(8, (0.475, 0.13), 0.075, 0.5)), WHITE),
    ]


def tree() -> list[Part]:
    crown = [
        ball(c, r)
        for c, r in (
            ((0, 0, 0.3), 0.25),
            ((0.2, 0.1, 0.12), 0.22),
            ((-0.18, 0.16, 0.12), 0.22),
            ((0.0, -0.23, 0.1), 0.22),
            ((-0.2, -0.08, 0.2), 0.2),
            ((0.14, -0.1, 0.24), 0.2),
        )
    ]
    return [
        (blend(0.05, *crown), 1.0),
        (
            blend(
                0.06,
                frustum((0, 0, -0.58), (0, 0, 0.0), 0.095, 0.06),
                frustum((0, 0, -0.6), (0, 0, -0.5), 0.16, 0.08),
                capsule((0, 0, -0.2), (0.16, 0.1, 0.05), 0.035),
                capsule((0, 0, -0.14), (-0.08, -0.16, 0.05), 0.035),
            ),
            BROWN,
        ),
    ]


def cactus() -> list[Part]:
    stem = blend(
        0.05,
        capsule((0, 0, -0.3), (0, 0, 0.42), 0.14),
        tube([(0, 0.1, -0.06), (0, 0.32, -0.02), (0, 0.34, 0.22)], 0.085),
        tube([(0, -0.1, 0.06), (0, -0.3, 0.1), (0, -0.32, 0.32)], 0.08),
        tube([(0.1, 0, 0.1), (0.25, 0, 0.13), (0.26, 0, 0.26)], 0.065),
    )
    spines = join(
        *(
            moved(rowed(around(ball((0.142, 0, 0), 0.018), 8, phase), 2, 0.17, 4), (0, 0, z))
            for phase, z in ((0.5, 0.13), (0.0, 0.045))
        )
    )
    return [
        (stem, 1.0),
        (spines, WHITE),
        (
            moved(
                join(around(ellipsoid((0.07, 0, 0), (0.07, 0.04, 0.03)), 6), ball((0, 0, 0.02), 0.045)), (0, 0, 0.57)
            ),
            ROSE,
        ),
        (frustum((0, 0, -0.6), (0, 0, -0.32), 0.17, 0.23), CLAY),
        (frustum((0, 0, -0.36), (0, 0, -0.27), 0.265), CLAY),
        (frustum((0, 0, -0.3), (0, 0, -0.26), 0.22), (0.3, 0.18, 0.1)),
    ]


def apple() -> list[Part]:
    return [
        (blend(0.2, torus((0, 0, 0.04), 0.2, 0.28), ellipsoid((0, 0, -0.14), (0.3, 0.3, 0.28))), 1.0),
        (tube([(0, 0, 0.12), (0.0, 0.02, 0.34), (0.02, 0.07, 0.5)], 0.03), BROWN),
        (turned(ellipsoid((0.17, 0, 0.42), (0.19, 0.09, 0.03)), 1, -8), LEAF),
    ]


def pumpkin() -> list[Part]:
    ribs = around(ellipsoid((0.2, 0, 0), (0.3, 0.2, 0.38)), 10, 0.5)
    shell = join(ribs, ellipsoid((0, 0, 0), (0.4, 0.4, 0.34)))
    eye = prism([(0.06, 0.05), (0.22, 0.05), (0.14, 0.19)], 0.3, 0.4, 0)
    grin = cut(
        prism([(-0.28, -0.02), (-0.12, -0.22), (0.12, -0.22), (0.28, -0.02)], 0.3, 0.4, 0),
        hollow(plane(UP, 0.9), ellipsoid((0.4, 0, 0.12), (0.6, 0.32, 0.19))),
    )
    teeth = join(
        box((0.4, 0.08, -0.08), (0.3, 0.035, 0.05), 0.003), box((0.4, -0.1, -0.18), (0.3, 0.035, 0.05), 0.003)
    )
    face = join(
        mirrored(eye, 1), hollow(grin, teeth), prism([(-0.035, -0.02), (0.035, -0.02), (0, 0.05)], 0.3, 0.4, 0)
    )
    return [
        (hollow(shell, cut(face, plane(BACK, -0.36))), 1.0),
        (cut(grown(shell, -0.045), plane(BACK, -0.1)), (0.16, 0.09, 0.03)),
        (grown(shell, -0.1), LIGHT),
        (
            blend(
                0.04,
                frustum((0, 0, 0.3), (-0.02, 0, 0.46), 0.08, 0.05),
                capsule((-0.02, 0, 0.42), (-0.09, 0.03, 0.5), 0.045),
            ),
            (0.3, 0.38, 0.12),
        ),
    ]


def donut() -> list[Part]:
    def sprinkles(count: int, radius: float, height: float, phase: float) -> Sdf:
        return around(capsule((radius, -0.03, height), (radius + 0.03, 0.03, height), 0.019), count, phase)

    flat: list[Part] = [
        (torus((0, 0, -0.02), 0.33, 0.185), TAN),
        (cut(torus((0, 0, 0.0), 0.33, 0.195), waved(0.015, 0.03, 9)), 1.0),
        (sprinkles(6, 0.27, 0.185, 0.2), WHITE),
        (sprinkles(5, 0.4, 0.175, 0.7), LIGHT),
        (sprinkles(6, 0.36, 0.185, 0.0), (0.2, 0.5, 0.95)),
        (sprinkles(6, 0.21, 0.145, 0.6), (1.0, 0.35, 0.6)),
        (sprinkles(7, 0.455, 0.135, 0.3), WHITE),
    ]
    return [(turned(solid, 1, 50), colour) for solid, colour in flat]


def hamburger() -> list[Part]:
    bun = cut(ellipsoid((0, 0, 0.08), (0.48, 0.48, 0.4)), plane(DOWN, -0.09))
    seeds = join(
        *(
            around(ellipsoid((r, 0, z), (0.04, 0.025, 0.025)), count, phase)
            for r, z, count, phase in ((0.13, 0.465, 4, 0.0), (0.27, 0.41, 7, 0.5), (0.385, 0.32, 10, 0.0))
        )
    )
    return [
        (blend(0.04, bun, torus((0, 0, 0.12), 0.44, 0.035)), 1.0),
        (seeds, (1.0, 0.96, 0.85)),
        (grown(cut(frustum((0, 0, -0.02), (0, 0, 0.08), 0.52), waved(0.0, 0.035, 11)), 0.01), (0.45, 0.8, 0.2)),
        (grown(frustum((0, 0, -0.035), (0, 0, 0.0), 0.46), 0.02), BRICK),
        (grown(prism([(-0.47, -0.47), (0.47, -0.47), (0.47, 0.47), (-0.47, 0.47)], 0.012, -0.07, 2), 0.006),
         (1.0, 0.78, 0.1)),
        (grown(frustum((0, 0, -0.17), (0, 0, -0.1), 0.45), 0.03), (0.33, 0.16, 0.08)),
        (grown(frustum((0, 0, -0.36), (0, 0, -0.23), 0.4, 0.43), 0.04), 1.0),
    ]
