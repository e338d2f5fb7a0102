"""The JSON schema of configurations, by the reference validator: it takes what the program takes, and refuses typos."""

import json

import pytest
from jsonschema import Draft202012Validator

from mpiprop.cli.main import dispatch
from mpiprop.config import loader
from mpiprop.config.json_schema import schema
from mpiprop.core.errors import UserError

SCHEMA = schema()
VALIDATOR = Draft202012Validator(SCHEMA)


def test_it_is_a_schema_and_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert dispatch(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(SCHEMA))


@pytest.mark.parametrize("name", loader.names())
def test_every_configuration_is_valid_as_written_and_as_resolved(name: str) -> None:
    written = loader.read(name)
    resolved = loader.loads(loader.resolved(loader.load(name)), name)
    for tree in (written, resolved):
        assert [error.message for error in VALIDATOR.iter_errors(tree)] == []


@pytest.mark.parametrize("override", [
    "seeed=1", "seed=-1", "seed=one", "device=gpu", "window.sise=7", "window.threshold=hot", "stages.0.steps=0",
    "stages.0.shape.use=HashGird", "stages.0.shape.levles=3", "stages.0.shape.use=Adam", "stages.0.terms.0.guidance.prior=1",
    "stages.0.terms.0.guidance.weighting=none", "stages.0.optimiser.lr=[[0]]", "prompts=3", "mesh.texture=10000"])
def test_what_the_program_refuses_is_invalid(override: str) -> None:
    with pytest.raises(UserError):
        loader.load("toy", [override])
    assert list(VALIDATOR.iter_errors(loader.read("toy", [override])))


@pytest.mark.parametrize("override", [
    "prompts=[a red chair, a blue chair]", "prompts=list.txt", "stages.0.optimiser.lr=[[0, 0.1], [5, 0.01]]",
    "stages.0.optimiser.lr={geometry: 0.1}", "window.threshold=0", "stages.0.terms.0.penalties={sparsity: [[0, 1], [9, 0]]}"])
def test_what_a_user_may_write_is_valid(override: str) -> None:
    assert list(VALIDATOR.iter_errors(loader.read("toy", [override]))) == []


def test_keys_are_explained() -> None:
    """What an editor shows: a text at each key, and the default."""
    assert SCHEMA["properties"]["seed"]["description"] and SCHEMA["properties"]["seed"]["default"] == 0
    (grid,) = (one for one in SCHEMA["$defs"]["shape"]["anyOf"] if one["properties"]["use"]["const"] == "HashGrid")
    assert grid["description"] and all(key["description"] for name, key in grid["properties"].items() if name != "use")
