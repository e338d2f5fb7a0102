"""Animals. Design units; each is scaled to one size later."""

from __future__ import annotations

from mpiprop.corpus.colours import BLACK, CARROT, CREAM, DARK, ROSE, WHITE
from mpiprop.corpus.solids import (BACK, DOWN, FRONT, Part, Point, around, ball, blend, capsule, cut, ellipsoid,
                                   frustum, grown, join, mirrored, moved, plane, prism, tube, turned)


def eyes(centre: Point, radius: float, pupil: float = 0.6, toward: Point = (1.0, 0.0, 0.0)) -> list[Part]:
    """Returns two white balls and the black ones that look `toward` out of them."""
    inner = [c + t * radius * (1.12 - pupil) for c, t in zip(centre, toward)]
    return [(mirrored(ball(centre, radius), 1), WHITE), (mirrored(ball(tuple(inner), pupil * radius), 1), BLACK)]


def duck() -> list[Part]:
    return [
        (
            blend(
                0.14,
                ellipsoid((-0.08, 0, -0.2), (0.4, 0.3, 0.24)),
                ball((0.17, 0, 0.2), 0.22),
                frustum((-0.28, 0, -0.14), (-0.52, 0, 0.08), 0.16, 0.03),
                frustum((0.14, 0, -0.1), (0.17, 0, 0.1), 0.15),
            ),
            1.0,
        ),
        (
            mirrored(
                blend(
                    0.06,
                    turned(ellipsoid((-0.12, 0.27, -0.16), (0.24, 0.07, 0.13)), 2, 4),
                    capsule((-0.28, 0.29, -0.08), (-0.38, 0.31, -0.02), 0.05),
                ),
                1,
            ),
            0.78,
        ),
        (join(ellipsoid((0.42, 0, 0.2), (0.15, 0.13, 0.038)), ellipsoid((0.4, 0, 0.13), (0.12, 0.11, 0.032))),
         CARROT),
        *eyes((0.31, 0.12, 0.3), 0.062, 0.62, (0.75, 0.55, 0.2)),
    ]


def cat() -> list[Part]:
    ear = frustum((0.06, 0.13, 0.36), (0.05, 0.17, 0.6), 0.1, 0.004)
    return [
        (
            blend(
                0.08,
                ellipsoid((-0.12, 0, -0.3), (0.25, 0.22, 0.26)),
                ellipsoid((0.0, 0, -0.08), (0.17, 0.16, 0.26)),
                mirrored(ellipsoid((-0.05, 0.17, -0.42), (0.2, 0.1, 0.14)), 1),
            ),
            1.0,
        ),
        (
            mirrored(
                blend(
                    0.05,
                    frustum((0.13, 0.08, -0.52), (0.08, 0.08, -0.15), 0.062, 0.075),
                    ellipsoid((0.18, 0.08, -0.51), (0.1, 0.07, 0.055)),
                ),
                1,
            ),
            1.0,
        ),
        (mirrored(ellipsoid((0.21, 0.085, -0.525), (0.085, 0.065, 0.05)), 1), WHITE),
        (blend(0.05, ellipsoid((0.08, 0, 0.25), (0.2, 0.23, 0.19)), mirrored(ear, 1)), 1.0),
        (mirrored(frustum((0.12, 0.13, 0.38), (0.09, 0.17, 0.55), 0.06, 0.004), 1), ROSE),
        (ellipsoid((0.12, 0, -0.12), (0.09, 0.1, 0.2)), WHITE),
        (mirrored(ellipsoid((0.24, 0.05, 0.19), (0.07, 0.065, 0.055)), 1), WHITE),
        (ellipsoid((0.3, 0, 0.225), (0.025, 0.035, 0.022)), (0.9, 0.4, 0.5)),
        (mirrored(ellipsoid((0.225, 0.1, 0.29), (0.045, 0.06, 0.06)), 1), (0.75, 0.9, 0.25)),
        (mirrored(ellipsoid((0.255, 0.105, 0.29), (0.025, 0.024, 0.052)), 1), BLACK),
        (mirrored(join(*(capsule((0.26, 0.1, 0.19), (0.24, 0.33, 0.19 + dz), 0.008) for dz in (-0.05, 0.03))), 1),
         (0.85, 0.85, 0.85)),
        (
            blend(
                0.04,
                tube(
                    [
                        (-0.3, 0, -0.48),
                        (-0.46, 0.06, -0.44),
                        (-0.52, 0.1, -0.28),
                        (-0.46, 0.12, -0.1),
                        (-0.5, 0.12, 0.06),
                    ],
                    0.055,
                ),
            ),
            1.0,
        ),
        (ball((-0.5, 0.12, 0.06), 0.066), WHITE),
    ]


