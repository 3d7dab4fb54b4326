"""The single things of a street for render_streets.py: functions of a Street, a place and a heading."""

import math

from street_shapes import BIKE, BUS, CAR, LIGHT, MOTORBIKE, PERSON, POLE, RIDER, SIGN, TRUCK, VEGETATION

BLACK, GREY, WHITE = (0.012, 0.012, 0.014), (0.22, 0.22, 0.23), (0.8, 0.8, 0.78)
RED, YELLOW, GREEN, BLUE = (0.75, 0.02, 0.02), (0.85, 0.6, 0.02), (0.02, 0.5, 0.1), (0.02, 0.08, 0.6)
SKINS = ((0.75, 0.5, 0.36), (0.45, 0.27, 0.17), (0.18, 0.1, 0.06), (0.85, 0.62, 0.48))
PLATES = (  # shape, rim, face of a road sign
    ("rod", RED, WHITE),
    ("rod", BLUE, BLUE),
    ("plate8", RED, RED),
    ("plate3", RED, WHITE),
    ("diamond", YELLOW, WHITE),
    ("cube", BLUE, WHITE),
    ("cube", YELLOW, BLACK),
    ("cube", GREEN, WHITE),
)
QUARTER = math.pi / 2


def tree(street, x, y):
    r = street.rng
    trunk, size = r.uniform(1.8, 3.0), r.uniform(1.6, 2.8)
    street.put("rod", (x, y, trunk / 2), (0.28, 0.28, trunk + 0.6), "stone", (0.13, 0.08, 0.05), VEGETATION)
    hue = r.uniform(0.22, 0.33) if street.look == "source" else r.uniform(0.14, 0.3)
    for _ in range(r.randint(4, 7)):
        leaf = street.colour(hue, r.uniform(0.6, 0.9), r.uniform(0.18, 0.42))
        at = (x + r.uniform(-0.4, 0.4) * size, y + r.uniform(-0.4, 0.4) * size, trunk + size * r.uniform(0.25, 0.95))
        turn = (r.uniform(0, 6), r.uniform(0, 6), 0)
        street.put("leaves", at, (size * r.uniform(0.6, 1.0),) * 3, "leaf", leaf, VEGETATION, turn)


def pole(street, x, y, height, thick=0.15, shade=GREY):
    street.put("rod", (x, y, height / 2), (thick, thick, height), "paint", shade, POLE)


def lamp(street, x, y):
    side, height = (1 if x > 0 else -1), street.rng.uniform(5, 7)
    shade = street.rng.choice((GREY, BLACK, (0.1, 0.16, 0.12)))
    pole(street, x, y, height, 0.2, shade)
    street.put("rod", (x - 0.7 * side, y, height), (0.12, 0.12, 1.5), "paint", shade, POLE, (0, QUARTER, 0))
    street.put("cube", (x - 1.4 * side, y, height), (0.7, 0.3, 0.16), "paint", shade, POLE)


def sign(street, x, y):
    r, z, wide = street.rng, street.rng.uniform(2.2, 3.1), street.rng.uniform(0.8, 1.1)
    pole(street, x, y, z + 0.3, 0.13, (0.35, 0.35, 0.36))
    shape, rim, face = r.choice(PLATES)
    if shape == "cube":
        tall = wide * r.uniform(0.7, 1.3)
        street.put("cube", (x, y - 0.12, z), (wide, 0.05, tall), "plain", rim, SIGN)
        street.put("cube", (x, y - 0.15, z + 0.12 * tall), (0.7 * wide, 0.02, 0.22 * tall), "plain", face, SIGN)
        return
    spin = {"plate8": math.pi / 8, "diamond": QUARTER / 2}.get(shape, 0.0)
    if shape == "diamond":
        street.put("cube", (x, y - 0.12, z), (0.8 * wide, 0.05, 0.8 * wide), "plain", rim, SIGN, (0, spin, 0))
        street.put("cube", (x, y - 0.15, z), (0.45 * wide, 0.02, 0.45 * wide), "plain", face, SIGN, (0, spin, 0))
        return
    # a flat prism's axis is its z: tipped by a quarter turn, its rim faces up and its plate the camera
    street.put(shape, (x, y - 0.12, z), (wide, wide, 0.05), "plain", rim, SIGN, (QUARTER, spin, 0))
    street.put(shape, (x, y - 0.15, z), (0.66 * wide, 0.66 * wide, 0.02), "plain", face, SIGN, (QUARTER, spin, 0))


