"""The outcomes of attacks: book-keeping, files, and going on after a kill."""

import csv
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import slow_elsewhere
from hypothesis import given, settings
from hypothesis import strategies as st
from robustness_fixtures import MarginCertificate, centroids, held_out, ridge
from training_fixtures import in_new_process

from dynzoo.attacks import PGD, Attack, Transfer
from dynzoo.inference.model_identity import identity_of
from dynzoo.robustness.campaign import Campaign, Work
from dynzoo.robustness.evaluation import evaluate
from dynzoo.robustness.outcomes import Outcomes
from dynzoo.robustness.progress import Progress, seconds_left
from dynzoo.utils.formatting import clock

any_backend = pytest.mark.any_backend

EPS = [0.1, 0.2, 0.3]


class Puppet(Attack):
    """Its number and its radius are all that the judge below looks at."""

    steps = 10

    def __init__(self, number=0, eps=0.1):
        super().__init__(eps=eps)
        self.number = number


def fate(seed, radius, number, row):
    """Whether an attack breaks an image: the same whenever it is asked."""
    return np.random.default_rng([seed, radius, number, int(row)]).random() < 0.3


def campaign(seed, images=17, batch_size=5, stop_after=None, **kwargs):
    calls = []

    def judge(attack, rows):
        if stop_after is not None and len(calls) >= stop_after:
            raise KeyboardInterrupt
        radius = EPS.index(attack.eps)
        again = bool(made.outcomes.broken[rows, :, :radius].any())  # fell in a smaller ball
        calls.append((attack.number, tuple(rows), radius, again))
        hit = [fate(seed, radius, attack.number, row) for row in rows]
        return np.full((len(rows), 2), float(radius)), np.array(hit, int)

    y = np.zeros(images, int)
    correct = np.random.default_rng(seed).random(images) < 0.8
    attacks = [[Puppet(number, e) for number in range(3)] for e in EPS]
    made = Campaign(
        attacks, EPS, y, correct, judge, batch_size=batch_size, about={"a": 1}, **kwargs
    )
    return made, calls


@any_backend
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), batch_size=st.integers(1, 20))
def test_outcomes_are_the_pointwise_worst_case(seed, batch_size):
    made, _ = campaign(seed, batch_size=batch_size)
    outcomes = made.run()
    alive = outcomes.correct.copy()
    for radius in range(3):
        for attack in range(3):
            np.testing.assert_array_equal(outcomes.attacked[:, attack, radius], alive)
            hit = np.array([fate(seed, radius, attack, row) for row in range(17)])
            np.testing.assert_array_equal(outcomes.broken[:, attack, radius], alive & hit)
            alive &= ~hit
            assert outcomes.cumulative()[attack, radius] == alive.mean()
        np.testing.assert_array_equal(outcomes.robust()[radius], alive)


@any_backend
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), stop=st.integers(0, 25))
def test_a_campaign_goes_on_where_it_was_cut(tmp_path_factory, seed, stop):
    path = tmp_path_factory.mktemp("campaign") / "state.npz"
    whole, every_call = campaign(seed)
    whole.run()
    cut, first_calls = campaign(seed, stop_after=stop, checkpoint=path)
    try:
        cut.run()
    except KeyboardInterrupt:
        pass
    again, later_calls = campaign(seed, checkpoint=path)
    again.run()
    for name in ("attacked", "broken", "correct"):
        np.testing.assert_array_equal(getattr(again.outcomes, name), getattr(whole.outcomes, name))
    np.testing.assert_array_equal(again.repeated, whole.repeated)
    assert [[f[:2] for f in found] for found in again.fooled] == [
        [f[:2] for f in found] for found in whole.fooled
    ]
    # Nothing that was done is done again, but for the second look at what fell earlier.
    attacks = [call for call in first_calls + later_calls if not call[3]]
    assert attacks == [call for call in every_call if not call[3]]
    assert any(call[3] for call in every_call)