def fish() -> list[Part]:
    body = ellipsoid((0.06, 0, 0), (0.42, 0.19, 0.28))
    return [
        (blend(0.08, body, frustum((-0.2, 0, 0), (-0.42, 0, 0), 0.12, 0.05)), 1.0),
        (join(*(cut(grown(body, 0.008), plane(FRONT, x + 0.045), plane(BACK, -x + 0.045)) for x in (0.13, -0.12))),
         WHITE),
        (
            join(
                *(
                    grown(prism(c, 0.014), 0.014)
                    for c in (
                        [(-0.38, -0.03), (-0.38, 0.05), (-0.6, 0.28), (-0.62, 0.2), (-0.54, 0.0)],
                        [(-0.38, -0.05), (-0.54, 0.0), (-0.62, -0.2), (-0.6, -0.28)][::-1],
                    )
                )
            ),
            0.75,
        ),
        (grown(prism([(-0.2, 0.2), (0.18, 0.24), (-0.02, 0.4), (-0.2, 0.4)], 0.012), 0.014), 0.75),
        (grown(prism([(-0.12, -0.36), (0.04, -0.24), (-0.1, -0.2)], 0.012), 0.014), 0.75),
        (mirrored(turned(ellipsoid((-0.02, 0.23, -0.06), (0.13, 0.025, 0.085)), 2, 12), 1), 0.75),
        (ellipsoid((0.46, 0, -0.06), (0.045, 0.07, 0.035)), (0.85, 0.35, 0.35)),
        *eyes((0.3, 0.12, 0.08), 0.075, 0.6, (0.5, 0.8, 0.1)),
    ]


def penguin() -> list[Part]:
    body = blend(0.1, ellipsoid((0, 0, -0.16), (0.25, 0.29, 0.38)), ball((0.02, 0, 0.32), 0.21))
    return [
        (body, 1.0),
        (
            cut(
                grown(
                    blend(
                        0.08,
                        ellipsoid((0.05, 0, -0.18), (0.22, 0.22, 0.32)),
                        mirrored(ball((0.1, 0.07, 0.32), 0.13), 1),
                    ),
                    0.012,
                ),
                grown(body, 0.014),
            ),
            WHITE,
        ),
        (mirrored(blend(0.03, turned(ellipsoid((0.0, 0.27, -0.13), (0.1, 0.04, 0.25)), 0, 12)), 1), 0.75),
        (frustum((0.18, 0, 0.3), (0.34, 0, 0.28), 0.07, 0.008), CARROT),
        (mirrored(ellipsoid((0.12, 0.13, -0.54), (0.17, 0.1, 0.05)), 1), CARROT),
        (frustum((-0.2, 0, -0.4), (-0.34, 0, -0.52), 0.1, 0.02), 1.0),
        (mirrored(ball((0.2, 0.08, 0.38), 0.035), 1), BLACK),
    ]


def turtle() -> list[Part]:
    skin = (0.62, 0.78, 0.35)
    dome = cut(ellipsoid((-0.04, 0, -0.08), (0.42, 0.36, 0.34)), plane(DOWN, 0.1))
    plates = join(
        ellipsoid((-0.04, 0, 0.2), (0.14, 0.13, 0.08)),
        moved(around(ellipsoid((0.25, 0, 0.06), (0.09, 0.1, 0.1)), 7), (-0.04, 0, 0)),
    )
    return [
        (dome, 1.0),
        (cut(grown(dome, 0.014), plates), 0.62),
        (blend(0.02, ellipsoid((-0.04, 0, -0.12), (0.46, 0.4, 0.055))), 0.8),
        (ellipsoid((-0.04, 0, -0.15), (0.38, 0.33, 0.08)), CREAM),
        (
            blend(
                0.06, ellipsoid((0.5, 0, 0.06), (0.14, 0.115, 0.12)), capsule((0.3, 0, -0.12), (0.46, 0, 0.0), 0.08)
            ),
            skin,
        ),
        (
            mirrored(
                blend(
                    0.04,
                    capsule((0.2, 0.22, -0.16), (0.27, 0.34, -0.26), 0.075),
                    ellipsoid((0.3, 0.36, -0.29), (0.1, 0.08, 0.045)),
                ),
                1,
            ),
            skin,
        ),
        (
            mirrored(
                blend(
                    0.04,
                    capsule((-0.26, 0.2, -0.16), (-0.34, 0.3, -0.26), 0.075),
                    ellipsoid((-0.34, 0.32, -0.29), (0.1, 0.08, 0.045)),
                ),
                1,
            ),
            skin,
        ),
        (frustum((-0.42, 0, -0.14), (-0.58, 0, -0.2), 0.05, 0.006), skin),
        *eyes((0.56, 0.075, 0.11), 0.048, 0.6, (0.7, 0.6, 0.2)),
        (ellipsoid((0.61, 0, 0.02), (0.03, 0.06, 0.012)), DARK),
    ]