def head(street, x, y, z):
    """A traffic light's box with its three lamps, one of them lit."""
    shade, lit = street.rng.choice((BLACK, BLACK, (0.5, 0.38, 0.02))), street.rng.randrange(3)
    street.put("cube", (x, y, z), (0.52, 0.34, 1.35), "plain", shade, LIGHT)
    for i, colour in enumerate((RED, YELLOW, GREEN)):
        glow = tuple(c if i == lit else 0.12 * c for c in colour)
        at = (x, y - 0.17, z + 0.42 - 0.42 * i)
        street.put("rod", at, (0.33, 0.33, 0.05), "lamp" if i == lit else "plain", glow, LIGHT, (QUARTER, 0, 0))


def traffic_light(street, x, y, arm=False):
    side = 1 if x > 0 else -1
    pole(street, x, y, 5.6 if arm else 3.4, 0.19)
    head(street, x, y - 0.25, 2.9)
    if arm:
        reach = street.rng.uniform(2.5, 4.0)
        street.put("rod", (x - side * reach / 2, y, 5.4), (0.13, 0.13, reach), "paint", GREY, POLE, (0, QUARTER, 0))
        head(street, x - side * reach, y - 0.2, 5.1)


def wheels(put, xs, ys, size, wide):
    for x in xs:
        for y in ys:
            put("rod", (x, y, size / 2), (size, size, wide), "plain", BLACK, (0, QUARTER, 0))
            put("rod", (x * 1.06, y, size / 2), (size * 0.5, size * 0.5, wide), "paint", GREY, (0, QUARTER, 0))


def car(street, x, y, heading):
    r = street.rng
    put, paint = street.frame(x, y, heading, CAR), street.colour(value=r.choice((0.06, 0.3, 0.6, 0.85)))
    if r.random() < 0.4:
        paint = r.choice((BLACK, WHITE, GREY, (0.45, 0.46, 0.48)))
    long, tall, van = r.uniform(3.7, 4.7), r.uniform(0.55, 0.68), r.random() < 0.25
    body = 0.75 if not van else 0.9
    put("body", (0, 0, 0.28 + body / 2), (1.78, long, body), "paint", paint)
    roof = 0.28 + body + tall
    put("cabin", (0, -0.1 * long, 0.24 + body + tall / 2), (1.55, long * (0.75 if van else 0.62), tall), "gloss", BLACK)
    put("cube", (0, -0.14 * long, roof - 0.03), (1.4, long * (0.42 if van else 0.34), 0.08), "paint", paint)
    for s in (-0.62, 0.62):
        put("cube", (s, -0.5 * long, 0.8), (0.35, 0.06, 0.16), "plain", RED)
        put("cube", (s, 0.5 * long, 0.66), (0.35, 0.06, 0.15), "plain", WHITE)
    for s in (-1, 1):
        put("cube", (0, s * 0.5 * long, 0.45), (1.7, 0.12, 0.16), "plain", GREY)
        put("cube", (0, s * 0.515 * long, 0.55), (0.5, 0.03, 0.13), "plain", (0.8, 0.75, 0.4))
    wheels(put, (-0.8, 0.8), (-0.3 * long, 0.31 * long), 0.66, 0.22)


