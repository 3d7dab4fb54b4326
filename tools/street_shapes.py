"""What the streets of render_streets.py are made of: label ids, shaders, air and sky, meshes. Units are metres."""

import math

import bpy

ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN = range(10)
PERSON, RIDER, CAR, TRUCK, BUS, MOTORBIKE, BIKE = 11, 12, 13, 14, 15, 17, 18
MESHES = {}  # (shape, shader or label) -> mesh; shared by every object that looks alike, which Cycles then instances


# --- shaders ---------------------------------------------------------------------------------------------------------


def _nodes(tree):
    """A short hand for building a node tree: node("Type", {input: value or socket}, attribute=value) -> node."""

    def node(kind, inputs=None, **attributes):
        n = tree.nodes.new(kind)
        for key, value in attributes.items():
            setattr(n, key, value)
        for key, value in (inputs or {}).items():
            if isinstance(value, bpy.types.NodeSocket):
                tree.links.new(value, n.inputs[key])
            else:
                n.inputs[key].default_value = value
        return n

    return node


def _fog():
    """Shader group `fog`: mixes a surface towards the air's colour with 1 - exp(-density distance)."""
    group = bpy.data.node_groups.new("fog", "ShaderNodeTree")
    group.interface.new_socket("Surface", in_out="INPUT", socket_type="NodeSocketShader")
    group.interface.new_socket("Shader", in_out="OUTPUT", socket_type="NodeSocketShader")
    node = _nodes(group)
    density = node("ShaderNodeValue", name="density")
    distance = node("ShaderNodeCameraData").outputs["View Distance"]
    power = node("ShaderNodeMath", {0: distance, 1: density.outputs[0]}, operation="MULTIPLY").outputs[0]
    power = node("ShaderNodeMath", {0: power, 1: -1.0}, operation="MULTIPLY").outputs[0]
    clear = node("ShaderNodeMath", {0: power}, operation="EXPONENT").outputs[0]
    fog = node("ShaderNodeMath", {0: 1.0, 1: clear}, operation="SUBTRACT").outputs[0]
    seen = node("ShaderNodeLightPath").outputs["Is Camera Ray"]  # bounced light stays clear
    fog = node("ShaderNodeMath", {0: fog, 1: seen}, operation="MULTIPLY").outputs[0]
    air = node("ShaderNodeEmission", name="air").outputs[0]
    surface = node("NodeGroupInput").outputs[0]
    mixed = node("ShaderNodeMixShader", {0: fog, 1: surface, 2: air}).outputs[0]
    node("NodeGroupOutput", {0: mixed})
    return group


def set_fog(colour, density):
    nodes = bpy.data.node_groups["fog"].nodes
    nodes["density"].outputs[0].default_value = density
    nodes["air"].inputs[0].default_value = (*colour, 1)


def _shader(fog, name, rough=0.8, noise=0.0, spread=0.35, facade=None, emit=0.0):
    """A surface in the object's colour; noise: cells a metre; facade: (window width, storey height, gap share)."""
    m = bpy.data.materials.new(name)
    m.use_nodes = True
    m.cycles.emission_sampling = "NONE"  # the air's glow is for the camera, no lamp to be sampled
    m.node_tree.nodes.clear()
    node = _nodes(m.node_tree)
    colour = node("ShaderNodeObjectInfo").outputs["Color"]
    place = node("ShaderNodeNewGeometry").outputs["Position"]
    if noise:
        coarse = node("ShaderNodeTexNoise", {"Vector": place, "Scale": noise, "Detail": 3.0}).outputs[0]
        value = node("ShaderNodeMapRange", {0: coarse, 1: 0.3, 2: 0.7, 3: 1 - spread, 4: 1 + spread}).outputs[0]
        colour = node("ShaderNodeVectorMath", {0: colour, 1: value}, operation="MULTIPLY").outputs[0]
    if facade:
        wide, tall, gap = facade
        xyz = node("ShaderNodeSeparateXYZ", {0: place}).outputs
        along = node("ShaderNodeMath", {0: xyz[0], 1: xyz[1]}, operation="ADD").outputs[0]  # either kind of wall
        flat = node("ShaderNodeCombineXYZ", {0: along, 1: xyz[2]}).outputs[0]
        bricks = {"Vector": flat, "Scale": 1.0, "Brick Width": wide, "Row Height": tall, "Mortar Size": gap}
        bricks |= {"Color1": (0.02, 0.03, 0.045, 1), "Color2": (0.16, 0.2, 0.24, 1), "Mortar": colour}
        colour = node("ShaderNodeTexBrick", bricks, offset=0.0).outputs[0]
    if emit:
        surface = node("ShaderNodeEmission", {0: colour, 1: emit}).outputs[0]
    else:
        surface = node("ShaderNodeBsdfPrincipled", {"Base Color": colour, "Roughness": rough}).outputs[0]
    group = node("ShaderNodeGroup", node_tree=fog)
    m.node_tree.links.new(surface, group.inputs[0])
    node("ShaderNodeOutputMaterial", {0: group.outputs[0]})
    return m


