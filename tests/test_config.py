"""Configuration: what is read is what was meant, complete; a mistake is one line that says where and what instead."""

import inspect
from collections.abc import Iterator
from dataclasses import MISSING, replace
from pathlib import Path
from typing import Literal, get_type_hints

import pytest
import yaml

from mpiprop.config import components, loader
from mpiprop.config.components import MODULES, Node, build, find, plugins
from mpiprop.config.conversion import convert
from mpiprop.config.schema import Published, Run, WindowConfig
from mpiprop.core.errors import UserError
from mpiprop.core.schedules import Schedule


class Ball:
    """A ball.

    radius: of the ball (world units)
    colour: of the ball,
        all over
    """

    def __init__(self, device: str, *, radius: float = 1.0, colour: tuple[float, float, float] = (1, 0, 0),
                 levels: int = 4, lit: bool = True, label: str | None = None,
                 kind: Literal["solid", "hollow"] = "solid",
                 rate: Schedule | dict[str, Schedule] = 0.1) -> None:
        if radius <= 0:
            raise UserError("radius: needs more than 0")
        self.device, self.radius, self.levels, self.rate = device, radius, levels, rate


class Holder:
    """Holds a ball that the program builds, and another that it was configured with."""

    def __init__(self, ball: Ball, *, spare: Node | None = None, must: int) -> None:
        self.ball, self.spare, self.must = ball, spare, must


BALL = {"use": "ball"}
HOLDER = {"use": "holder", "must": 1, "ball": {**BALL, "levels": 2}}
TERM = {"name": "novel", "views": BALL, "guidance": HOLDER}
STAGE = {"name": "only", "steps": 10, "shape": BALL, "material": BALL, "background": BALL, "render": BALL,
         "optimiser": BALL, "terms": [TERM]}
TREE = {"prompt": "a pear", "stages": [STAGE]}


@pytest.fixture(autouse=True)
def registered(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a package is installed that registers what this module defines, and things that go wrong."""
    site = tmp_path_factory.mktemp("site")
    for package, entries in {"parts": ["ball = test_config:Ball", "holder = test_config:Holder", "needy = needy:Thing",
                                       "function = test_config:function", "twice = test_config:Ball",
                                       "SDS = test_config:Ball"],
                             "others": ["twice = test_config:Holder"]}.items():
        (site / f"{package}-1.dist-info").mkdir()
        (site / f"{package}-1.dist-info/METADATA").write_text(f"Name: {package}\nVersion: 1\n")
        text = "\n".join(["[mpiprop.components]", *entries])
        (site / f"{package}-1.dist-info/entry_points.txt").write_text(text)
    (site / "needy.py").write_text("import a_package_nobody_has\n")
    monkeypatch.syspath_prepend(site)
    for cached in (plugins, find):
        cached.cache_clear()
    yield site
    for cached in (plugins, find):
        cached.cache_clear()


def function() -> None:
    """No class."""


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A small valid configuration, as a file."""
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(TREE))
    return str(tmp_path / "small.yaml")


@pytest.mark.parametrize("name", loader.names())
def test_every_configuration_that_ships_is_valid_and_survives_its_own_text(name: str, tmp_path: Path) -> None:
    run = loader.load(name)
    (tmp_path / "config.yaml").write_text(loader.resolved(run))
    assert loader.load(str(tmp_path / "config.yaml")) == run
    assert loader.resolved(loader.load(str(tmp_path / "config.yaml"))) == loader.resolved(run)


def test_defaults_of_records_and_components_are_filled_in(path: str) -> None:
    run = loader.load(path)
    assert (run.seed, run.device, run.window.size, run.turntable.frames) == (0, "auto", 7, 60)
    assert run.stages[0].shape.keys == {"radius": 1.0, "colour": (1.0, 0.0, 0.0), "levels": 4, "lit": True,
                                        "label": None, "kind": "solid", "rate": 0.1}
    text = loader.resolved(run)
    assert "radius: 1.0" in text and "frames: 60" in text


