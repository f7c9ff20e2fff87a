"""Training that stops early: what is measured, what is published, and what resumes."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kit.embedders import BUILDERS
from kit.training import IDENTIFIER, Trained, recipe_of

from dbray import bases
from dbray.lanes.checkpoint import Checkpoint
from dbray.lanes.fidelity import FidelityMeter, Watch
from dbray.planning.stop import StopMeasure
from dbray.scores import embedders
from dbray.storage.store import Store
from dbray.training.batches import Share
from dbray.training.loop import Progress, finetune

METHODS = ("full", "lora", "textual_inversion", "pivotal")
STOP = {"every": 2, "patience": 9, "tolerance": 0.0, "max_drift": 2.0, "images": 1,
        "sampling_steps": 2, "prompts": ["a {subject}"], "class_prompts": ["a {class}"],
        }  # fmt: skip
STEPS = 7
REX = SimpleNamespace(identifier=IDENTIFIER, subject=SimpleNamespace(class_noun="dog"))


@pytest.fixture(scope="module")
def base(tiny_base):
    return bases.resolve(str(tiny_base))


@pytest.fixture(scope="module")
def measure(tmp_path_factory):
    folder = BUILDERS["vit"](tmp_path_factory.mktemp("embedder") / "vit")
    return StopMeasure(embedders.resolve(str(folder)), "dpm++", 7.5)


class Lane:
    """A backbone, an engine and a meter, which train one subject after another, without Ray."""

    def __init__(self, base, measure, method, **changes) -> None:
        fields = {"steps": STEPS, "stop": STOP, "learning_rate": 0.05} | changes
        self.recipe = recipe_of(method, **fields)
        trained = Trained(base, self.recipe.model_copy(update={"steps": 1}))
        self.trained, self.engine, self.data = trained, trained.engine, trained.data
        self.pixels = list(np.random.default_rng(1).integers(0, 255, (3, 32, 32, 3), np.uint8))
        self.base = base
        self.meter = FidelityMeter(self.recipe.stop, measure, trained.backbone)

    def train(self, checkpoint: Checkpoint | None = None, killed_after: int = 0):
        """Train and return what is published, as files; None if it is killed before its end."""
        method, network, engine = self.trained.method, self.trained.network, self.engine
        engine.reset()
        engine.assign(method.begin(network, IDENTIFIER))
        reference = self.meter.reference(REX, self.pixels)

        def look():
            with engine.averaged():
                return self.meter.measure(REX, reference)

        watch = Watch(self.recipe.stop, self.recipe.steps, look, engine.weights)
        resume = checkpoint.restore(engine) if checkpoint else Progress()
        watch.resume(resume)

        def on_step(step: int, progress) -> bool:
            if watch.look(step):
                return True
            if checkpoint and step % 3 == 0 and step < self.recipe.steps:
                checkpoint.save(engine.state(), watch.noted(progress()))
            if step == killed_after:
                raise KeyboardInterrupt
            return False

        schedule = self.trained.backbone.schedule
        try:
            losses = finetune(engine, schedule, self.data, self.recipe, resume=resume,
                              on_step=on_step, after_step=method.after_step)  # fmt: skip
        except KeyboardInterrupt:
            return None
        self.result = watch.result(losses)
        return method.publish(network, self.result.best, self.recipe)

    @property
    def curve(self):
        return [(p.step, p.identity, p.drift) for p in self.result.fidelity]


@pytest.fixture(scope="module", params=METHODS)
def lane(request, base, measure):
    return Lane(base, measure, request.param)


def test_the_best_checkpoint_is_what_so_many_steps_give(lane, base):
    files = lane.train()
    steps = [step for step, _, _ in lane.curve]
    assert steps == [2, 4, 6, 7]
    best = max(lane.curve, key=lambda point: point[1])[0]
    assert lane.result.step == best
    plain = Lane.__new__(Lane)
    plain.__dict__ |= lane.__dict__
    plain.recipe = lane.recipe.model_copy(update={"stop": None, "steps": best})
    if lane.recipe.method.kind in ("full", "lora"):  # the rate of tokens depends on all steps
        assert plain.train() == files


@pytest.mark.parametrize("killed_after", range(1, STEPS))
def test_a_kill_changes_neither_the_weights_nor_the_curve(lane, tmp_path, killed_after):
    expected = lane.train()
    curve = lane.curve
    checkpoint = Checkpoint(Store(str(tmp_path)), "job", "abc", Share(), 0)
    assert lane.train(checkpoint, killed_after) is None
    assert lane.train(checkpoint) == expected
    assert lane.curve == curve


def test_measuring_leaves_training_and_global_random_states_alone(lane):
    before = (torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    lane.train()
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


def test_measuring_the_base_gives_no_drift(lane):
    method = lane.trained.method
    lane.engine.reset()
    lane.engine.assign(method.begin(lane.trained.network, IDENTIFIER))
    reference = lane.meter.reference(REX, lane.pixels)
    _, drift = lane.meter.measure(REX, reference)
    assert drift == pytest.approx(0.0, abs=1e-6)


def test_training_ends_when_patience_is_over(base, measure):
    lane = Lane(base, measure, "full", stop=STOP | {"tolerance": 1.0, "patience": 2, "learnt": 0.0})
    lane.train()
    assert [step for step, _, _ in lane.curve] == [2, 4, 6]
    assert lane.result.step == 2


def test_the_moving_average_is_measured_where_it_is_published(base, measure):
    lane = Lane(base, measure, "full", ema_decay=0.9)
    lane.train()
    averaged = lane.curve
    step, engine = lane.result.step, lane.engine
    live = {name: engine.current(name).clone() for name in lane.trained.begun}
    with engine.averaged():
        assert not all(torch.equal(engine.current(name), live[name]) for name in live)
    assert all(torch.equal(engine.current(name), live[name]) for name in live)
    plain = Lane(base, measure, "full")
    plain.train()
    assert plain.curve != averaged
    assert step in [point[0] for point in averaged]


def test_without_stop_the_last_weights_are_published(base, measure):
    watch = Watch(None, 7, lambda: pytest.fail("measured"), lambda: {"a": torch.ones(1)})
    assert not any(watch.look(step) for step in range(1, 8))
    result = watch.result(())
    assert (result.step, result.fidelity, list(result.best)) == (7, (), ["a"])