def make_shaders():
    """All surfaces by name, and per train id the flat emitter of its label."""
    fog = _fog()
    kinds = {
        "plain": {},
        "paint": {"rough": 0.25},
        "gloss": {"rough": 0.08},
        "lamp": {"emit": 1.6},
        "asphalt": {"noise": 1.3, "spread": 0.16, "rough": 0.75},
        "wet": {"noise": 0.35, "spread": 0.3, "rough": 0.38},
        "slabs": {"noise": 2.2, "spread": 0.2},
        "grass": {"noise": 1.6, "spread": 0.5},
        "leaf": {"noise": 4.5, "spread": 0.75},
        "stone": {"noise": 3.0, "spread": 0.3},
        "cloth": {"noise": 5.0, "spread": 0.25},
        "facade0": {"facade": (2.6, 3.1, 0.62)},
        "facade1": {"facade": (1.9, 3.3, 0.5)},
        "facade2": {"facade": (4.2, 3.0, 0.55)},
        "facade3": {"facade": (1.5, 3.6, 0.22)},
    }
    shaders = {name: _shader(fog, name, **options) for name, options in kinds.items()}
    for label in (*range(10), PERSON, RIDER, CAR, TRUCK, BUS, MOTORBIKE, BIKE):
        m = bpy.data.materials.new(f"label{label}")
        m.use_nodes = True
        m.cycles.emission_sampling = "NONE"
        m.node_tree.nodes.clear()
        node = _nodes(m.node_tree)
        flat = node("ShaderNodeEmission", {0: (label / 255,) * 3 + (1,)}).outputs[0]
        node("ShaderNodeOutputMaterial", {0: flat})
        shaders[label] = m
    return shaders


def make_world(name):
    """A sky: horizon to zenith by height, with noise clouds; see set_sky."""
    world = bpy.data.worlds.new(name)
    world.use_nodes = True
    world.cycles.sampling_method = "NONE"  # bounced rays find a sky this even by themselves
    world.node_tree.nodes.clear()
    node = _nodes(world.node_tree)
    ray = node("ShaderNodeTexCoord").outputs["Generated"]
    height = node("ShaderNodeSeparateXYZ", {0: ray}).outputs[2]
    height = node("ShaderNodeMapRange", {0: height, 1: 0.0, 2: 0.55}).outputs[0]
    clear = node("ShaderNodeMix", {0: height}, name="clear", data_type="RGBA")
    stretched = node("ShaderNodeVectorMath", {0: ray, 1: (1, 1, 3.5)}, operation="MULTIPLY").outputs[0]
    noise = node("ShaderNodeTexNoise", {"Vector": stretched, "Scale": 2.4, "Detail": 4.0}, name="noise")
    noise.noise_dimensions = "4D"
    cover = node("ShaderNodeMapRange", {0: noise.outputs[0], 1: 0.48, 2: 0.68}).outputs[0]
    sky = node("ShaderNodeMix", {0: cover, 6: clear.outputs[2]}, name="cloudy", data_type="RGBA")
    background = node("ShaderNodeBackground", {0: sky.outputs[2]}, name="background")
    node("ShaderNodeOutputWorld", {0: background.outputs[0]})