def truck(street, x, y, heading):
    r = street.rng
    put, cab = street.frame(x, y, heading, TRUCK), street.colour(value=0.7)
    load = r.choice((WHITE, street.colour(saturation=0.7), street.colour(0.6, 0.2, 0.6)))
    long, tall = r.uniform(4.2, 6.0), r.uniform(2.0, 2.7)
    put("cube", (0, 0, 0.72), (1.1, long + 2.0, 0.3), "plain", BLACK)
    if r.random() < 0.75:
        put("cube", (0, -1.0, 0.95 + tall / 2), (2.35, long, tall), "plain", load)
        for s in (-1, 1):  # the rear doors' frame and the gap between them
            put("cube", (s * 1.05, -1.02 - long / 2, 0.95 + tall / 2), (0.1, 0.04, tall), "plain", GREY)
        put("cube", (0, -1.02 - long / 2, 0.95 + tall / 2), (0.05, 0.04, tall), "plain", BLACK)
    else:
        put("cube", (0, -1.0, 1.0), (2.35, long, 0.25), "plain", load)
        put("cube", (0, -1.0, 1.6), (1.9, long * 0.8, 1.2), "stone", (0.3, 0.2, 0.1))
    front = -1.0 + long / 2
    put("cube", (0, front + 0.95, 1.45), (2.2, 1.6, 1.9), "paint", cab)
    put("cube", (0, front + 1.74, 1.85), (2.0, 0.06, 0.75), "gloss", BLACK)
    put("cube", (0, front + 1.1, 1.85), (2.24, 0.9, 0.6), "gloss", BLACK)
    for s in (-0.85, 0.85):
        put("cube", (s, -1.05 - long / 2, 0.78), (0.4, 0.08, 0.18), "plain", RED)
        put("cube", (s, front + 1.78, 0.85), (0.4, 0.06, 0.2), "plain", WHITE)
    wheels(put, (-0.95, 0.95), (-0.6 - long * 0.3, front + 0.9), 0.95, 0.3)


def bus(street, x, y, heading):
    r = street.rng
    put, paint = street.frame(x, y, heading, BUS), street.colour(r.choice((0.0, 0.12, 0.3, 0.6)), 0.8, 0.7)
    long, stripe = r.uniform(8, 10.5), r.choice((WHITE, BLACK, paint))
    put("cube", (0, 0, 1.7), (2.45, long, 2.7), "paint", paint)
    put("cube", (0, 0, 2.1), (2.5, long - 0.6, 0.95), "gloss", BLACK)
    for i in range(int(long / 1.5)):
        put("cube", (0, -long / 2 + 1.2 + 1.5 * i, 2.1), (2.52, 0.14, 0.97), "paint", paint)
    put("cube", (0, 0, 1.15), (2.48, long - 0.1, 0.18), "plain", stripe)
    for s, colour in ((-1, RED), (1, WHITE)):
        put("cube", (0, s * long / 2, 2.15 if s < 0 else 1.95), (2.2, 0.06, 0.9 if s < 0 else 1.3), "gloss", BLACK)
        put("cube", (0, s * (long / 2 + 0.02), 2.82), (1.5, 0.05, 0.3), "lamp", (0.6, 0.3, 0.02))
        for side in (-0.95, 0.95):
            put("cube", (side, s * (long / 2 + 0.02), 0.85), (0.35, 0.06, 0.3), "plain", colour)
    wheels(put, (-1.1, 1.1), (-0.3 * long, 0.33 * long), 0.95, 0.28)


def body(street, put, hips, lean, legs):
    """A human above `hips`: legs as (thigh tilt, side) pairs, trunk leaning forward by `lean`, arms, head."""
    r = street.rng
    coat, trousers = street.colour(), street.colour(r.choice((0.6, 0.6, 0.08)), 0.4, r.uniform(0.05, 0.4))
    skin, hair = r.choice(SKINS), r.choice((BLACK, (0.12, 0.06, 0.03), (0.45, 0.3, 0.12)))
    for tilt, x in legs:
        at = (x, math.sin(tilt) * hips / 2, hips / 2)
        put("rod", at, (0.19, 0.2, hips), "cloth", trousers, (tilt, 0, 0))
    up = (math.sin(lean), math.cos(lean))
    put("ball", (0, 0.3 * up[0], hips + 0.3 * up[1]), (0.5, 0.34, 0.86), "cloth", coat, (-lean, 0, 0))
    for x in (-0.27, 0.27):
        swing = lean + (0.5 if lean > 0.2 else r.uniform(-0.4, 0.4))
        at = (x, 0.55 * up[0] + 0.25 * math.sin(swing), hips + 0.55 * up[1] - 0.25 * math.cos(swing))
        put("rod", at, (0.13, 0.13, 0.6), "cloth", coat, (swing, 0, 0))
    top = (0.82 * up[0], hips + 0.82 * up[1])
    put("ball", (0, *top), (0.25, 0.27, 0.32), "plain", skin)
    put("ball", (0, top[0] - 0.03, top[1] + 0.06), (0.27, 0.28, 0.26), "plain", hair)


