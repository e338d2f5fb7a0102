"""One stage of a run, from its configuration: the scene on every rank, the unit where it evaluates, the rollout on root."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from mpiprop.run import fitting, transition
from mpiprop.config.components import Node, build, placed, takes, texts
from mpiprop.config.schema import Run
from mpiprop.config.conversion import plain
from mpiprop.core.errors import UserError, suggestion
from mpiprop.core.streams import Streams
from mpiprop.core.theta import Theta
from mpiprop.estimators.base import Frozen
from mpiprop.guidance.regularizers import PENALTIES
from mpiprop.guidance.stein import Noise
from mpiprop.picard import algorithm, pipelined, threshold
from mpiprop.optim.carried import Carried
from mpiprop.optim.rollout import Rollout
from mpiprop.picard.window import Threshold, Window, copies, distance
from mpiprop.priors.base import Prior
from mpiprop.priors.lora import Lora
from mpiprop.conditioning.base import Conditioner, Conditions, texts_for
from mpiprop.conditioning.several import SeveralConditions
from mpiprop.conditioning.store import Store, Stored
from mpiprop.objective.scene import Scene
from mpiprop.objective.gradient import ComputationUnit, Term
from mpiprop.run.generator import Maker
from mpiprop.shapes.clouds.base import Cloud
from mpiprop.shapes.generators.base import Generator
from mpiprop.views.reference import Pose, Reference


class Stage:
    """A stage's parts, made when asked for: root loads no prior, workers no optimiser."""

    def __init__(self, run: Run, index: int, device: torch.device, reference: Reference | None = None) -> None:
        """A unit needs the picture `reference` where guidances do; everything else does without."""
        self.run, self.config, self.device, self.reference = run, run.stages[index], device, reference
        self.name, self.T = self.config.name, self.config.steps
        self.init = Streams(run.seed, 0).of(f"{self.name}/init")
        self._priors: dict[str, Prior] = {}
        self.lora = self._lora()
        self.variates = {term.name: self._variates(term.guidance) for term in self.config.terms}
        self.carriers = {name: carrier for name, carrier in self.variates.items() if carrier is not None}
        self.scene = Scene(build(self.config.shape, self.init), build(self.config.material),
                           build(self.config.background, self.init), build(self.config.render), device, self.lora,
                           {f"guidance.{term}.{name}": tensor for term, carrier in self.carriers.items()
                            for name, tensor in carrier.state().items()})
        about = run.reference
        pose = Pose.front(about.elevation_deg, about.distance, about.fovy_deg)
        self.views = [build(term.views, **_given(term.views, pose=pose)) for term in self.config.terms]
        for i, term in enumerate(self.config.terms):
            for unknown in set(term.penalties) - set(PENALTIES):
                raise UserError(f"stages.{index}.terms.{i}.penalties.{unknown}: unknown key{suggestion(unknown, PENALTIES)}")

    def stores(self, folder: Path) -> dict[str, Store]:
        """The stores of the texts of several prompts, by term; none for one prompt."""
        if len(self.run.prompts) == 1:
            return {}

        def store(guidance: Node) -> Store:
            prompts, own = self.prompts(guidance), texts(guidance)
            return Store(folder / "embeddings", lambda: (text for prompt in self.run.prompts for text in (
                *prompts.strings(prompt), *texts_for(prompt, own))), repr(plain(guidance.part("prior"))))
        return {term.name: store(term.guidance) for term in self.config.terms if takes(term.guidance, "prompts")}

    def write(self, store: Store, term: str, part: int, parts: int) -> None:
        """Writes a part of the store of a term."""
        (guidance,) = [each.guidance for each in self.config.terms if each.name == term]
        store.write(self.prior(guidance), part, parts)

    def embeddings(self, stores: Mapping[str, Store] = {}) -> list[Conditions | None]:
        """Encodes each term's prompt, then frees the encoder: runs on one rank. Of several prompts each is read from the store
        of the term when it is needed; where there is none, it is encoded then."""
        return [self._encoded(term.guidance, stores.get(term.name)) if takes(term.guidance, "prompts") else None
                for term in self.config.terms]

    def unit(self, embeddings: Sequence[Conditions | None]) -> ComputationUnit:
        """Returns the computation unit s, given what `embeddings` returned on some rank. Weights of priors are read
        at its first evaluation."""
        terms = []
        for term, views, conditions in zip(self.config.terms, self.views, embeddings):
            given = {"lora": self.lora, "reference": self.reference}
            group = 1
            if conditions is not None:
                given |= {"prior": self.prior(term.guidance), "prompts": conditions}
                group = given["prior"].group
            given = _given(term.guidance, **given)
            if (variates := self.variates[term.name]) is not None:
                given["variates"] = variates
            terms.append(Term(term.name, views, build(term.guidance, **given), term.weight, term.penalties, term.densify,
                              group))
        return ComputationUnit(self.scene, terms, self.run.seed, self.name, len(self.run.prompts))

    def read(self, embeddings: Sequence[Conditions | None]) -> None:
        """Gives a generator the prompts that it makes objects of, as `embeddings` returned them on some rank."""
        if isinstance(self.scene.shape, Generator):
            conditions = next(each for each in embeddings if each is not None).to(self.device)
            self.scene.texts = lambda prompt: (
                conditions.of(prompt) if isinstance(conditions, SeveralConditions) else conditions).text
            width = self.scene.texts(0).tokens.shape[-1]
            for name, part in (("shape", self.scene.shape), ("background", self.scene.background)):
                if getattr(part, "text_width", None) not in (None, width):
                    raise UserError(f"stages.{self.run.index(self.name)}.{name}.text_width: got {part.text_width}, and the "
                                    f"prior's text has width {width}; set text_width: {width}")

    def weight_bytes(self) -> int:
        """Bytes of the networks of all priors on a rank that evaluates. Raises UserError where a model cannot be
        found."""
        for term in self.config.terms:
            if takes(term.guidance, "prior"):
                self.prior(term.guidance)
        return sum(prior.weight_bytes() for prior in self._priors.values())

    def rollout(self) -> Rollout:
        """Returns the rollout h-dagger."""
        optimiser = build(self.config.optimiser, self.scene.layout)

        def refresh(theta: Theta, tau: int) -> Theta:
            return self.scene.refresh(theta, tau, Streams(self.run.seed, tau).of(f"{self.name}/riding"))

        def streams(tau: int) -> Streams:
            return Streams(self.run.seed, tau).of(f"{self.name}/structure")
        shape = self.scene.shape
        carried = Carried({f"guidance.{term}.{name}": partial(carrier.renewed, name)
                           for term, carrier in self.carriers.items() for name in carrier.state()})
        return Rollout(optimiser, refresh, shape.structure(streams) if isinstance(shape, Cloud) else None, carried)

    def begin(self, previous: "Stage", theta: Theta, say: Callable[[str], None]) -> Theta:
        """theta_0 after the stage `previous` has ended with `theta`: its shape, and what else is laid out alike.

        Raises UserError where this stage's shape cannot begin with the other's.
        """
        before, view = previous.scene.load(theta, previous.T), previous.views[0].turntable(1, (1, 1))
        transition.begin(self.scene, before, previous.T, view, say)
        return self._inherited(theta)

    def _inherited(self, theta: Theta) -> Theta:
        """theta_0 with the material and the background of `theta` where they are laid out alike."""
        fresh = self.scene.theta()
        old = {entry.name: entry for entry in theta.layout.entries}
        for entry in fresh.layout.entries:
            if entry.name.startswith(("material.", "background.")) and entry.name in old:
                if old[entry.name].shape == entry.shape:
                    fresh.flat[entry.span] = theta.flat[old[entry.name].span]
        return fresh

    def begin_with(self, maker: Maker, say: Callable[[str], None]) -> Theta:
        """theta_0 where the stage begins with a trained generator: it goes on training one, and begins otherwise with what that
        makes of the run's prompt. Raises UserError where this stage's shape cannot."""
        if isinstance(self.scene.shape, Generator):
            self.scene.shape.begin_with(maker.scene.shape)
            say(f"stage {self.name} begins with the generator {self.run.from_}, trained for {maker.step} steps")
            return self._inherited(maker.theta)
        made = maker.object(maker.text(self.run.prompt))
        fitting.begin(self.scene, made, maker.tau, maker.views.turntable(1, (1, 1)), self.init.of("fit"), say)
        say(f"stage {self.name} begins with what the generator {self.run.from_} makes of {self.run.prompt!r}")
        return self.scene.theta()

    def ends(self) -> list[int]:
        """Returns the steps, ascending, that no window reaches across; the last is T."""
        shape = self.scene.shape
        return shape.ends(self.T) if isinstance(shape, Cloud) else [self.T]

    def open_window(self, rollout: Rollout, theta: Theta) -> Window:
        """The window of a stage that begins at theta."""
        rule = self.config.window.threshold
        return Window(rollout.start(theta), (), 0.0 if rule == "auto" else rule)

    def retold(self, window: Window, then: float | str) -> Window:
        """A saved window under this configuration's threshold, which may differ from the one it was saved under."""
        rule = self.config.window.threshold
        return window if rule in (then, "auto") else replace(window, e=rule)

    def threshold(self) -> Threshold:
        """The rule for e: threshold 0 stays exact, auto follows the optimiser's steps, else Algorithm 2's."""
        window = self.config.window
        if window.threshold == "auto":
            return threshold.relative(window.decay, window.relative)
        return threshold.fixed if window.threshold == 0 else threshold.adaptive(window.decay, window.aggregate)

    def propel(self, rollout: Rollout) -> Callable[..., Iterator[Window]]:
        """The iteration that the window's keys ask for, to be given a window, s, h_dagger and T: Algorithm 2 as printed where
        nothing is reused or predicted, else its pipelined form."""
        window = self.config.window
        learnt = ("lora",) if window.compare == "scene" else ()
        keys = {"p": window.size, "threshold": self.threshold(), "d": partial(distance, without=learnt)}
        if not window.reuse and window.predict == "copy":
            return partial(algorithm.propel, **keys)
        predict = rollout.predict if window.predict == "momentum" else copies
        return partial(pipelined.propel, **keys, predict=predict, reuse=window.reuse)

    def _lora(self) -> Lora | None:
        """What the stage's guidance trains beside the scene."""
        learning = [term.guidance for term in self.config.terms if takes(term.guidance, "lora")]
        if len(learning) > 1:
            raise UserError(f"{learning[1].path}.lora: one term of a stage can learn, and {learning[0].path} does")
        if not learning:
            return None
        node = learning[0].part("lora")
        lora = build(node, self.prior(node if "prior" in node.keys else learning[0]), self.init)
        with placed(node.path):
            lora.check(self.prior(learning[0]))
        return lora

    def _variates(self, guidance: Node) -> Noise | None:
        """The control variates of a guidance, if it has any. Their networks read their files when they are first asked."""
        if (node := guidance.keys.get("variates")) is None:
            return None
        return build(node, **{part.path.rpartition(".")[2]: network for part, network in self.networks(guidance)})

    def networks(self, guidance: Node) -> list[tuple[Node, Frozen]]:
        """The networks of a guidance's control variates, each with its place in the configuration."""
        if (node := guidance.keys.get("variates")) is None:
            return []
        names = [name for name in ("estimator", "decoder") if name in node.keys or name == "estimator" and takes(node, name)]
        return [(node.part(name), build(node.part(name), self.device)) for name in names]

    def _encoded(self, guidance: Node, store: Store | None) -> Conditions:
        """Encodes the prompt or the picture for a guidance's prior, and the guidance's own texts."""
        prior, prompts = self.prior(guidance), self.prompts(guidance)

        def conditions(prompt: int) -> Conditions:
            with placed(guidance.part("prompts").path):
                return prompts.encode(Stored(prior, store) if store else prior, self.run.prompts[prompt], texts(guidance))
        return conditions(0) if len(self.run.prompts) == 1 else SeveralConditions(conditions)

    def prompts(self, guidance: Node) -> Conditioner:
        """What encodes the prompt or the picture for a guidance's prior."""
        node = guidance.part("prompts")
        return build(node, **_given(node, reference=self.reference))

    def prior(self, guidance: Node) -> Prior:
        """The prior of a guidance; one object for all that say the same."""
        node = guidance.part("prior")
        if (key := repr(plain(node))) not in self._priors:
            self._priors[key] = build(node, self.device)
        return self._priors[key]


def _given(component: Node, **things: object) -> dict[str, object]:
    """Returns those of the things that a component takes."""
    return {name: thing for name, thing in things.items() if takes(component, name)}
