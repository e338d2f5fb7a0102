"""Vehicles. Design units; each is scaled to one size later."""

from __future__ import annotations

from mpiprop.corpus.colours import BLACK, BRICK, BROWN, CARROT, DARK, GREY, LIGHT, WHITE
from mpiprop.corpus.solids import (BACK, DOWN, UP, Part, around, ball, blend, box, capsule, cut, ellipsoid, frustum,
                                   grown, hollow, join, mirrored, moved, plane, prism, rowed, torus, tube, turned)

PANE = (0.45, 0.7, 0.9)


def car() -> list[Part]:
    profile = [(-0.4, 0.02), (0.24, 0.02), (0.08, 0.25), (-0.28, 0.25)]
    cabin = grown(prism(profile, 0.17), 0.03)
    glass = grown(cabin, 0.008)
    return [
        (blend(0.03, box((0, 0, -0.08), (0.58, 0.25, 0.1), 0.07), box((0.38, 0, -0.04), (0.17, 0.22, 0.08), 0.05)),
         1.0),
        (cabin, 1.0),
        (
            cut(
                glass,
                join(
                    box((0, 0, 0.15), (0.9, 0.155, 0.085), 0.001),
                    *(box((x, 0, 0.14), (h, 0.9, 0.07), 0.001) for x, h in ((-0.22, 0.11), (0.04, 0.11))),
                ),
                plane(UP, 0.235),
            ),
            PANE,
        ),
        (box((0, 0, -0.16), (0.56, 0.23, 0.03), 0.02), DARK),
        (mirrored(frustum((0.35, 0.14, -0.17), (0.35, 0.265, -0.17), 0.125), 1), BLACK),
        (mirrored(frustum((-0.35, 0.14, -0.17), (-0.35, 0.265, -0.17), 0.125), 1), BLACK),
        (mirrored(frustum((0.35, 0.2, -0.17), (0.35, 0.275, -0.17), 0.065), 1), GREY),
        (mirrored(frustum((-0.35, 0.2, -0.17), (-0.35, 0.275, -0.17), 0.065), 1), GREY),
        (mirrored(frustum((0.52, 0.165, -0.04), (0.58, 0.165, -0.04), 0.055), 1), LIGHT),
        (box((0.565, 0, -0.045), (0.02, 0.095, 0.035), 0.01), DARK),
        (rowed(box((0.575, 0, -0.045), (0.018, 0.008, 0.033), 0.004), 1, 0.045, 4), GREY),
        (box((0.57, 0, -0.145), (0.035, 0.235, 0.025), 0.015), GREY),
        (box((-0.57, 0, -0.145), (0.035, 0.235, 0.025), 0.015), GREY),
        (mirrored(box((-0.565, 0.175, -0.04), (0.025, 0.05, 0.035), 0.01), 1), BRICK),
        (box((-0.575, 0, -0.06), (0.015, 0.075, 0.03), 0.005), WHITE),
        (mirrored(box((0.16, 0.27, 0.05), (0.025, 0.035, 0.022), 0.01), 1), 1.0),
        (mirrored(box((-0.06, 0.25, -0.02), (0.03, 0.006, 0.008), 0.002), 1), GREY),
    ]


def rocket() -> list[Part]:
    body = ellipsoid((0, 0, -0.06), (0.2, 0.2, 0.64))
    fin = prism([(0.1, -0.44), (0.36, -0.52), (0.36, -0.38), (0.14, -0.08)], 0.022)
    return [
        (cut(body, plane(DOWN, 0.4), plane(UP, 0.28)), 1.0),
        (cut(body, plane(DOWN, -0.28)), BRICK),
        (cut(grown(body, 0.008), plane(UP, 0.29), plane(DOWN, -0.25)), WHITE),
        (cut(grown(body, 0.008), plane(UP, -0.24), plane(DOWN, 0.28)), WHITE),
        (around(fin, 4, 0.5), BRICK),
        (frustum((0, 0, -0.47), (0, 0, -0.38), 0.15, 0.12), DARK),
        (frustum((0, 0, -0.62), (0, 0, -0.46), 0.01, 0.12), CARROT),
        (frustum((0, 0, -0.56), (0, 0, -0.465), 0.03, 0.125), LIGHT),
        (ellipsoid((0.15, 0, 0.08), (0.075, 0.085, 0.085)), PANE),
        (torus((0.19, 0, 0.08), 0.09, 0.025, 0), GREY),
    ]