@any_backend
def test_a_finished_campaign_does_nothing(tmp_path):
    campaign(0, checkpoint=tmp_path / "s.npz")[0].run()
    again, calls = campaign(0, checkpoint=tmp_path / "s.npz")
    again.run()
    assert calls == []


@any_backend
def test_a_checkpoint_of_something_else_is_refused_and_kept(tmp_path):
    path = tmp_path / "s.npz"
    campaign(0, checkpoint=path)[0].run()
    before = path.read_bytes()
    arguments = ([[Puppet()]], [0.1], np.zeros(17, int), np.ones(17, bool), None)
    with pytest.raises(ValueError, match=r"`checkpoint` must be of the same .* has other a"):
        Campaign(*arguments, about={"a": 2}, checkpoint=path)
    with pytest.raises(ValueError, match="attacks or radii"):
        Campaign(*arguments, about={"a": 1}, checkpoint=path)
    path.write_bytes(before[:100])
    with pytest.raises(ValueError, match="`checkpoint` must be a file of an evaluation"):
        Campaign(*arguments, checkpoint=path)
    assert path.read_bytes() == before[:100]


@any_backend
def test_skipped_images_are_not_attacked():
    skip = np.zeros((3, 17), bool)
    skip[:2, :9] = True
    made, calls = campaign(1, skip=skip)
    outcomes = made.run()
    assert not outcomes.attacked[:9, :, :2].any() and outcomes.attacked[:9, :, 2].any()
    first = campaign(1, skip=skip, skip_from=1)[0].run()
    assert first.attacked[:9, 0, :2].any() and not first.attacked[:9, 1:, :2].any()


@any_backend
def test_files(tmp_path):
    outcomes = campaign(3)[0].run()
    outcomes.save(tmp_path / "o.npz")
    read = Outcomes.load(tmp_path / "o.npz")
    assert read.attacks == ["Puppet", "Puppet 2", "Puppet 3"] and read.eps == [0.1, 0.2, 0.3]
    np.testing.assert_array_equal(read.broken, outcomes.broken)
    outcomes.save(tmp_path / "o.csv", np.arange(17), np.linspace(0, 1, 17))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "o.csv").read_text())))
    assert len(rows) == 17
    for row, line in enumerate(rows):
        assert int(line["label"]) == row and float(line["certified_l2_radius"]) == row / 16
        for radius, eps in enumerate(("0.1", "0.2", "0.3")):
            for attack, name in enumerate(outcomes.attacks):
                tried = outcomes.attacked[row, attack, radius]
                expected = str(int(outcomes.broken[row, attack, radius])) if tried else ""
                assert line[f"{name} @ {eps}"] == expected
    with pytest.raises(ValueError, match=r"must end in \.csv or \.npz"):
        outcomes.save(tmp_path / "o.txt")


@any_backend
def test_progress_speaks_at_each_attack_and_knows_the_time_left(capsys):
    made, _ = campaign(2, tick=Progress())
    assert seconds_left(made) is None
    made.run()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 9 and all("robust" in line for line in lines)
    assert any("left" in line for line in lines) and all("after 0:0" in line for line in lines)
    assert seconds_left(made) == 0
    assert [clock(s) for s in (5, 95, 3725)] == ["0:05", "1:35", "1:02:05"]


def left_every_ten_seconds(monkeypatch, made, thought, seconds, passes=0):
    """What is said to be left, where other batches tell of so many seconds for all of it."""
    monkeypatch.setattr("dynzoo.robustness.progress.seconds_left", lambda _: thought)
    now = [0.0]
    lines = io.StringIO()
    progress = Progress(file=lines, clock=lambda: now[0])
    for now[0] in range(0, seconds, 10):
        progress(made)
        for _ in range(passes):
            made.work.count(made.work.images, False)
    return [line.split("left ")[1] for line in lines.getvalue().splitlines()]


@any_backend
def test_the_time_left_falls_within_a_batch(monkeypatch):
    made, _ = campaign(2, stop_after=4)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    left = left_every_ten_seconds(monkeypatch, made, 100.0, 130)
    assert left[:3] == ["1:40", "1:30", "1:20"] and left[-3:] == ["0:00"] * 3