def elephant() -> list[Part]:
    return [
        (
            blend(
                0.07,
                ellipsoid((-0.12, 0, 0.02), (0.36, 0.26, 0.26)),
                ball((0.26, 0, 0.16), 0.2),
                tube([(0.38, 0, 0.14), (0.5, 0, -0.02), (0.53, 0, -0.2), (0.52, 0, -0.33)], 0.062),
                capsule((0.52, 0, -0.33), (0.6, 0, -0.38), 0.05),
                mirrored(
                    join(
                        frustum((0.1, 0.14, -0.44), (0.1, 0.14, -0.05), 0.1),
                        frustum((-0.32, 0.14, -0.44), (-0.32, 0.14, -0.05), 0.1),
                    ),
                    1,
                ),
            ),
            1.0,
        ),
        (mirrored(turned(ellipsoid((0.12, 0.32, 0.14), (0.05, 0.2, 0.22)), 2, 22), 1), 0.8),
        (mirrored(turned(ellipsoid((0.15, 0.33, 0.13), (0.04, 0.14, 0.16)), 2, 22), 1), ROSE),
        (mirrored(tube([(0.36, 0.1, 0.02), (0.46, 0.14, -0.1), (0.56, 0.14, -0.1)], 0.03), 1), WHITE),
        *eyes((0.41, 0.115, 0.22), 0.04, 0.65, (0.75, 0.6, 0.1)),
        (tube([(-0.46, 0, 0.08), (-0.54, 0, -0.04), (-0.55, 0, -0.18)], 0.02), 1.0),
        (ellipsoid((-0.55, 0, -0.2), (0.03, 0.03, 0.06)), DARK),
        (mirrored(join(*(ellipsoid((x + 0.075, 0.14, -0.42), (0.04, 0.075, 0.03)) for x in (0.1, -0.32))), 1), WHITE),
    ]


def bear() -> list[Part]:
    return [
        (ellipsoid((-0.04, 0, -0.2), (0.24, 0.27, 0.29)), 1.0),
        (ellipsoid((0.07, 0, -0.2), (0.16, 0.18, 0.2)), CREAM),
        (ellipsoid((0.0, 0, 0.27), (0.24, 0.27, 0.23)), 1.0),
        (mirrored(ellipsoid((-0.02, 0.21, 0.47), (0.07, 0.1, 0.1)), 1), 1.0),
        (mirrored(ellipsoid((0.035, 0.21, 0.47), (0.04, 0.065, 0.065)), 1), CREAM),
        (ellipsoid((0.2, 0, 0.2), (0.1, 0.115, 0.09)), CREAM),
        (ellipsoid((0.29, 0, 0.235), (0.03, 0.05, 0.035)), BLACK),
        (mirrored(ball((0.205, 0.1, 0.33), 0.038), 1), BLACK),
        (mirrored(ball((0.235, 0.093, 0.343), 0.013), 1), WHITE),
        (mirrored(capsule((0.0, 0.24, 0.0), (0.16, 0.36, -0.14), 0.085), 1), 1.0),
        (mirrored(capsule((0.05, 0.17, -0.42), (0.3, 0.24, -0.4), 0.11), 1), 1.0),
        (mirrored(ellipsoid((0.4, 0.25, -0.4), (0.03, 0.085, 0.085)), 1), CREAM),
        (ball((-0.28, 0, -0.34), 0.07), 1.0),
    ]
