"""One street for render_streets.py, laid out from a random generator: ground, houses, furniture, traffic, people.

Every object is one mesh of MESHES under one shader, tinted by its object colour, and carries its Cityscapes train id
in its custom property "label". x runs across the street, y along it, away from the camera at y = 0; metres.
"""

import colorsys
import math

import bpy
import street_things as things
from street_shapes import BUILDING, FENCE, MESHES, ROAD, SIDEWALK, TERRAIN, VEGETATION, WALL
from street_things import BLACK, GREY, QUARTER, WHITE, YELLOW


class Street:
    """One street, laid out by `rng` alone. lane: x of the middle of the camera's lane."""

    def __init__(self, scene, look, rng):
        self.scene, self.look, self.rng = scene, look, rng
        self.objects, self.taken = [], []
        self.layout()

    # -- tools

    def colour(self, hue=None, saturation=None, value=None):
        """A random colour of this look's world; the camera world wears duller things."""
        r, source = self.rng, self.look == "source"
        h = r.random() if hue is None else hue
        s = r.uniform(0.3, 0.95) if saturation is None else saturation
        v = r.uniform(0.15, 0.85) if value is None else value
        return colorsys.hsv_to_rgb(h, s if source else 0.75 * s, v if source else 0.9 * v)

    def put(self, shape, at, size, shader, colour, label, turn=(0, 0, 0)):
        ob = bpy.data.objects.new(f"{len(self.objects):05d}", MESHES[shape, shader])
        ob.location, ob.scale, ob.rotation_euler, ob.color = at, size, turn, (*colour, 1)
        ob["label"], ob["shape"] = label, shape
        self.scene.collection.objects.link(ob)
        self.objects.append(ob)

    def at_crossing(self, y, margin=0.0):
        return self.crossing is not None and abs(y - self.crossing[0]) < self.crossing[1] / 2 + margin

    def frame(self, x, y, heading, label, lift=0.0):
        """put() in the frame of a thing that stands at (x, y) and looks along its own +y, turned by `heading`."""
        c, s = math.cos(heading), math.sin(heading)
        z = lift + (0.0 if abs(x) < self.half or self.at_crossing(y) else 0.14)

        def put(shape, at, size, shader, colour, turn=(0, 0, 0), label=label):
            at = (x + c * at[0] - s * at[1], y + s * at[0] + c * at[1], z + at[2])
            self.put(shape, at, size, shader, colour, label, (turn[0], turn[1], turn[2] + heading))

        return put

    def claim(self, x, y, width, length):
        """True and the ground is taken, or False where something stands already."""
        for a, b, w, d in self.taken:
            if abs(a - x) < (w + width) / 2 and abs(b - y) < (d + length) / 2:
                return False
        self.taken.append((x, y, width, length))
        return True

    def show_labels(self):
        for ob in self.objects:
            ob.data = MESHES[ob["shape"], ob["label"]]

    def clear(self):
        bpy.data.batch_remove(self.objects)
        self.objects = []

    # -- the ground and what lines it

    def layout(self):
        r, source = self.rng, self.look == "source"
        self.half = r.uniform(4.6, 7.0) if source else r.uniform(3.9, 5.8)
        self.lane = self.half * 0.42
        self.crossing = (r.uniform(16, 34), r.uniform(7, 10)) if r.random() < 0.45 else None
        surface = "asphalt" if source else "wet"
        grey = r.uniform(0.06, 0.13) if source else r.uniform(0.16, 0.26)
        tar = (grey, grey, grey * (1.04 if source else 1.0))
        self.put("cube", (0, 70, -0.1), (2 * self.half, 190, 0.2), surface, tar, ROAD)
        if self.crossing:
            y, width = self.crossing
            self.put("cube", (0, y, -0.102), (160, width, 0.2), surface, tar, ROAD)
        self.markings(r.choice((WHITE, YELLOW)) if source else (0.5, 0.5, 0.48))
        for side in (-1, 1):
            self.roadside(side)
        if r.random() < 0.7:
            height = r.uniform(6, 20)
            self.house(r.uniform(-8, 8), r.uniform(95, 125), r.uniform(30, 60), 10, height)
        self.junction()
        self.traffic()
        for side in (-1, 1):
            self.furniture(side)
            self.people(side)

    def markings(self, paint):
        r = self.rng
        if r.random() < 0.8:
            solid = r.random() < 0.3
            for y in [40] if solid else range(-2, 110, 6):
                self.put("cube", (0, y, 0.0), (0.14, 100 if solid else 2.6, 0.02), "plain", paint, ROAD)
        stripes = []
        if self.crossing:
            stripes.append(self.crossing[0] - self.crossing[1] / 2 - 2.4)
        elif r.random() < 0.3:
            stripes.append(r.uniform(7, 25))
        for y in stripes:
            x = -self.half + 0.5
            while x < self.half - 0.3:
                self.put("cube", (x, y, 0.001), (0.5, 2.6, 0.02), "plain", WHITE, ROAD)
                x += 1.0

    def stretches(self, start, end):
        """[start, end] without the crossing road."""
        if not self.crossing:
            return [(start, end)]
        y, width = self.crossing
        cuts = [(start, min(end, y - width / 2)), (max(start, y + width / 2), end)]
        return [(a, b) for a, b in cuts if b - a > 1]

    def roadside(self, side):
        r, source = self.rng, self.look == "source"
        verge = r.uniform(1.0, 2.6) if r.random() < 0.5 else 0.0
        walk = r.uniform(2.2, 4.0)
        stone = self.colour(r.uniform(0.05, 0.12), r.uniform(0.05, 0.25), r.uniform(0.38, 0.6))
        green = self.colour(r.uniform(0.2, 0.3), r.uniform(0.55, 0.85), r.uniform(0.22, 0.45))
        kerb, back = self.half + verge, self.half + verge + walk
        for a, b in self.stretches(-12, 160):
            middle, length = (a + b) / 2, b - a
            self.put("cube", (side * (self.half + 0.08), middle, 0), (0.16, length, 0.3), "plain", GREY, SIDEWALK)
            self.put("cube", (side * (kerb + walk / 2), middle, 0), (walk, length, 0.28), "slabs", stone, SIDEWALK)
            if verge:
                at = (side * (self.half + verge / 2 + 0.08), middle, 0)
                self.put("cube", at, (verge, length, 0.26), "grass", green, TERRAIN)
            self.put("cube", (side * (back + 40), middle, 0), (80, length, 0.26), "grass", green, TERRAIN)
        setback = r.uniform(0.2, 1.0) if r.random() < (0.15 if source else 0.2) else r.uniform(2.0, 7.0)
        self.kerb, self.walk = getattr(self, "kerb", {}), getattr(self, "walk", {})
        self.kerb[side], self.walk[side] = kerb, walk
        tall = r.random() < 0.5
        for start, end in self.stretches(-4, 115):
            y = start + r.uniform(0, 3)
            while y < end - 6:
                depth = min(r.uniform(7, 18), end - y)
                if r.random() < 0.82:
                    height = r.uniform(9, 24) if tall else r.uniform(3.5, 8)
                    self.house(side * (back + setback + r.uniform(0, 0.8) + 5), y + depth / 2, 10, depth, height)
                    y += depth + (0 if tall and r.random() < 0.7 else r.uniform(1, 6))
                else:
                    y += r.uniform(5, 12)
        if setback > 1.2:
            for start, end in self.stretches(1, 70):
                y = start + r.uniform(0, 2)
                while y < end - 3:
                    length = min(r.uniform(7, 20), end - y)
                    self.border(side, back + 0.25, y, length)
                    y += length + r.uniform(0, 2)
            for _ in range(r.randint(1, 6)):
                y = r.uniform(4, 60)
                if not self.at_crossing(y, 3):
                    things.tree(self, side * (back + r.uniform(1.2, setback)), y)

    def house(self, x, y, wide, deep, height):
        r = self.rng
        paint = self.colour(r.choice((0.02, 0.06, 0.1, 0.12, 0.58)), r.uniform(0.1, 0.65), r.uniform(0.35, 0.8))
        self.put(
            "cube",
            (x, y, height / 2),
            (wide, deep, height),
            r.choice(("facade0", "facade1", "facade2", "facade3")),
            paint,
            BUILDING,
        )
        if height < 9 and r.random() < 0.7:
            tiles = self.colour(r.uniform(0.0, 0.08), r.uniform(0.3, 0.8), r.uniform(0.15, 0.5))
            rise = r.uniform(2, 3.5)
            self.put("roof", (x, y, height + rise / 2), (wide + 0.6, deep + 0.6, rise), "stone", tiles, BUILDING)
        else:
            trim = self.colour(0.1, 0.1, r.uniform(0.2, 0.6))
            self.put("cube", (x, y, height + 0.15), (wide + 0.4, deep + 0.2, 0.35), "plain", trim, BUILDING)

    def border(self, side, x, y, length):
        """A wall, a fence or a hedge behind the sidewalk, from y on."""
        r, kind, middle = self.rng, self.rng.random(), y + length / 2
        x *= side
        if kind < 0.36:
            height = r.uniform(1.5, 2.9)
            stone = self.colour(r.uniform(0.02, 0.12), r.uniform(0.1, 0.55), r.uniform(0.3, 0.65))
            self.put("cube", (x, middle, height / 2), (0.3, length, height), "stone", stone, WALL)
            self.put("cube", (x, middle, height), (0.42, length + 0.1, 0.14), "plain", self.colour(0.1, 0.1, 0.5), WALL)
        elif kind < 0.74:
            height, wood = r.uniform(1.3, 2.1), r.random() < 0.55
            paint = (
                self.colour(r.choice((0.08, 0.08, 0.3)), 0.6, r.uniform(0.2, 0.5))
                if wood
                else r.choice((BLACK, GREY, WHITE))
            )
            for z in (0.35, height - 0.15):
                self.put("cube", (x, middle, z + 0.12), (0.06, length, 0.1), "plain", paint, FENCE)
            pitch, slat = (0.3, 0.21) if wood else (0.34, 0.07)
            for i in range(int(length / pitch)):
                self.put("cube", (x, y + i * pitch, 0.1 + height / 2), (0.05, slat, height), "plain", paint, FENCE)
        elif kind < 0.9:
            height = r.uniform(1.0, 1.9)
            leaf = self.colour(r.uniform(0.24, 0.32), r.uniform(0.6, 0.9), r.uniform(0.16, 0.35))
            for i in range(int(length / 0.9)):
                size = (1.1, 1.3, height * r.uniform(1.15, 1.35))
                self.put("leaves", (x + 0.25 * side, y + 0.9 * i, 0.1 + height / 2), size, "leaf", leaf, VEGETATION)

    def junction(self):
        """Traffic lights at the crossing, or here and there without one."""
        r = self.rng
        if self.crossing:
            y = self.crossing[0] - self.crossing[1] / 2 - 0.9
            places = [(side, y) for side in (-1, 1) if r.random() < 0.85]
        else:
            places = [(side, r.uniform(9, 20)) for side in (-1, 1) if r.random() < 0.35]
        for side, y in places:
            x = side * (self.half + 0.5)
            if self.claim(x, y, 1.0, 1.0):
                things.traffic_light(self, x, y, arm=r.random() < 0.5)

    def furniture(self, side):
        r, y = self.rng, self.rng.uniform(4, 9)
        while y < 80:
            x, kind = side * (self.half + r.uniform(0.4, 0.8)), r.random()
            for_tree = self.kerb[side] > self.half or kind < 0.12
            if not self.at_crossing(y, 1):
                if kind < 0.26 and for_tree and y > 7 and self.claim(x, y, 1, 1):
                    things.tree(self, x, y)
                elif 0.26 <= kind < 0.44 and self.claim(x, y, 0.6, 0.6):
                    things.lamp(self, x, y)
                elif 0.44 <= kind < 0.82 and self.claim(x, y, 1.0, 0.6):
                    things.sign(self, x, y)
                elif kind >= 0.9 and self.claim(x, y, 0.4, 0.4):
                    things.pole(self, x, y, r.uniform(0.9, 1.1) if kind > 0.96 else 7.5, 0.22)
            y += r.uniform(2.5, 7)

    def vehicle(self, kind, x, y, heading):
        long = {"car": 5, "truck": 9, "bus": 11, "bike": 2.2, "motorbike": 2.5}[kind]
        wide = {"car": 2.1, "truck": 2.7, "bus": 2.8, "bike": 0.9, "motorbike": 1.1}[kind]
        if kind in ("truck", "bus"):
            y += long / 2 - 2.5
        across = abs(math.sin(heading)) > 0.5
        if self.claim(x, y, *((long, wide) if across else (wide, long))):
            options = {"rider": True} if kind in ("bike", "motorbike") else {}
            getattr(things, kind)(self, x, y, heading, **options)
            return True
        return False

    def traffic(self):
        r = self.rng
        parked = {side: r.random() < (0.3 if self.look == "source" else 0.36) for side in (-1, 1)}
        for kind, chance in (("bike", 0.55), ("motorbike", 0.55)):  # riders come near, or they would be a few pixels
            if r.random() < chance:
                side, across = r.choice((-1, 1, 1)), r.random() < 0.35
                x = r.uniform(-0.6, 0.6) * self.half if across else side * (self.half - (2.8 if parked[side] else 1.0))
                heading = r.choice((-1, 1)) * QUARTER if across else (0 if side > 0 else math.pi)
                self.vehicle(kind, x, r.uniform(5.5, 13), heading + r.uniform(-0.4, 0.4) * (not across))
        for side in (1, -1):
            heading, y = (0 if side > 0 else math.pi), r.uniform(7, 15) if side > 0 else r.uniform(4, 13)
            x = side * (self.half * 0.42 - (0.5 if parked[side] else 0))
            while y < 90:
                kind = r.choice(("car", "car", "car", "truck", "truck", "bus", "bus", "bike", "motorbike"))
                self.vehicle(kind, x + r.uniform(-0.3, 0.3), y, heading)
                y += r.uniform(6, 22)
            y = r.uniform(3, 8)
            while parked[side] and y < 70:
                if not self.at_crossing(y, 5):
                    kind = r.choice(("car", "car", "car", "car", "truck", "stood", "none"))
                    if kind == "stood":
                        if self.claim(side * (self.half - 1.0), y, 2.4, 1.2):
                            things.motorbike(self, side * (self.half - 1.0), y, side * r.uniform(0.7, 1.6), False)
                    elif kind != "none":
                        self.vehicle(kind, side * (self.half - 1.15), y, heading)
                y += r.uniform(5.4, 8)

    def people(self, side):
        r, kerb, walk = self.rng, self.kerb[side], self.walk[side]
        if r.random() < 0.5:
            y, x = r.uniform(5, 15), side * (kerb + r.uniform(0.3, 0.6) * walk)
            for i in range(r.randint(1, 3)):
                if self.claim(x, y + 0.9 * i, 1.9, 0.7):
                    things.bike(self, x, y + 0.9 * i, side * (QUARTER + r.uniform(-0.3, 0.3)), False)
        for _ in range(r.randint(1, 5)):
            x, y = side * (kerb + r.uniform(0.3, walk - 0.3)), r.uniform(4, 22)
            if self.claim(x, y, 0.6, 0.6):
                things.person(self, x, y, r.choice((0, math.pi)) + r.uniform(-0.6, 0.6))
        if r.random() < 0.25:
            x, y = r.uniform(-0.8, 0.8) * self.half, r.uniform(7, 18)
            if self.claim(x, y, 0.8, 0.8):
                things.person(self, x, y, r.choice((-1, 1)) * QUARTER)