def test_the_order_of_keys_in_the_file_does_not_show(path: str, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(dict(reversed(TREE.items())), sort_keys=False))
    one, other = (loader.resolved(loader.load(name, ["name=x"])) for name in (path, str(tmp_path / "other.yaml")))
    assert one == other


def test_overrides_reach_any_depth_and_leave_the_rest(path: str) -> None:
    run = loader.load(path, ["stages.0.steps=20", "window.size=1", "stages.0.terms.0.guidance.ball.levels=9",
                             "stages.0.shape.rate=[[0, 1], [10, 2]]", "stages.0.terms.0.penalties.opaque=1e-3",
                             "mesh.threshold=5e-6", "seed=7"])
    stage = run.stages[0]
    assert (stage.steps, stage.window.size, run.seed, run.mesh.threshold) == (20, 1, 7, 5e-6)
    assert stage.terms[0].guidance.part("ball").keys["levels"] == 9 and stage.terms[0].views.keys["levels"] == 4
    assert stage.shape.keys["rate"] == ((0, 1.0), (10, 2.0))
    assert stage.terms[0].penalties == {"opaque": 1e-3}


@pytest.mark.parametrize("prompt", [
    "null", "3", "1e5", "", "a: b", "- a", "{x: 1}", "it's \"so\"", "a=b", "two\nlines", "two\r\nlines", "tab\tand \\n",
    "#1", " a ", "yes", "ein gr\u00fcner Pilz \U0001f344", "\x85\u2028\ufeff\x07", "!!python/object:os.system", "&a *a",
    "%", "@", "`", "x" * 500])
def test_a_prompt_arrives_as_it_was_typed(path: str, prompt: str, tmp_path: Path) -> None:
    run = loader.load(path, [f"prompt={prompt}"])
    assert run.prompt == prompt
    (tmp_path / "config.yaml").write_text(loader.resolved(run), encoding="utf-8", newline="")
    assert loader.load(str(tmp_path / "config.yaml")).prompt == prompt


def test_a_stage_overrides_the_window_of_the_run_key_by_key(path: str, tmp_path: Path) -> None:
    run = loader.load(path, ["window.size=3", "window.decay=0.5", "stages.0.window.size=2"])
    assert (run.stages[0].window.size, run.stages[0].window.decay) == (2, 0.5)
    (tmp_path / "config.yaml").write_text(loader.resolved(run))
    again = loader.load(str(tmp_path / "config.yaml"), ["window.decay=0.1", "window.size=9"])
    assert (again.stages[0].window.size, again.stages[0].window.decay) == (2, 0.1)


def test_the_preset_of_the_paper_completes_what_is_not_given(path: str, tmp_path: Path) -> None:
    """What is given beside the preset wins, for the run and for one stage; the resolved text is the same run."""
    published = "window.paper={threshold: 5.0e-5, aggregate: mean}"
    paper = WindowConfig(preset="paper", threshold=5e-5, decay=0.9, aggregate="mean", predict="copy", reuse=False,
                         compare="scene", paper=Published(5e-5, "mean"))
    cases = {
        (published,): WindowConfig(paper=paper.paper),
        (published, "window.preset=paper"): paper,
        (published, "stages.0.window.preset=paper"): paper,
        (published, "window.preset=paper", "window.threshold=1e-5", "window.size=3"): replace(paper, threshold=1e-5, size=3),
        (published, "window.preset=paper", "stages.0.window={decay: 0.5, reuse: true}"): replace(paper, decay=0.5, reuse=True),
        (published, "window.preset=paper", "stages.0.window.preset=default"): WindowConfig(paper=paper.paper),
        ("window.preset=paper", "window.threshold=0"): replace(paper, threshold=0.0, aggregate="median", paper=None),
        ("window.preset=paper", "stages.0.window.paper={threshold: 5.0e-5, aggregate: mean}"): paper}
    for overrides, wanted in cases.items():
        run = loader.load(path, overrides)
        assert run.stages[0].window == wanted, overrides
        (tmp_path / "config.yaml").write_text(loader.resolved(run))
        assert loader.load(str(tmp_path / "config.yaml")) == run


