"""Files for other programs."""

MESHES, FILMS = ("glb", "obj", "ply"), ("gif", "mp4")
