"""What a careless user does: each mistake is one line that says what is wrong, where and what to do, told before anything is
made; never a traceback, never a run folder."""

import signal
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from mpiprop.config import loader
from mpiprop.cli.main import main

TERM, FINE, SPLAT = "stages.0.terms.0", "stages.1.terms.0", "demo/dreamgaussian"
CLOSED = "{use: 'ClosedForm'}"
HASHGRID = "{use: 'HashGrid', levels: 2, log2_table: 8}"


def run(*words: str) -> list[str]:
    return ["run", *words]


MISTAKES = [  # what is typed after `mpiprop`, and what the line must contain
    # the command line
    (["rnu", "toy"], "rnu"),
    (run(), "CONFIG"),
    (run("toy", "--resmue"), "--resmue"),
    (run("toy", "a green mushroom"), "a green mushroom: an override reads key=value"),
    (run("toy", "=3"), "=3: an override reads key=value"),
    (run("tyo"), "no such configuration or file; did you mean 'toy'"),
    (run("picture.png"), "picture.png: not a text file"),
    (run("list.yaml"), "list.yaml: needs keys and values"),
    (run("broken.yaml"), "broken.yaml: not YAML (line 2)"),
    (run("twice.yaml"), "key 'prompt' given twice"),
    # keys and values
    (run("toy", "sead=3"), "sead: unknown key; did you mean 'seed'"),
    (run("toy", "seed=-1"), "seed: needs a number of at least 0, got -1"),
    (run("toy", "seed=1.5"), "seed: needs whole number"),
    (run("toy", "device=gpu"), "device: needs auto | cpu | cuda, got 'gpu'"),
    (run("toy", "stages.0.steps=many"), "stages.0.steps: needs whole number"),
    (run("toy", "stages.0.steps=0"), "stages.0.steps: needs a number of at least 1"),
    (run("toy", "stages.3.steps=10"), "stages.3.steps: no '3' in a list numbered 0 to 0"),
    (run("toy", "stages=[]"), "stages: needs at least one entry"),
    (run("toy", "stages.0.name=a/b"), "stages: the name 'a/b' cannot be part of a file's name"),
    (run("toy", "threads=100000"), "threads: needs a number in [1, 1024], got 100000"),
    (run("toy", f"{TERM}.guidance.scale=.nan"), "guidance.scale: needs number"),
    (run("toy", "stages.0.terms=[]"), "stages.0.terms: needs at least one entry"),
    (run("toy", "window.size=0"), "window.size: needs a number of at least 1"),
    (run("toy", "unknown_words=no"), "unknown_words: needs refuse | warn"),
    (run("toy", f"{TERM}.guidance.scael=3"), "scael: unknown key; did you mean 'scale'"),
    (run("demo/magic3d", f"{FINE}.guidance.scael=3"), f"{FINE}.guidance.scael: unknown key; did you mean 'scale'"),
    (run("demo/magic3d", "stages.1.shape.resolutoin=3"), "stages.1.shape.resolutoin: unknown key; did you mean 'resolution'"),
    (run("toy", f"{TERM}.guidance.t_min=0.9", f"{TERM}.guidance.t_max=0.1"), f"{TERM}.guidance: t_min 0.9 and t_max 0.1"),
    (run("toy", f"{TERM}.guidance.t_max=[[0, 0.9], [60, 9]]"), "t_max 9 at step 60"),
    (run("toy", f"{TERM}.guidance.grad_clip=-1"), f"{TERM}.guidance: grad_clip: needs more than 0, got -1 at step 0"),
    (run("demo/prolificdreamer", f"{FINE}.guidance.grad_clip=[[0, 1], [9, 0]]"), "grad_clip: needs more than 0, got 0"),
    (run("toy", "stages.0.optimiser.lr={geometri: 0.1}"), "stages.0.optimiser: lr: no group 'geometri'"),
    (run("toy", "stages.0.optimiser.lr=-1"), "stages.0.optimiser: lr: the learning rate of geometry.encoding is below 0"),
    (run("toy", "stages.0.optimiser.betas=[0.9, 1]"), "stages.0.optimiser: betas: needs numbers of at least 0 and less than 1"),
    (run(SPLAT, "stages.0.optimiser.lr.geometry.position=3"), "lr"),
    (run("toy", "stages.0.optimiser.eps=-1"), "stages.0.optimiser: eps: needs 0 or more, got -1"),
    (run("toy", "stages.0.optimiser={use: Adan, weight_decay: -1}"), "stages.0.optimiser: weight_decay: needs 0 or more"),
    # components
    (run("toy", "stages.0.shape.use=subprocess:Popen"), "stages.0.shape.use: 'subprocess:Popen' is not a component of mpiprop"),
    (run("toy", "prompts=[a red ball, a blue ball]"), "prompts: a HashGrid (stages.0.shape) makes one object"),
    (run("toy", "prompts=[a red ball, ' ']"), 'nothing to make: give prompt="..."'),
    (run("toy", "prompt=a red ball", "prompts=[a blue ball]"), "prompts: give prompt or prompts, not both"),
    (run("toy", "prompts=nowhere.txt"), "prompts: nowhere.txt: cannot be read as prompts"),
    (run("toy", "stages.0.shape.use=HashGird"), "did you mean 'HashGrid'"),
    (run("toy", "stages.0.shape=HashGrid"), "stages.0.shape: needs {use: NAME, ...}"),
    (run("toy", "stages.0.shape={use: 'Adam'}"), "stages.0.shape.use: Adam is for 'optimiser'"),
    (run("toy", "stages.0.optimiser={use: 'Volume'}"), "stages.0.optimiser.use"),
    (run("toy", "stages.0.background={use: 'NoMaterial'}"), "is for 'material', not for"),
    (run("toy", f"{TERM}.views={{use: 'SDS'}}"), f"{TERM}.views.use: SDS is for 'guidance'"),
    (run("toy", f"{TERM}.guidance.prior={{use: 'Random'}}"), "Random is for 'views'"),
    (run("toy", "stages.0.shape.backend=tcnn"), "stages.0.shape"),
    (run("toy", "stages.0.render={use: 'Mesh'}"), "stages.0.render: Mesh draws surfaces"),
    (run("toy", "stages.0.render={use: 'Splat'}"), "stages.0.render: Splat draws clouds"),
    (run("demo/magic3d", "stages.1.render={use: 'Volume'}"), "Volume draws fields"),
    (run(SPLAT, "stages.0.render={use: 'Volume'}"), "use Splat"),
    (run("demo/magic3d", "stages.1.render.backend=nvdiffrast"), "stages.1.render.backend: nvdiffrast needs the package"),
    (run("toy", "stages.0.material={use: 'Normals'}"), "stages.0.material: Normals shades by normals"),
    (run("demo", "stages.0.shape.normal=none", "stages.0.material.ambient_only_steps=10"), "set shape.normal"),
    (run("toy", f"{TERM}.penalties.sparsty=3"), "penalties.sparsty: unknown key; did you mean 'sparsity'"),
    (run("toy", f"{TERM}.penalties.orient=1"), f"{TERM}.penalties.orient: the shape has no normals"),
    (run("toy", f"{TERM}.penalties.eikonal=1"), f"{TERM}.penalties.eikonal: the shape is no signed distance"),
    (run("demo/magic3d", f"{FINE}.penalties.z_variance=1"), f"{FINE}.penalties.z_variance: the image has no samples"),
    (run("demo", f"{TERM}.penalties.laplacian=1"), f"{TERM}.penalties.laplacian: the image has no surface"),
    (run("toy", f"{TERM}.guidance={{use: 'VSD', prior: {CLOSED}, prompts: {{use: 'Four'}}}}"),
     f"{TERM}.guidance.lora: missing"),
    (run("toy", f"{TERM}.guidance.prompts={{use: 'Cameras'}}"), "which this prior does not know"),
    (run("demo", f"{TERM}.guidance.prior={{use: 'MVDream'}}"), "use Cameras"),
    (run("demo", f"{TERM}.guidance.prior={{use: 'MVDream'}}", "window.shards=2",
         f"{TERM}.guidance.prompts={{use: 'Cameras'}}", f"{TERM}.views.group=4"), "give a multiple of 8"),
    (run("demo", f"{TERM}.guidance.prior={{use: 'MVDream'}}",
         f"{TERM}.guidance.prompts={{use: 'Cameras'}}"), f"{TERM}.views.group: the prior denoises 4"),
    (run("demo", f"{TERM}.views.group=3"), "a batch of 4 at step 0 is not made of groups of 3"),
    # models, in whatever stage
    (run("demo", f"{TERM}.guidance.prior.model=nobody/nothing"), "nobody/nothing"),
    (run("demo", f"{TERM}.guidance.prior.model=no/such/folder"), "there is no folder no/such/folder"),
    (run("demo/magic3d", f"{FINE}.guidance.prior.model=empty"), f"{FINE}.guidance.prior: model 'empty'"),
    (run("three.yaml"), "stages.2.terms.0.guidance.prior: model 'empty'"),
    # prompts and pictures
    (run("toy", "prompt="), "nothing to make: give prompt="),
    (run("toy", "prompt=  "), "nothing to make: give prompt="),
    (run("demo", "prompt=a corgi"), "prompt 'a corgi': names nothing that the builtin StableDiffusion can make"),
    (run("demo", "prompt=two green mushrooms"), '"mushrooms" (nearest: "mushroom")'),
    (run("demo", "image=picture.png"), "image=picture.png: demo makes objects from a prompt alone"),
    (run("demo/zero123"), "demo/zero123 makes objects from a picture: give image=FILE"),
    (run("demo/zero123", "image=none.png"), "image=none.png: no such file"),
    (run("demo/zero123", "image=."), "image=.: cannot be read: Is a directory"),
    (run("demo/zero123", "image=list.yaml"), "image=list.yaml: not a picture that can be read"),
    (run("demo/zero123", "image=clear.png"), "image=clear.png: there is nothing in it"),
    (run("demo/zero123", "image=opaque.png"), "image=opaque.png: has a background and no transparency"),
    (run("demo/zero123", "image=picture.png", "stages.0.terms.1.guidance.depth=1"), "depth: there is no picture of it beside"),
    (run("demo/zero123", "image=picture.png", "stages.0.terms.1.views.use=Random"), "views"),
    # sizes
    (run("demo", "mesh.resolution=100000"), "lower mesh.resolution"),
    (run("demo", "mesh.texture=9000"), "mesh.texture: needs a number in [0, 8192]"),
    (run("demo", "turntable.size=100000"), "lower turntable.frames or turntable.size"),
    (run("demo", "turntable.frames=100000000"), "lower turntable.frames or turntable.size"),
    (run("demo", "preview.size=1000000"), "lower preview.views or preview.size"),
    (run("toy", "stages.0.shape.log2_table=40", "stages.0.shape.base_resolution=100000"), "stages.0.shape: does not fit"),
    (run("toy", "stages.0.shape.levels=0"), "stages.0.shape: levels: needs more than 0"),
    (run("toy", "stages.0.shape.radius=0"), "stages.0.shape: radius: needs more than 0"),
    (run("toy", "stages.0.shape.hidden_layers=-1"), "stages.0.shape: hidden_layers: needs more than 0, got -1"),
    (run("demo/textmesh", "stages.0.shape.hidden_layers=0"), "stages.0.shape: hidden_layers: needs more than 0, got 0"),
    (run("demo/magic3d", "stages.1.shape.hidden_layers=-1"), "stages.1.shape: hidden_layers: needs more than 0, got -1"),
    (run("toy", "stages.0.shape.start_level=-1"), "stages.0.shape: start_level: needs more than 0, got -1"),
    (run("toy", "stages.0.shape.update_steps=0"), "stages.0.shape: update_steps: needs more than 0, got 0"),
    (run("toy", "stages.0.shape.growth=1.0e+300"), "stages.0.shape: growth: 1e+300 gives the finest of 4 grids more than 2^24"),
    (run("demo", "stages.0.shape.growth=60"), "stages.0.shape: growth: 60 gives the finest of 6 grids more than 2^24 cells"),
    (run("demo", "stages.0.shape.growth=0.5"), "stages.0.shape: growth: needs 1 or more, got 0.5"),
    (run("toy", "stages.0.shape.occupancy_resolution=5000"), "stages.0.shape: does not fit"),
    (run("toy", "stages.0.shape.blob_std=0"), "stages.0.shape: does not work with these values (ZeroDivisionError"),
    (run("toy", f"{TERM}.guidance.prior.size=0"), f"{TERM}.guidance.prior: does not work with these values"),
    (run("demo", f"{TERM}.guidance.prior.resolution=7"), "resolution 7: needs a multiple of 4"),
    (run("demo", f"{TERM}.guidance.prior.resolution=100000"), "stage coarse: memory of"),
    (run("demo/magic3d", "stages.1.shape.fit=none.obj"), "stages.1.shape: none.obj: cannot be read as a mesh"),
    (run(SPLAT, "stages.0.shape.points=none.ply"), "none.ply: cannot be read as a PLY file"),
    (run(SPLAT, "stages.1.terms.0.guidance.strength=3"), "stages.1.terms.0.guidance: strength: 3 at step 0"),
    (run("demo/prolificdreamer", f"{TERM}.guidance.lora.rank=0"), f"{TERM}.guidance.lora: rank 0"),
    (run("toy", "stages.0.render.samples=0"), "stages.0.render: samples 0"),
    (run("demo/magic3d", "stages.1.shape.resolution=5000"), "stages.1.shape: resolution: needs a number in [4, 512]"),
    (run(SPLAT, "stages.1.shape.texture=200000"), "stages.1.shape: does not fit"),
    (run(SPLAT, "stages.0.shape.number=0"), "stages.0.shape: number: out of range"),
    (run(SPLAT, "stages.1.shape.resolution=50000"), "lower mesh.resolution"),
    (run("toy", f"{TERM}.views.batch=0"), f"{TERM}.views: batch: needs at least 1, got 0"),
    (run("toy", f"{TERM}.views.size=[[0, 16], [60, -1]]"), f"{TERM}.views: size: needs at least 1, got -1"),
    (run("toy", f"{TERM}.views.batch=100000000000"), f"{TERM}.views: does not fit"),
    (run("toy", f"{TERM}.views.fovy_deg=[0, 60]"), f"{TERM}.views: fovy_deg [0.0, 60.0]"),
    (run("toy", f"{TERM}.views.distance=[-1, 2]"), f"{TERM}.views: distance [-1.0, 2.0]"),
    # stages that do not follow one another
    (run("texture.yaml"), "stages.0.shape: begins with the shape of a stage before it"),
    (run("demo/magic3d", f"stages.1.shape={HASHGRID}", "stages.1.render={use: 'Volume'}",
         f"{FINE}.penalties={{}}"), "stages.1.shape: this stage's shape, a HashGrid, is laid out otherwise"),
    (run("demo/magic3d", "stages.1.shape.levels=3"), "stages.1.shape: inherit_texture: the previous stage's texture"),
    (run(SPLAT, "stages.1.shape={use: 'DMTet', resolution: 16}"), "a DMTet cannot begin with a Gaussians"),
    (run("demo", "from=nowhere"), "from=nowhere: no run folder with a window.h5"),
    (run("demo", "from=damaged"), "damaged"),
    # where it goes
    (run("toy", "--out", "list.yaml"), "list.yaml: cannot be a folder"),
    (run("toy", "--out", "list.yaml/below"), "cannot be a folder: "),
    (run("toy", "--out", "/proc/nothing"), "/proc/nothing: the disk has 0 B left"),
    (run("toy", "--out", "full"), "full: "),
    (run("toy", "--out="), "argument --out: needs the name of a file or folder"),
    (["export", "", "--out=mesh.glb"], "argument RUN: needs the name of a file or folder"),
    # other commands
    (["export", "nowhere"], "nowhere: not a run folder"),
    (["inspect", "nowhere.h5"], "no such checkpoint"),
    (["evaluate", "nowhere"], "nowhere"),
    (["report", "nowhere"], "nowhere"),
    (["plan", "toy"], "--ranks"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of things that are not what they are taken for."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "list.yaml").write_text("- 1\n")
    (folder / "broken.yaml").write_text("prompt: x\nstages: [}\n")
    (folder / "twice.yaml").write_text("prompt: x\nprompt: y\n")
    rgba = Image.new("RGBA", (32, 32), (200, 30, 30, 0))
    rgba.save(folder / "clear.png")
    rgba.paste((200, 30, 30, 255), (8, 8, 24, 24))
    rgba.save(folder / "picture.png")
    rgba.convert("RGB").save(folder / "opaque.png")
    (folder / "empty").mkdir()
    for name in ("full", "damaged"):
        (folder / name).mkdir()
        (folder / name / "window.h5").write_text("no checkpoint")
    tree = loader.read("demo/magic3d")
    third = {**tree["stages"][1], "name": "third"}
    third["terms"] = [{**third["terms"][0], "guidance": {**third["terms"][0]["guidance"], "prior": {
        "use": "StableDiffusion", "model": "empty"}}}]
    (folder / "three.yaml").write_text(yaml.safe_dump({**tree, "stages": [*tree["stages"], third]}))
    tree = loader.read(SPLAT)
    (folder / "texture.yaml").write_text(yaml.safe_dump({**tree, "stages": tree["stages"][1:]}))
    return folder


@pytest.mark.parametrize(("words", "told"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_is_one_line_and_nothing_is_made(monkeypatch, capfd, place, words, told):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["mpiprop", *words])
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process is pytest's
    before = sorted(place.rglob("*"))
    assert main() == 2
    out, err = capfd.readouterr()
    assert told in err and len(err.strip().splitlines()) == 1 and "Traceback" not in err, err
    assert sorted(place.rglob("*")) == before