def airplane() -> list[Part]:
    wing = prism([(-0.14, 0.05), (0.14, 0.05), (0.0, 0.6), (-0.1, 0.6)], 0.022, -0.05, 2)
    tail = prism([(-0.56, 0.02), (-0.38, 0.02), (-0.48, 0.24), (-0.57, 0.24)], 0.016, 0.05, 2)
    return [
        (
            blend(
                0.1, ellipsoid((0.1, 0, 0), (0.5, 0.115, 0.125)), frustum((-0.1, 0, 0), (-0.58, 0, 0.06), 0.11, 0.035)
            ),
            1.0,
        ),
        (mirrored(grown(wing, 0.012), 1), 0.85),
        (mirrored(grown(tail, 0.01), 1), 0.85),
        (grown(prism([(-0.58, 0.05), (-0.36, 0.05), (-0.5, 0.33), (-0.59, 0.33)], 0.01), 0.012), 1.0),
        (
            cut(
                grown(ellipsoid((0.1, 0, 0), (0.5, 0.115, 0.125)), 0.008),
                box((0.47, 0, 0.075), (0.075, 0.2, 0.035), 0.001),
            ),
            (0.2, 0.3, 0.45),
        ),
        (moved(rowed(mirrored(ball((0, 0.108, 0.035), 0.022), 1), 0, 0.085, 7), (0.08, 0, 0)), (0.2, 0.3, 0.45)),
        (mirrored(frustum((0.0, 0.24, -0.12), (0.17, 0.24, -0.12), 0.05, 0.06), 1), WHITE),
        (mirrored(frustum((0.165, 0.24, -0.12), (0.175, 0.24, -0.12), 0.045), 1), DARK),
        (mirrored(box((0.05, 0.24, -0.08), (0.05, 0.012, 0.035), 0.005), 1), GREY),
    ]


def boat() -> list[Part]:
    w, long, deck = 0.26, 0.6, -0.16
    r = (w * w + long * long) / (2 * w)
    sides = cut(ball((-0.02, w - r, deck), r), ball((-0.02, r - w, deck), r), plane(BACK, 0.42))
    main = turned(prism([(-0.42, 0.0), (-0.03, 0.0), (-0.03, 0.66)], 0.012), 2, 38)
    jib = turned(prism([(0.03, 0.0), (0.44, 0.0), (0.03, 0.56)], 0.012), 2, -36)
    return [
        (cut(sides, plane(UP, deck), plane(DOWN, 0.42)), 1.0),
        (cut(grown(sides, 0.014), plane(UP, deck + 0.02), plane(DOWN, -deck + 0.035)), WHITE),
        (cut(grown(sides, -0.03), plane(UP, deck + 0.026), plane(DOWN, -deck)), (0.75, 0.52, 0.3)),
        (box((-0.2, 0, deck + 0.05), (0.13, 0.1, 0.05), 0.02), WHITE),
        (frustum((0, 0, deck), (0, 0, 0.6), 0.02), BROWN),
        (turned(capsule((0, 0, -0.06), (-0.43, 0, -0.06), 0.016), 2, 38), BROWN),
        (moved(main, (0, 0, -0.05)), (0.97, 0.95, 0.9)),
        (moved(jib, (0, 0, -0.07)), 1.0),
        (box((-0.055, 0, 0.57), (0.055, 0.008, 0.035), 0.003), BRICK),
    ]