@any_backend
def test_an_attack_slower_than_thought_is_not_nearly_done(monkeypatch):
    made, _ = campaign(2, stop_after=4)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    made.work = Work(images=8, cost=100.0)
    left = left_every_ten_seconds(monkeypatch, made, 10.0, 500, passes=2)
    assert left[1] == "8:10" and left[25] == "4:10" and left[-1] == "0:10"


@any_backend
def test_work_left_is_of_the_images_that_are_still_attacked():
    work = Work(images=10, cost=60.0)
    work.count(10, True)  # a gradient step is three passes
    assert work.left == 57 * 10 and work.done == 30
    work.count(4, False)
    assert work.left == 56 * 4
    stacked = Work(images=10, cost=60.0)  # nine targets at once
    stacked.count(90, True)
    assert stacked.left == 33 * 10
    stacked.count(900, True)
    assert stacked.left == 0


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
from robustness_fixtures import held_out, ridge
from dynzoo.attacks import PGD
from dynzoo.robustness.evaluation import evaluate

class Slow(PGD):
    pause = 0.05

    def search(self, *args):
        time.sleep(self.pause)
        return super().search(*args)

def measured(checkpoint, file):
    x, y = held_out(60)
    evaluate(
        ridge(), x, y, norm="linf", eps=(0.02, 0.05),
        attacks=[Slow("linf", steps=5), PGD("linf")],
        certificate=False, batch_size=4, checks="quick", checkpoint=checkpoint, verbose=1,
    ).save(file)

if __name__ == "__main__":
    measured(*sys.argv[1:])
