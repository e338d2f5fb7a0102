"""Runs a stage on rank 0: the loop `for window in propel(...)` with checkpoints, the log and previews."""

from dataclasses import replace
from itertools import chain
from pathlib import Path

from mpiprop import __version__
from mpiprop.run import checkpoint, outputs, preemption
from mpiprop.config import loader
from mpiprop.config.schema import Run
from mpiprop.core.errors import DONE, PREEMPTED, Preempted, UserError, exit_code
from mpiprop.run.log import Log
from mpiprop.core.theta import Drift, Layout, State
from mpiprop.run.generator import beginning
from mpiprop.run.saver import Keeper
from mpiprop.optim.rollout import Rollout
from mpiprop.picard.window import Window
from mpiprop.run.stage import Stage
from mpiprop.run.progress import Reporter
from mpiprop.shapes.surfaces.base import TexturedSurface
from mpiprop.transport.base import Transport


class Drive:
    """A stage from its checkpoint, or from its beginning, to its end."""

    def __init__(self, run: Run, text: str, stage: Stage, folder: Path, log: Log, last: bool) -> None:
        self.run, self.stage, self.folder, self.log, self.last = run, stage, folder, log, last
        self.keeper = Keeper(folder / "window.h5", stage.name, run.seed, text, run.checkpoint.every_s)
        self.reporter = Reporter(run, stage, folder, log)

    def begin(self) -> Layout:
        """Returns the layout of theta in this stage, which depends on the checkpoint or on the stage before."""
        self.window = self._begin()
        return self.window.x.theta.layout

    def __call__(self, transport: Transport) -> int | None:
        """The exit code of the run, None if another stage follows. Raises Preempted, or what went wrong, after saving."""
        self.transport, rollout, complete = transport, self.stage.rollout(), False
        self.reporter.begin(self.window)
        try:
            if self.window.x.tau == 0:
                self.keeper.save(self.window)
            self._loop(rollout)
            complete = self.last
            self.keeper.save(self.window, complete)
            if self.last:
                outputs.write(self.run, self.stage, self.window.x.theta, self.folder, self.log, self._stay)
                self.reporter.state("done")
            else:
                outputs.cloud(self.stage, self.window.x.theta, self.folder)  # what the next stage makes of it may be none
        except Exception as error:
            state = "failed"
            try:
                self.keeper.save(self.window, complete)
                state = "preempted" if exit_code(error) == PREEMPTED else "failed"
                if isinstance(error, Preempted):
                    why, tau = preemption.asked() or "a signal on another rank", self.window.x.tau
                    self.log.parting(f"{why}: step {tau} of {self.stage.T} saved in {self.keeper.path}; "
                                     f"go on with: {preemption.again()}")
                    (self.folder / "stop").unlink(missing_ok=True)
            finally:
                self.reporter.state(state)
            raise
        return DONE if self.last else None

    def _begin(self) -> Window:
        """The window to go on from: the checkpoint's, or a new one, from where the previous stage ended if there is one."""
        stage, path = self.stage, self.keeper.path
        found = checkpoint.load(path, stage.device) if path.exists() else None
        if found and found.stage == stage.name:
            layout = found.window.x.theta.layout
            if not stage.scene.layout.of_points(layout.N).admits(layout):
                raise UserError(f"{path}: its numbers are laid out otherwise than those of stage {stage.name}; "
                                "give the same configuration, or another --out")
            self.log.rewind(stage.name, found.window.k)
            self.log.say(f"resumed {path} at step {found.window.x.tau} of {stage.T}")
            then = loader.parse(loader.loads(found.config, "checkpoint"), str(path))
            (window,) = (one.window for one in then.stages if one.name == stage.name)
            stage.scene.load(found.window.x.theta, found.window.x.tau)
            return stage.retold(found.window, window.threshold)
        maker = beginning(self.run, stage.device) if found is None else None
        if found is None and self.run.from_ and maker is None:
            path = Path(self.run.from_) / "window.h5"
            found = checkpoint.load(path, stage.device)
        if maker is not None:
            theta = stage.begin_with(maker, self.log.say)
        elif found is None:
            stage.scene.shape.begin()
            theta = stage.scene.theta()
            if isinstance(stage.scene.shape, TexturedSurface):
                raise UserError(f"stage {stage.name}: its shape begins with that of a stage before it: put one before it, or "
                                "give from=RUN")
        else:
            then = loader.parse(loader.loads(found.config, "checkpoint"), str(path))
            index = then.index(found.stage)
            theta = stage.begin(Stage(then, index, stage.device), found.window.x.theta, self.log.say)
            self.log.say(f"stage {stage.name} begins with stage {found.stage} of {path} at step {found.window.x.tau}")
        stage.scene.load(theta, 0)
        D, L = theta.layout.D, theta.layout.L
        self.log.say(f"mpiprop {__version__}: {self.run.subject!r}, stage {stage.name}, {stage.T} steps, {D:,} trained numbers"
                     + (f", plus {L - D:,} stored but not trained" if L > D else "") + f", on {stage.device} -> {self.folder}")
        return stage.open_window(stage.rollout(), theta)

    def _loop(self, rollout: Rollout) -> None:
        stage, reporter = self.stage, self.reporter

        def h_dagger(drift: Drift, x: State) -> State:
            with reporter.timed("rollout"):
                return rollout(drift, x)

        def gathered() -> None:
            self.window = replace(self.window, guess=())  # nothing interrupts the iteration from here on

        propel = stage.propel(rollout)
        for self.window in chain.from_iterable(propel(self.window, self.transport, h_dagger, T=end, gathered=gathered)
                                               for end in stage.ends()):
            reporter.slide(self.window, self.transport)
            with reporter.timed("checkpoint"):
                self.keeper.offer(self.window)
            with reporter.timed("preview"):
                reporter.show(self.window)
            self._stay()

    def _stay(self) -> None:
        """Raises Preempted if the run has been asked to leave."""
        if self.transport.asked():
            raise Preempted
