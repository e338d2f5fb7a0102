"""A texture that is baked, written, read by another program and rendered shows what its source shows."""

from mpiprop.core.streams import Streams
from mpiprop.io.mesh import extract
from mpiprop.render.mesh import Mesh
from mpiprop.objective.scene import Scene
from mpiprop.appearance.backgrounds import Solid
from mpiprop.shapes.surfaces.dmtet import DMTet
from mpiprop.appearance.materials import NoMaterial
from mpiprop.views.cameras import turntable
from tools.roundtrip import losses, psnr, shown

RNG = Streams(0, 0)


def test_a_textured_surface_is_the_same_picture_after_a_file(tmp_path):
    """Within 1 dB of what was baked and of the scene's own rendering, both beyond 30 dB, with half the faces."""
    shape = DMTet(RNG, radius=0.8, resolution=28, sphere=0.5, levels=3, log2_table=10, base_resolution=4, growth=1.6, hidden=16)
    shape.encoding.table.data.mul_(1e5)  # as colourful as a trained one
    scene = Scene(shape, NoMaterial(), Solid(RNG, colour=(1.0, 1.0, 1.0)), Mesh())
    views = turntable(4, 0.3, 1.8, 0.8, (96, 96))
    vertices, faces = scene.shape.surface()
    source = shown(views, vertices, faces, vertices, faces, scene.albedo)
    image = scene.render(views, 0).rgb
    assert psnr(source, image) > 60 and image[image.sum(-1) < 2.9].std(0).mean() > 0.1
    mesh = extract(scene, say=lambda line: None, faces=len(faces) // 2, texture=256)
    assert len(mesh.faces) == len(faces) // 2
    found = losses(mesh, image, views, tmp_path)
    assert min(found.values()) > 30 and max(found.values()) - min(found.values()) < 1, found