def test_aliases_in_a_file_are_separate_things(tmp_path: Path) -> None:
    text = yaml.safe_dump({**TREE, "stages": [STAGE, {**STAGE, "name": "second"}]})
    assert "&id" in text  # shared nodes were written as aliases
    (tmp_path / "two.yaml").write_text(text)
    run = loader.load(str(tmp_path / "two.yaml"), ["stages.0.shape.levels=9"])
    assert [stage.shape.keys["levels"] for stage in run.stages] == [9, 4]


def test_build_gives_the_context_and_the_keys_and_drops_what_the_program_builds(path: str) -> None:
    guidance = loader.load(path).stages[0].terms[0].guidance
    holder = build(guidance, build(guidance.part("ball"), "cpu"), must=5)
    assert (holder.ball.device, holder.ball.levels, holder.must, holder.spare) == ("cpu", 2, 5, None)


@pytest.mark.parametrize(("overrides", "message"), [
    (["seeed=1"], "seeed: unknown key; did you mean 'seed'?"),
    (["window.sise=1"], "window.sise: unknown key; did you mean 'size'?"),
    (["stages.0.window.sise=1"], "stages.0.window.sise: unknown key; did you mean 'size'?"),
    (["stages.0.shape.levles=1"], "stages.0.shape.levles: unknown key; did you mean 'levels'?"),
    (["stages.0.shape.device=cpu"], "stages.0.shape.device: unknown key; valid: radius, colour, levels, "),
    (["stages.0.terms.0.guidance.ball.levles=1"], "guidance.ball.levles: unknown key; did you mean 'levels'?"),
    (["stages.0.terms.0.guidance.spare.use=bal"], "spare.use: 'bal' is not a component of mpiprop or of an installed plug-in; "
     "did you mean 'ball'?"),
    (["stages.0.shape.use=HashGird"], "stages.0.shape.use: 'HashGird' is not a component of mpiprop or of an installed "
     "plug-in; did you mean 'HashGrid'?"),
    (["stages.0.optimiser.use=SDG"], "did you mean 'SGD'?"),
    (["stages.0.shape.use=subprocess:Popen"], "'subprocess:Popen' is not a component of mpiprop or of an installed plug-in"),
    (["stages.0.shape.use=test_config:Ball"], "'test_config:Ball' is not a component"),
    (["stages.0.shape.use=shapes.base:Shape"], "'shapes.base:Shape' is not a component"),
    (["stages.0.shape.use=SGD"], "stages.0.shape.use: SGD is for 'optimiser', not for 'shape'; "),
    (["stages.0.shape.use=needy"], "'needy' of the package parts does not load: ModuleNotFoundError: "),
    (["stages.0.shape.use=function"], "'function' of the package parts is test_config:function, which is not a class"),
    (["stages.0.shape.use=twice"], "'twice' is registered by several packages, others and parts: uninstall all but one"),
    (["stages.0.shape.use=3"], "stages.0.shape: needs {use: NAME, ...}, got {"),
    (["stages.0.shape=null"], "stages.0.shape: needs {use: NAME, ...}, got null"),
    (["stages.0.shape.levels=2.5"], "stages.0.shape.levels: needs whole number, got 2.5"),
    (["stages.0.shape.levels=true"], "stages.0.shape.levels: needs whole number, got True"),
    (["stages.0.shape.radius=.nan"], "stages.0.shape.radius: needs number, got nan"),
    (["stages.0.shape.radius=1e999"], "stages.0.shape.radius: needs number, got inf"),
    ([f"stages.0.shape.radius={10 ** 400}"], "stages.0.shape.radius: needs number, got 1000"),
    (["stages.0.shape.rate={1: 2}"], "stages.0.shape.rate: needs number | [[step, number], ...] | {name: "),
    (["stages.0.shape.lit=1"], "stages.0.shape.lit: needs true | false, got 1"),
    (["stages.0.shape.label=1"], "stages.0.shape.label: needs text | null, got 1"),
    (["stages.0.shape.kind=holow"], "stages.0.shape.kind: needs solid | hollow, got 'holow'"),
    (["stages.0.shape.colour=[1, 2]"], "stages.0.shape.colour: needs [number, number, number], got [1, 2]"),
    (["stages.0.shape.colour=[1, 2, x]"], "stages.0.shape.colour.2: needs number, got 'x'"),
    (["stages.0.shape.rate=[[0, 1], [0, 2]]"], "stages.0.shape.rate: the steps of a schedule ascend, got [0, 0]"),
    (["stages.0.shape.rate=[1, 2]"], "stages.0.shape.rate: needs number | [[step, number], ...] | {name: "),
    (["stages.0.shape.rate.a=x"], "stages.0.shape.rate.a: needs number | [[step, number], ...], got 'x'"),
    (["stages.0.steps=0"], "stages.0.steps: needs a number of at least 1, got 0"),
    (["window.size=0"], "window.size: needs a number of at least 1, got 0"),
    (["window.decay=1.5"], "window.decay: needs a number in [0, 1], got 1.5"),
    (["window.threshold=-1"], "window.threshold: needs a number of at least 0, got -1.0"),
    (["window.threshold=atuo"], "window.threshold: needs auto | number, got 'atuo'"),
    (["seed=-1"], "seed: needs a number of at least 0, got -1"),
    (["seed="], "seed: needs whole number, got null"),
    (["device=gpu"], "device: needs auto | cpu | cuda, got 'gpu'"),
    (["window=3"], "window: needs {preset, size, threshold, "),
    (["window.preset=papers"], "window.preset: needs default | paper, got 'papers'"),
    (["window.preset=paper"], "stages.0.window.preset: no published threshold is known for this stage: give one, such as "),
    (["window.preset=paper", "window.paper={threshold: 1}"], "paper.aggregate: missing; needs median | mean | middle"),
    (["window.paper=3"], "window.paper: needs null | {threshold, aggregate}, got 3"),
    (["stages.1.steps=3"], "stages.1.steps: no '1' in a list numbered 0 to 0"),
    (["stages.x.steps=3"], "stages.x.steps: no 'x' in a list numbered 0 to 0"),
    (["seed=1", "seed.x=3"], "seed.x: there are no keys in 1, so no 'x'"),
    (["stages=[]"], "stages: needs at least one entry"),
    (["stages.0.terms=[]"], "stages.0.terms: needs at least one entry"),
    (["stages.0.terms=[3]"], "stages.0.terms.0: needs {name, views, "),
    (["seed"], "seed: an override reads key=value"),
    (["=3"], "=3: an override reads key=value"),
    (["window={a: [}"], "window: not YAML (line 1): "),
    (["window={size: 1, size: 2}"], "not YAML (line 1): key 'size' given twice"),
    (["prompt=\udcff"], "prompt: not UTF-8 text"),
])
def test_a_mistake_is_one_line_that_names_it(path: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        loader.load(path, overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "message"), [
    ("seed: 1\nseed: 2\n", "not YAML (line 2): key 'seed' given twice"),
    ("seed: [1\n", "not YAML (line 2)"),
    ("- 1\n", "needs keys and values (name, prompt, prompts, image, from, "),
    ("", "needs keys and values"),
    ("prompt: x\n", "stages: missing; needs ["),
    ("seed: !!python/object:os.system x\n", "not YAML (line 1): could not determine a constructor"),
    ("1: 2\nstages: []\n", "1: unknown key; valid: name, prompt, prompts, image, "),
    (yaml.safe_dump(TREE).replace("steps: 10", ""), "stages.0.steps: missing; needs whole number"),
    (yaml.safe_dump({**TREE, "stages": [STAGE, STAGE]}), "stages: needs at least one entry, each with a name of its"),
    (yaml.safe_dump(TREE).replace("must: 1", "spare: null"), "stages.0.terms.0.guidance.must: missing; needs whole"),
])
def test_a_mistake_in_a_file_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        loader.load(str(tmp_path / "bad.yaml"))
    assert str(error.value).startswith(f"{tmp_path / 'bad.yaml'}: ") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_configuration_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^no-such-thing: no such configuration or file"):
        loader.load("no-such-thing")
    with pytest.raises(UserError, match="no such configuration or file"):
        loader.load(str(tmp_path))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        loader.load(str(tmp_path / "binary.yaml"))