def person(street, x, y, heading):
    tilt = street.rng.uniform(0.05, 0.4)
    body(street, street.frame(x, y, heading, PERSON), 0.88, 0.0, ((tilt, -0.11), (-tilt, 0.11)))


def bike(street, x, y, heading, rider):
    r = street.rng
    put = street.frame(x, y, heading, BIKE)
    paint = street.colour(value=0.7)
    for s in (-0.56, 0.56):
        put("ring", (0, s, 0.36), (0.76, 0.76, 1.1), "plain", BLACK, (0, QUARTER, 0))
        put("rod", (0, s, 0.36), (0.66, 0.66, 0.012), "plain", (0.3, 0.3, 0.3), (0, QUARTER, 0))
    for at, long, tilt in (((0, -0.2, 0.62), 0.62, 0.35), ((0, 0.18, 0.62), 0.75, -0.75), ((0, 0.46, 0.66), 0.68, 0.3)):
        put("rod", at, (0.08, 0.08, long), "paint", paint, (tilt, 0, 0))
    put("rod", (0, 0.08, 0.88), (0.07, 0.07, 0.68), "paint", paint, (QUARTER, 0, 0))
    put("rod", (0, -0.34, 0.48), (0.07, 0.07, 0.55), "paint", paint, (1.1, 0, 0))
    put("cube", (0, -0.28, 0.98), (0.16, 0.3, 0.08), "plain", BLACK)
    put("rod", (0, 0.4, 1.05), (0.05, 0.05, 0.6), "plain", GREY, (0, QUARTER, 0))
    if rider:
        seat = street.frame(x, y, heading, RIDER, 0.2)
        up = lambda shape, at, *rest: seat(shape, (at[0], at[1] - 0.2, at[2]), *rest)  # noqa: E731
        body(street, up, 0.84, 0.45, ((r.uniform(0.2, 0.5), -0.12), (0.35, 0.12)))


def motorbike(street, x, y, heading, rider):
    put, paint = street.frame(x, y, heading, MOTORBIKE), street.colour(value=0.75)
    for s in (-0.7, 0.7):
        put("rod", (0, s, 0.33), (0.66, 0.66, 0.22), "plain", BLACK, (0, QUARTER, 0))
        put("rod", (0, s, 0.33), (0.34, 0.34, 0.24), "paint", GREY, (0, QUARTER, 0))
    put("cube", (0, 0, 0.5), (0.4, 0.8, 0.45), "plain", GREY)
    put("ball", (0, 0.2, 0.88), (0.48, 0.8, 0.45), "paint", paint)
    put("cube", (0, -0.45, 0.8), (0.36, 0.8, 0.2), "plain", BLACK)
    put("cube", (0, -0.85, 0.78), (0.3, 0.3, 0.2), "paint", paint)
    put("cube", (0, -1.0, 0.74), (0.24, 0.05, 0.12), "plain", RED)
    put("rod", (0, 0.62, 0.66), (0.14, 0.14, 0.8), "paint", GREY, (0.35, 0, 0))
    put("cube", (0, 0.6, 1.0), (0.42, 0.2, 0.36), "paint", paint)
    put("ball", (0, 0.7, 0.98), (0.24, 0.16, 0.24), "plain", WHITE)
    put("rod", (0, 0.45, 1.12), (0.06, 0.06, 0.8), "plain", BLACK, (0, QUARTER, 0))
    if rider:
        seat = street.frame(x, y, heading, RIDER, 0.12)
        helmet = street.colour(value=0.7)
        up = lambda shape, at, *rest: seat(shape, (at[0], at[1] - 0.35, at[2]), *rest)  # noqa: E731
        body(street, up, 0.8, 0.3, ((0.45, -0.26), (0.45, 0.26)))
        up("ball", (0, 0.26, 1.61), (0.34, 0.38, 0.38), "paint", helmet)