"""


def run(script, *args):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@slow_elsewhere
def test_killed_and_started_again_ends_with_the_same_outcomes(tmp_path):
    script = SCRIPT.format(tests=str(Path(__file__).parents[1]))
    state = tmp_path / "state.npz"
    process = run(script, state, tmp_path / "killed.npz")
    limit = time.monotonic() + 600
    while not state.exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    done = Outcomes.load(state).attacked.sum()
    assert 0 < done
    names = {"__name__": "script"}
    exec(compile(script, "script", "exec"), names)
    names["Slow"].pause = 0  # nobody waits for a moment to kill these two
    names["measured"](state, tmp_path / "resumed.npz")
    names["measured"](tmp_path / "other.npz", tmp_path / "whole.npz")
    resumed, whole = (Outcomes.load(tmp_path / f"{n}.npz") for n in ("resumed", "whole"))
    assert not (tmp_path / "killed.npz").exists() and done < whole.attacked.sum()
    np.testing.assert_array_equal(resumed.attacked, whole.attacked)
    np.testing.assert_array_equal(resumed.broken, whole.broken)


def test_passes_are_counted():
    x, y = held_out(20)
    attacks = [PGD("linf", steps=7, random_start=False)]
    report = evaluate(
        ridge(), x, y, norm="linf", eps=1e-4, attacks=attacks, certificate=False, checks="quick",
        batch_size=20,
    )  # fmt: skip
    (run,) = report.details["runs"]
    # eight gradients an image; forward the clean pass and two that judge: here and in the attack
    assert run["backward_passes"] >= 8 * run["attacked"] > 0
    assert run["forward_passes"] >= run["backward_passes"] + 3 * run["attacked"]
    if keras.backend.backend() == "torch":  # no padding
        assert run["backward_passes"] == 8 * run["attacked"]
        assert run["forward_passes"] == 11 * run["attacked"]


def test_evaluate_refuses_the_checkpoint_of_another_model(tmp_path):
    x, y = held_out(20)
    model, path = ridge(), tmp_path / "s.npz"
    settings = dict(eps=0.1, attacks=[PGD(steps=3)], certificate=False, checks="quick")
    evaluate(model, x, y, checkpoint=path, **settings)
    model.layers[0].set_weights([2 * w for w in model.layers[0].get_weights()])
    with pytest.raises(ValueError, match="has other weights"):
        evaluate(model, x, y, checkpoint=path, **settings)
    with pytest.raises(ValueError, match="has other images, weights"):
        evaluate(model, x[:10], y[:10], checkpoint=path, **settings)


def _named(model, name, scale=1.0):
    """The same model under a name, its weights scaled."""
    copy = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)], name=name)
    copy.set_weights([scale * w for w in model.get_weights()])
    return copy


def test_evaluate_refuses_the_checkpoint_of_another_surrogate(tmp_path):
    """By what it computes: the name may be the same, or another one."""
    x, y = held_out(20)
    path = tmp_path / "s.npz"
    settings = dict(eps=0.1, attacks="fast", certificate=False, checks="quick", checkpoint=path)
    first = evaluate(ridge(), x, y, surrogates=[_named(ridge(), "other")], **settings)
    with pytest.raises(ValueError, match="has other attacks, surrogates: choose another file"):
        evaluate(ridge(), x, y, surrogates=[_named(ridge(), "other", -1.0)], **settings)
    with pytest.raises(ValueError, match="has other surrogates|has other attacks, surrogates"):
        evaluate(ridge(), x, y, **settings)
    wide = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, activation="tanh")])
    wide.set_weights(ridge().get_weights())
    wide.name = "other"
    with pytest.raises(ValueError, match="has other attacks, surrogates"):
        evaluate(ridge(), x, y, surrogates=[wide], **settings)
    again = evaluate(ridge(), x, y, surrogates=[_named(ridge(), "renamed")], **settings)
    assert again.robust == first.robust
    # so does an attack that the caller made, and the model that is evaluated
    transfer = [Transfer(PGD(steps=3), _named(ridge(), "other"))]
    settings |= {"checkpoint": tmp_path / "t.npz", "attacks": transfer}
    evaluate(_named(ridge(), "one"), x, y, **settings)
    evaluate(_named(ridge(), "two"), x, y, **settings)
    settings["attacks"] = [Transfer(PGD(steps=3), _named(ridge(), "other", 0.5))]
    with pytest.raises(ValueError, match="has other attacks: choose"):
        evaluate(_named(ridge(), "one"), x, y, **settings)


def test_evaluate_refuses_the_checkpoint_of_another_certificate(tmp_path):
    x, y = held_out(20)
    model = centroids()
    settings = dict(eps=0.1, attacks="fast", checks="quick", checkpoint=tmp_path / "s.npz")
    evaluate(model, x, y, certificate=MarginCertificate(model), **settings)
    with pytest.raises(ValueError, match="has other certificate"):
        evaluate(model, x, y, certificate=MarginCertificate(model, 0.5), **settings)


@slow_elsewhere
def test_a_model_is_known_by_weights_and_config():
    def functional(activation="relu", name=None):
        inputs = keras.Input((6,))
        hidden = keras.layers.Dense(6, activation=activation)(inputs)
        return keras.Model(inputs, keras.layers.Dense(3)(hidden + inputs), name=name)

    one, other, linear = functional(), functional(name="other"), functional("linear")
    other.set_weights(one.get_weights())
    linear.set_weights(one.get_weights())
    identity = identity_of(one)
    assert identity_of(other) == identity
    assert identity_of(linear)["weights"] == identity["weights"] != identity_of(functional())
    assert identity_of(linear)["architecture"] != identity["architecture"]
    one.predict(np.zeros((2, 6), "float32"), verbose=0)
    one.compile("adam", "mse")
    assert identity_of(one) == identity
    code = """
import keras, numpy as np
from dynzoo.inference.model_identity import identity_of
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
model.set_weights([np.ones((4, 3)), np.zeros(3)])
print(identity_of(model))
"""
    keras.layers.Dense(3)  # so that names count on
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.set_weights([np.ones((4, 3)), np.zeros(3)])
    assert in_new_process(code).stdout.strip() == str(identity_of(model))
