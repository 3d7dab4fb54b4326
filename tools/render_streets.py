"""Render the embedded data set `streets` with Blender's Cycles (the PyPI package bpy, which nothing else here needs).

    python -m venv bpy-venv && bpy-venv/bin/pip install bpy==4.5.15 pillow numpy
    bpy-venv/bin/python tools/render_streets.py simfast/data/streets [--part source] [--first N] [--count N]

Two looks of one world. `source`: a sunny, saturated, clean "game". `target`: an overcast, hazy, pale, noisy dashboard
camera with other optics. Picture N is a function of (look, N) alone; parts use disjoint N. A picture that is already
there is kept, so a render can be stopped and continued, or split over processes by --first and --count.

OUT/PART/images/NNNN.jpg is 320x240; OUT/PART/labels/NNNN.png holds Cityscapes train ids, exact at pixel centres: the
same camera sees every object as a flat emitter of its id, one sample a pixel, no filter, no view transform.
"""

import argparse
import math
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import bpy
import numpy as np
from PIL import Image, ImageFilter
from street_layout import Street
from street_shapes import make_meshes, make_shaders, make_world, set_fog, set_sky, sky_colours

WIDTH, HEIGHT = 320, 240
SKY = 10
TRAIN_IDS = set(range(19)) - {16}  # no train runs through these streets
PARTS = {  # part: look, first seed, pictures
    "source": ("source", 0, 240),
    "target_train": ("target", 4000, 120),
    "target_test": ("target", 8000, 60),
}


def prepare(threads):
    """The scene with its camera and sun, and the two worlds: the sky of the picture and the flat one of the label."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    scene.render.engine, scene.cycles.device = "CYCLES", "CPU"
    scene.render.threads_mode, scene.render.threads = "FIXED", threads
    scene.render.resolution_x, scene.render.resolution_y = WIDTH, HEIGHT
    scene.cycles.max_bounces, scene.cycles.use_light_tree, scene.cycles.use_adaptive_sampling = 1, False, False
    scene.cycles.denoiser, scene.cycles.denoising_quality = "OPENIMAGEDENOISE", "FAST"
    scene.cycles.denoising_input_passes, scene.cycles.denoising_prefilter = "RGB_ALBEDO_NORMAL", "FAST"
    scene.render.image_settings.file_format, scene.render.dither_intensity = "PNG", 0
    for name, data in (("sun", bpy.data.lights.new("sun", "SUN")), ("camera", bpy.data.cameras.new("camera"))):
        scene.collection.objects.link(bpy.data.objects.new(name, data))
    scene.camera = bpy.data.objects["camera"]
    flat = bpy.data.worlds.new("label")
    flat.use_nodes = True
    flat.node_tree.nodes["Background"].inputs[0].default_value = (SKY / 255,) * 3 + (1,)
    make_world("sky")
    return scene


def aim(look, rng, street):
    """Camera, light and air of one picture."""
    camera, sun = bpy.data.objects["camera"], bpy.data.objects["sun"]
    if look == "source":
        height, view, pitch, yaw, roll = (1.6, 2.4), (62, 74), (-6, 0), (-12, 12), (0, 0)
        incline, energy, softness, warmth = (25, 60), (3.8, 5.4), 0.01, (1.0, 0.93, 0.8)
        sky, density = (0.75, 0.95), (0.0005, 0.002)
    else:
        height, view, pitch, yaw, roll = (1.15, 1.4), (50, 60), (-2, 3), (-6, 6), (-1.5, 1.5)
        incline, energy, softness, warmth = (0, 40), (0.3, 1.2), 1.0, (0.95, 0.97, 1.0)
        sky, density = (0.9, 1.2), (0.003, 0.009)
    camera.location = (street.lane + rng.uniform(-0.9, 0.7), 0, rng.uniform(*height))
    degrees = (90 + rng.uniform(*pitch), rng.uniform(*roll), rng.uniform(*yaw))
    camera.rotation_euler = tuple(math.radians(angle) for angle in degrees)
    camera.data.angle = math.radians(rng.uniform(*view))
    sun.rotation_euler = (math.radians(rng.uniform(*incline)), 0, rng.uniform(0, 2 * math.pi))
    sun.data.energy, sun.data.angle, sun.data.color = rng.uniform(*energy), softness, warmth
    horizon, zenith, cloud = sky_colours(look, rng)
    set_sky("sky", horizon, zenith, cloud, rng.uniform(0, 100), rng.uniform(*sky))
    set_fog(horizon, rng.uniform(*density))


def shoot(scene, path, *, samples, seed, label):
    """Render to `path`; label: flat ids at pixel centres, else the picture."""
    scene.world = bpy.data.worlds["label" if label else "sky"]
    scene.view_settings.view_transform = "Raw" if label else "Standard"
    scene.cycles.use_denoising = not label
    scene.cycles.samples, scene.cycles.filter_width, scene.cycles.seed = samples, 0.01 if label else 1.5, seed
    scene.render.image_settings.color_mode = "BW" if label else "RGB"
    scene.render.filepath = path
    bpy.ops.render.render(write_still=True)
    return Image.open(path)


def grade(picture, look, rng):
    """The look's own development of a clean picture; moves no pixel, so the label stays exact."""
    noise = np.random.default_rng(rng.getrandbits(32))
    if look == "source":
        x = np.asarray(picture, np.float32) / 255
        grey = x @ np.float32([0.299, 0.587, 0.114])
        x = grey[..., None] + (x - grey[..., None]) * rng.uniform(1.1, 1.3)
        x = 0.5 + (x - 0.5) * rng.uniform(1.0, 1.12)
        return Image.fromarray((x.clip(0, 1) * 255).round().astype(np.uint8)), 85
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.35, 0.8)))
    x = np.asarray(picture, np.float32) / 255
    grey = x @ np.float32([0.299, 0.587, 0.114])
    x = grey[..., None] + (x - grey[..., None]) * rng.uniform(0.6, 0.85)
    warm, green = rng.uniform(-0.07, 0.04), rng.uniform(-0.01, 0.05)
    x = x * np.float32([1 + warm, 1 + green, 1 - warm])
    lift = rng.uniform(0.02, 0.07)
    x = lift + x.clip(0, None) ** rng.uniform(0.9, 1.2) * (rng.uniform(0.85, 0.98) - lift)
    v, u = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    x = x * (1 - rng.uniform(0.2, 0.42) * ((u * u + v * v) / 2) ** 1.3)[..., None].astype(np.float32)
    sigma = rng.uniform(0.008, 0.024)
    x = x + noise.normal(0, sigma, (HEIGHT, WIDTH, 1)) + noise.normal(0, 0.6 * sigma, (HEIGHT, WIDTH, 3))
    return Image.fromarray((x.clip(0, 1) * 255).round().astype(np.uint8)), rng.randint(70, 85)