def train() -> list[Part]:
    wheels = [
        mirrored(frustum((x, 0.12, z), (x, 0.2, z), r), 1)
        for x, z, r in ((-0.36, -0.26, 0.14), (-0.06, -0.26, 0.14), (0.22, -0.3, 0.1), (0.42, -0.3, 0.1))
    ]
    hubs = [
        mirrored(frustum((x, 0.15, z), (x, 0.212, z), r), 1)
        for x, z, r in ((-0.36, -0.26, 0.085), (-0.06, -0.26, 0.085), (0.22, -0.3, 0.055), (0.42, -0.3, 0.055))
    ]
    cab = hollow(
        box((-0.38, 0, 0.08), (0.17, 0.21, 0.24), 0.02),
        *(box((-0.38, 0, 0.17), h, 0.02) for h in ((0.09, 0.5, 0.09), (0.5, 0.12, 0.08))),
    )
    return [
        (frustum((-0.3, 0, 0.02), (0.42, 0, 0.02), 0.17), 1.0),
        (frustum((0.36, 0, 0.02), (0.48, 0, 0.02), 0.185), DARK),
        (frustum((0.48, 0, 0.02), (0.5, 0, 0.02), 0.13), GREY),
        (rowed(torus((0.0, 0, 0.02), 0.172, 0.012, 0), 0, 0.2, 3), LIGHT),
        (cab, 1.0),
        (box((-0.38, 0, 0.18), (0.12, 0.16, 0.1), 0.01), DARK),
        (box((-0.38, 0, 0.34), (0.22, 0.25, 0.03), 0.02), DARK),
        (frustum((0.34, 0, 0.15), (0.34, 0, 0.42), 0.06, 0.065), DARK),
        (frustum((0.34, 0, 0.36), (0.34, 0, 0.45), 0.07, 0.115), DARK),
        (frustum((0.34, 0, 0.42), (0.34, 0, 0.45), 0.122), LIGHT),
        (blend(0.02, frustum((0.08, 0, 0.1), (0.08, 0, 0.2), 0.075), ball((0.08, 0, 0.21), 0.075)), LIGHT),
        (box((-0.02, 0, -0.19), (0.52, 0.17, 0.05), 0.01), DARK),
        (box((0.5, 0, -0.2), (0.025, 0.22, 0.05), 0.01), BRICK),
        (
            cut(
                prism([(0.5, -0.4), (0.66, -0.4), (0.5, -0.2)], 0.2), plane((1, 1, 0), 0.49), plane((1, -1, 0), 0.49)
            ),
            BRICK,
        ),
        (join(*wheels), BLACK),
        (join(*hubs), BRICK),
        (mirrored(box((-0.21, 0.22, -0.26), (0.2, 0.012, 0.02), 0.005), 1), GREY),
        (ball((0.5, 0, 0.02), 0.07), LIGHT),
    ]


def helicopter() -> list[Part]:
    cabin = ellipsoid((0.14, 0, -0.08), (0.34, 0.23, 0.24))
    rotor = box((0.24, 0, 0.0), (0.25, 0.04, 0.012), 0.01)
    return [
        (blend(0.1, cabin, frustum((0.0, 0, -0.02), (-0.52, 0, 0.04), 0.12, 0.045)), 1.0),
        (cut(grown(cabin, 0.008), plane((-1, 0, -0.55), -0.2), plane(DOWN, 0.14), plane(UP, 0.1)), PANE),
        (cut(grown(cabin, 0.014), box((0.3, 0, 0), (0.3, 0.014, 0.4), 0.001)), 1.0),
        (mirrored(cut(grown(cabin, 0.008), box((0.09, 0.2, -0.03), (0.08, 0.12, 0.08), 0.01)), 1), PANE),
        (grown(prism([(-0.57, 0.02), (-0.43, 0.02), (-0.52, 0.24), (-0.61, 0.24)], 0.008), 0.012), 1.0),
        (
            moved(
                around(turned(box((0.07, 0, 0), (0.075, 0.02, 0.01), 0.004), 0, 90), 4, 0.0, 1), (-0.54, 0.06, 0.08)
            ),
            DARK,
        ),
        (box((0.06, 0, 0.16), (0.14, 0.09, 0.06), 0.03), 0.75),
        (frustum((0.06, 0, 0.14), (0.06, 0, 0.3), 0.03), GREY),
        (moved(around(rotor, 4, 0.3), (0.06, 0, 0.29)), DARK),
        (ball((0.06, 0, 0.3), 0.05), GREY),
        (mirrored(tube([(-0.2, 0.21, -0.44), (0.36, 0.21, -0.44), (0.46, 0.21, -0.38)], 0.028), 1), DARK),
        (mirrored(join(*(capsule((x, 0.12, -0.24), (x, 0.21, -0.44), 0.022) for x in (0.0, 0.26))), 1), GREY),
    ]
