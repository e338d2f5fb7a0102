"""Before the first step: what a run needs is checked, for all of its stages, and its plan is shown."""

from mpiprop.__main__ import dispatch


def test_a_check_says_yes_and_writes_nothing(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert dispatch(["run", "toy", "--check"]) == 0
    assert not list(tmp_path.iterdir())