def save(image, path, **options):
    """Under a temporary name first: a file that is there is whole."""
    part = path.with_name(f".{os.getpid()}{path.suffix}")
    image.save(part, **options)
    os.replace(part, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    parser.add_argument("--first", type=int, default=0, help="skip that many pictures of each part")
    parser.add_argument("--count", type=int, default=None, help="at most that many of each part")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    scene = prepare(args.threads)
    make_meshes(make_shaders())
    began, done = time.time(), 0
    with tempfile.TemporaryDirectory() as scratch:
        for part in args.part or PARTS:
            look, seed, total = PARTS[part]
            last = total if args.count is None else min(total, args.first + args.count)
            for n in range(seed + args.first, seed + last):
                image_path = args.out / part / "images" / f"{n:04d}.jpg"
                label_path = args.out / part / "labels" / f"{n:04d}.png"
                if image_path.exists() and label_path.exists():
                    continue
                image_path.parent.mkdir(parents=True, exist_ok=True)
                label_path.parent.mkdir(parents=True, exist_ok=True)
                rng = random.Random(f"{look} {n}")
                street = Street(scene, look, rng)
                aim(look, rng, street)
                raw = shoot(scene, f"{scratch}/picture.png", samples=6, seed=n, label=False).convert("RGB")
                picture, quality = grade(raw, look, rng)
                street.show_labels()
                label = np.array(shoot(scene, f"{scratch}/label.png", samples=1, seed=0, label=True))
                found = set(np.unique(label).tolist())
                assert found <= TRAIN_IDS, f"{part} {n}: label ids {sorted(found)}"
                save(Image.fromarray(label), label_path, optimize=True)
                save(picture, image_path, quality=quality, subsampling=2, optimize=True)
                street.clear()
                done += 1
    print(f"{done} pictures, {(time.time() - began) / max(done, 1):.2f} s each", file=sys.stderr)


if __name__ == "__main__":
    main()
