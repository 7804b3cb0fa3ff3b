"""The table of what has state: a part that is added is kept, checked and restored by every checkpoint."""

import pytest
import torch
from wan_train.core.errors import RunError
from wan_train.core.optimizers import OPTIMIZERS
from wan_train.core.train.events import EventWriter
from wan_train.core.train.optimizers import build_optimizer
from wan_train.core.train.prepare import prepare
from wan_train.core.train.resume import SaveCheckpoint, resume
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.train.state import stateful_parts
from wan_train.tests.core.train.helpers import make_trainer


class Average:
    """An average of the weights, as one would be added."""

    def __init__(self, parameters):
        self._parameters = parameters
        self.kept = [parameter.detach().clone() for parameter in parameters]

    def __call__(self, _was_made):
        torch._foreach_lerp_(self.kept, self._parameters, 0.5)

    def state_dict(self):
        return {"kept": self.kept}

    def check_state(self, state):
        if [tensor.shape for tensor in state["kept"]] != [tensor.shape for tensor in self.kept]:
            raise ValueError("the averaged weights have other shapes")

    def load_state_dict(self, state):
        for kept, tensor in zip(self.kept, state["kept"], strict=True):
            kept.copy_(tensor)


@pytest.fixture
def folder(tmp_path, job):
    folder = RunFolder(tmp_path / "runs" / "run")
    folder.path.mkdir(parents=True)
    folder.write_job(job)
    return folder


def parts_of(trainer, **others):
    return stateful_parts(trainer.model, trainer.optimizer, OPTIMIZERS.get("adamw"), **others)


def go_on(folder, job, parts):
    return resume(folder, EventWriter(folder.events_path), parts, steps=job.loop.steps, training=job.key)


def trained(folder, job, **others):
    """A trainer after two steps, whose checkpoint is on disk."""
    trainer = make_trainer(job)
    average = Average(trainer.parameters)
    trainer.after_update.append(average)
    for _ in range(2):
        trainer.train_step().read()
    parts = parts_of(trainer, **({"averaged weights": average} if others else {}))
    SaveCheckpoint(folder, EventWriter(folder.events_path), parts).save(trainer)
    return trainer, average


def test_a_part_that_is_added_survives_a_resume(folder, job):
    trainer, average = trained(folder, job, averaged=True)
    other = make_trainer(job)
    restored = Average(other.parameters)
    assert go_on(folder, job, parts_of(other, **{"averaged weights": restored})) == 2
    assert all(map(torch.equal, restored.kept, average.kept))
    assert all(map(torch.equal, other.parameters, trainer.parameters))


def test_a_checkpoint_of_before_says_which_part_it_lacks(folder, job):
    trained(folder, job)
    other = make_trainer(job)
    parts = parts_of(other, **{"averaged weights": Average(other.parameters)})
    with pytest.raises(RunError, match=r"does not fit this run \(it holds no state of the averaged weights\)"):
        go_on(folder, job, parts)


def test_a_part_refuses_a_state_that_is_not_its_own(folder, job):
    _, average = trained(folder, job, averaged=True)
    other = make_trainer(job)
    restored = Average(other.parameters[:3])
    with pytest.raises(RunError, match="the averaged weights have other shapes"):
        go_on(folder, job, parts_of(other, **{"averaged weights": restored}))
    assert average.kept


def test_a_checkpoint_holds_what_it_held_before(folder, job):
    """The files of earlier versions are read by this one, and the other way round."""
    trainer, _ = trained(folder, job)
    ((_, path),) = folder.checkpoint_store.all()
    tensors, state = folder.checkpoint_store.load(path)
    assert state.keys() == {"step", "optimizer", "manifest"}
    assert state["optimizer"].keys() == {"state", "param_groups"}
    assert len(tensors) == len(trainer.parameters) * 3 // 2  # A, B and alpha
    prepared = prepare(job, torch.device("cpu"))
    optimizer = build_optimizer(prepared.parameters, job.optimizer)
    assert go_on(folder, job, stateful_parts(prepared.model, optimizer, OPTIMIZERS.get("adamw"))) == 2