def set_sky(name, horizon, zenith, cloud, shape, strength):
    nodes = bpy.data.worlds[name].node_tree.nodes
    nodes["clear"].inputs[6].default_value, nodes["clear"].inputs[7].default_value = (*horizon, 1), (*zenith, 1)
    nodes["cloudy"].inputs[7].default_value = (*cloud, 1)
    nodes["noise"].inputs["W"].default_value = shape
    nodes["background"].inputs[1].default_value = strength


def sky_colours(look, rng):
    """Horizon, zenith and cloud colour of a look."""
    if look == "source":
        blue = rng.uniform(0.2, 0.42)
        return (0.55, 0.75, 0.98), (blue * 0.5, blue, 0.92), (0.95, 0.96, 0.98)
    g = rng.uniform(0.62, 0.85)
    return (g, g * 1.01, g * 1.02), (g * 0.82, g * 0.85, g * 0.88), (g * 0.72, g * 0.74, g * 0.77)


# --- meshes ----------------------------------------------------------------------------------------------------------


def _prism(profile):
    """A (y, z) outline drawn counter-clockwise as seen from +x, extruded over x in [-0.5, 0.5]."""
    n = len(profile)
    points = [(x, y, z) for x in (-0.5, 0.5) for y, z in profile]
    sides = [(i, (i + 1) % n, n + (i + 1) % n, n + i) for i in range(n)]
    return points, [*sides, tuple(range(n - 1, -1, -1)), tuple(range(n, 2 * n))]


CAR_BODY = [(-0.5, -0.5), (0.5, -0.5), (0.5, 0.1), (0.46, 0.3), (0.2, 0.5), (-0.5, 0.5)]
CABIN = [(-0.5, -0.5), (0.5, -0.5), (0.22, 0.5), (-0.36, 0.5)]
ROOF = [(-0.5, -0.5), (0.5, -0.5), (0.0, 0.5)]


def make_meshes(shaders):
    """Fill MESHES: unit shapes, one copy under every shader and label."""
    shapes = {}

    def add(name, operator, smooth=False, **options):
        operator(**options)
        ob = bpy.context.object
        mesh = ob.data.copy()
        bpy.data.objects.remove(ob)
        mesh.polygons.foreach_set("use_smooth", [smooth] * len(mesh.polygons))
        shapes[name] = mesh

    ops = bpy.ops.mesh
    add("cube", ops.primitive_cube_add, size=1)
    add("ball", ops.primitive_ico_sphere_add, subdivisions=2, radius=0.5, smooth=True)
    add("leaves", ops.primitive_ico_sphere_add, subdivisions=4, radius=0.5)
    for v in shapes["leaves"].vertices:  # a ragged crown, the same one every time
        v.co *= 1 + 0.28 * math.sin(91.7 * v.co.x + 3) * math.sin(83.1 * v.co.y + 1) * math.sin(77.3 * v.co.z)
    add("rod", ops.primitive_cylinder_add, vertices=12, radius=0.5, depth=1)
    add("plate3", ops.primitive_cylinder_add, vertices=3, radius=0.5, depth=1)
    add("plate8", ops.primitive_cylinder_add, vertices=8, radius=0.5, depth=1)
    ring = {"major_radius": 0.44, "minor_radius": 0.065, "major_segments": 24, "minor_segments": 6}
    add("ring", ops.primitive_torus_add, smooth=True, **ring)
    for name, profile in (("body", CAR_BODY), ("cabin", CABIN), ("roof", ROOF)):
        mesh = bpy.data.meshes.new(name)
        mesh.from_pydata(*_prism(profile)[:1], [], _prism(profile)[1])
        shapes[name] = mesh
    for shape, mesh in shapes.items():
        for key, shader in shaders.items():
            copy = mesh.copy()
            copy.materials.clear()
            copy.materials.append(shader)
            MESHES[shape, key] = copy