def test_mistakes_of_a_constructor_say_where_it_stands(path: str) -> None:
    shape = loader.load(path, ["stages.0.shape.radius=-1"]).stages[0].shape
    with pytest.raises(UserError, match=r"^stages\.0\.shape: radius: needs more than 0$"):
        build(shape, "cpu")
    with pytest.raises(UserError, match=r"^stages\.0\.shape\.prior: missing; ball needs a component there"):
        shape.part("prior")


@pytest.mark.parametrize("use", MODULES)
def test_what_is_read_of_a_component_is_what_python_has(use: str) -> None:
    """Names, annotations, defaults and docs, read from the source, against those of the imported class."""
    component, cls = find(use), find(use).load()
    assert (cls.__module__, cls.__name__) == (f"mpiprop.{MODULES[use]}", use)
    every = inspect.signature(cls).parameters.values()
    assert component.context == tuple(p.name for p in every if p.kind is p.POSITIONAL_OR_KEYWORD)
    keys = {}
    for base in (base for base in inspect.getmro(cls) if "__init__" in vars(base)):
        hints, own = get_type_hints(base.__init__), inspect.signature(base.__init__).parameters.values()
        keys = {p.name: (hints[p.name], MISSING if p.default is p.empty else p.default)
                for p in own if p.kind is p.KEYWORD_ONLY} | keys
        if all(p.kind is not p.VAR_KEYWORD for p in own):
            break
    assert component.keys == keys
    assert component.docs[0] == inspect.getdoc(cls)
    assert set(component.meanings) >= set(component.keys), "keys without a `name: text` line in the class's docstring"


