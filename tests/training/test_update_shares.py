"""The update divided over processes: the update of one process, the same bits in all."""

import threading

import keras
import numpy as np
import pytest

from dynzoo import backend
from dynzoo.constraints import Orthonormal
from dynzoo.optimizers import RiemannianMuon
from dynzoo.training.update_shares import UpdateShares, cost_of, dealt, largest_share

pytestmark = pytest.mark.skipif(backend.name() != "torch", reason="of PyTorch's processes")
STEPS = 3


class Mailbox:
    """What broadcasts between the threads of a test: each waits for the one that sends."""

    def __init__(self, processes):
        self.barrier = threading.Barrier(processes, timeout=60)
        self.sent, self.senders = None, []

    def share_of(self, rank):
        def share(tensors, source):
            if rank == source:
                self.sent = [tensor.detach().clone() for tensor in tensors]
                self.senders.append(source)
            self.barrier.wait()
            for tensor, value in zip(tensors, self.sent, strict=True):
                tensor.data.copy_(value)
            self.barrier.wait()

        return share


class OwnMuon(RiemannianMuon):
    """One of a user's, which might do anything."""


def network(cls=RiemannianMuon, **arguments):
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((12,))])
    for width in (12, 12, 8, 12, 12):
        model.add(keras.layers.Dense(width, kernel_constraint=Orthonormal()))
    optimizer = cls(0.05, rms_rate=None, weight_decay=None, **arguments)
    model.compile(optimizer, "mse")
    optimizer.build(model.trainable_variables)
    return model


def gradients_of(model):
    rng = np.random.default_rng(5)
    shapes = [v.shape for v in model.trainable_variables]
    return [
        [keras.ops.convert_to_tensor(rng.normal(size=s).astype("float32")) for s in shapes]
        for _ in range(STEPS)
    ]


def variables_of(model):
    return [*model.variables, *model.optimizer.variables]


def updated_together(processes, **arguments):
    """Models of so many processes after the same steps, and who sent something."""
    import torch

    models = [network(**arguments) for _ in range(processes)]
    mailbox, faults = Mailbox(processes), []

    def run(rank):
        model = models[rank]
        shares = UpdateShares(model.optimizer, rank, processes, mailbox.share_of(rank))
        try:
            for gradients in gradients_of(model):
                with torch.no_grad():
                    shares.apply(gradients, model.trainable_variables)
        except Exception as error:
            faults.append(error)
            mailbox.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    return models, mailbox.senders


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("processes", [2, 3, 16])
def test_the_update_is_that_of_one_process(processes, stacked):
    models, senders = updated_together(processes, stacked=stacked)
    alone = network(stacked=stacked)
    for gradients in gradients_of(alone):
        alone.optimizer.apply(gradients, alone.trainable_variables)
    for one, *others in zip(*map(variables_of, [alone, *models]), strict=True):
        first = backend.value_of(others[0])
        np.testing.assert_allclose(first, backend.value_of(one), atol=2e-6, err_msg=one.path)
        for other in others[1:]:
            np.testing.assert_array_equal(backend.value_of(other), first, err_msg=one.path)
    assert int(alone.optimizer.iterations) == int(models[-1].optimizer.iterations) == STEPS
    assert len(set(senders)) == min(processes, len(alone.trainable_variables))


def test_each_kernel_is_updated_by_one_process(monkeypatch):
    updated = []
    step = RiemannianMuon.zeropower_via_newtonschulz5

    def counted(self, x, steps):
        updated.append(threading.get_ident())
        return step(self, x, steps)

    monkeypatch.setattr(RiemannianMuon, "zeropower_via_newtonschulz5", counted)
    models, _ = updated_together(2)
    kernels = sum(len(v.shape) == 2 for v in models[0].trainable_variables)
    assert len(updated) == STEPS * kernels
    shares = [updated.count(ident) / STEPS for ident in set(updated)]
    assert max(shares) - min(shares) <= 2  # by cost, not by number


@pytest.mark.parametrize(
    "arguments",
    [
        {"global_clipnorm": 0.1},
        {"use_ema": True},
        {"gradient_accumulation_steps": 2},
        {"cls": OwnMuon},
    ],
)
def test_what_needs_all_gradients_is_not_divided(arguments):
    models, senders = updated_together(2, **arguments)
    assert not senders
    for one, other in zip(*map(variables_of, models), strict=True):
        np.testing.assert_array_equal(backend.value_of(one), backend.value_of(other))


def test_another_optimizer_makes_the_whole_update():
    model = network()
    model.compile("sgd", "mse")
    shares = UpdateShares(model.optimizer, 0, 2, share=None)
    before = [backend.value_of(v).copy() for v in model.trainable_variables]
    shares.apply(gradients_of(model)[0], model.trainable_variables)
    for variable, value in zip(model.trainable_variables, before, strict=True):
        assert not np.array_equal(backend.value_of(variable), value)


def test_kernels_are_dealt_out_by_cost():
    assert dealt([1, 9, 3, 3, 2], 2) == [1, 0, 1, 1, 1]
    assert dealt([4, 4, 4], 16) == [0, 1, 2]
    assert dealt([], 2) == []
    assert cost_of((8, 32)) == cost_of((32, 8)) < cost_of((64, 32)) < cost_of((32, 128))
    assert largest_share([(2, 2)] * 3, 2) == 2 / 3 and largest_share([(2, 2)], 1) == 1