@pytest.mark.parametrize(("former", "use"), [("picard.rollout:Adam", "Adam"), ("shapes.cloud:Gaussians", None),
                                             ("priors.prompts:Eight", "Eight")])
def test_former_names_of_components_are_read(former: str, use: str | None) -> None:
    """Configurations and checkpoints of version 0.1.0 name components by the modules that they were in."""
    if use is None:
        with pytest.raises(UserError, match="is not a component"):
            convert(Node, {"use": former}, "x")
    else:
        assert convert(Node, {"use": former}, "x").use == use


def test_a_plug_in_cannot_take_the_place_of_a_component_of_mpiprop() -> None:
    assert "SDS" not in components.plugins() and find("SDS").load() is not Ball


def test_numbers_become_what_the_annotation_says() -> None:
    value = convert(float, 3, "x")
    assert value == 3.0 and type(value) is float
    assert convert(tuple[int, ...], [1, 2, 3], "x") == (1, 2, 3)
    assert convert(int | tuple[int, int] | None, [4, 5], "x") == (4, 5)
    assert convert(dict[str, float], {"a": 1}, "x") == {"a": 1.0}


def test_a_run_is_immutable() -> None:
    run: Run = loader.parse(TREE, "here")
    with pytest.raises(AttributeError):
        run.seed = 3


def test_several_prompts_come_from_a_list_or_a_file(path: str, tmp_path: Path) -> None:
    """They take the place of the configuration's prompt; a run that is read again has the same ones."""
    (tmp_path / "lines.txt").write_text("a red pear\n\na blue pear\n")
    (tmp_path / "parts.json").write_text('{"train": ["a red pear", "a blue pear"], "test": ["a pear"]}')
    for given in ("[a red pear, a blue pear]", tmp_path / "lines.txt", tmp_path / "parts.json"):
        run = loader.load(path, [f"prompts={given}"])
        assert run.prompts == ("a red pear", "a blue pear") and run.prompt == ""
        (tmp_path / "config.yaml").write_text(loader.resolved(run))
        assert replace(loader.load(str(tmp_path / "config.yaml")), name=run.name) == run
        assert loader.load(str(tmp_path / "config.yaml"), ["prompt=a pear"]).prompts == ("a pear",)
    assert loader.load(path).prompts == ("a pear",)
    for both in (["prompt=a pear", "prompts=[a red pear]"], ["prompts.0=a pear"]):
        with pytest.raises(UserError):
            loader.load(path, both)
