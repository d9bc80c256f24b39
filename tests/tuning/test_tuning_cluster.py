"""Many workers: who gets which trial, what becomes of the trial of one that dies, and errors."""

import json
import os
import threading
import time

import pytest
from keras_tuner.src.distribute.oracle_client import OracleClient
from tuning_fixtures import (
    SEARCH,
    Chief,
    Trials,
    changed,
    free_address,
    kill_a_worker_in_its_second_trial,
    write_images,
)

from dynzoo import tuning
from dynzoo.cli import program as cli
from dynzoo.training.checkpoints import CheckpointError
from dynzoo.tuning import SearchConfig, cluster, driver, oracles, worker
from dynzoo.tuning.cluster import Member

any_backend = pytest.mark.any_backend

pytestmark = [
    pytest.mark.filterwarnings("ignore:currentThread:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:getName:DeprecationWarning"),
]
VARIABLES = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("cluster") / "images.npz")


@pytest.fixture
def address():
    return free_address()


# The oracle


class Clock:
    """Stands in for the module `time`: how slow the machine is decides no test's outcome."""

    now = 0.0
    sleep = staticmethod(time.sleep)

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(oracles, "time", clock)
    monkeypatch.setattr(cluster, "time", clock)
    return clock


@pytest.fixture
def oracle(clock, tmp_path):
    return make(tmp_path)


def make(folder, **settings):
    settings.setdefault("max_trials", 4)
    oracle = oracles.make_oracle(SearchConfig.load(changed(**settings)), patience=60.0)
    oracle._set_project_dir(str(folder), "oracle")
    oracle.ended = []
    oracle.on_end = lambda trial: oracle.ended.append((trial.trial_id, trial.status))
    return oracle


def finish(oracle, trial, value=0.5):
    oracle.update_trial(trial.trial_id, {"certified": value})
    trial.status = "COMPLETED"
    oracle.end_trial(trial)


def copy_of(trial):
    """What a worker has of a trial: its own object."""
    return type(trial).from_proto(trial.to_proto())


@any_backend
def test_a_silent_worker_loses_its_trial_and_one_that_is_heard_does_not(oracle, clock):
    lost, kept = oracle.create_trial("a"), oracle.create_trial("b")
    for clock.now in (30, 59, 90):
        oracle.get_trial(kept.trial_id)
    again = oracle.create_trial("c")
    assert again.trial_id == lost.trial_id and again.status == "RUNNING"
    assert oracle.create_trial("d").trial_id == "2"
    assert oracle.ongoing_trials["b"] is kept and "a" not in oracle.tuner_ids
    assert oracle.create_trial("b") is kept  # restarted under its name, it gets its trial again


@any_backend
def test_the_first_of_two_results_counts_and_once(oracle, clock):
    trial = oracle.create_trial("slow")
    first = copy_of(trial)
    clock.now = 100
    second = copy_of(oracle.create_trial("fast"))
    finish(oracle, second, 0.7)
    finish(oracle, first, 0.1)
    assert oracle.ended == [(trial.trial_id, "COMPLETED")] == [("0", "COMPLETED")]
    assert oracle.trials["0"].score == pytest.approx(0.7) and not oracle.ongoing_trials
    # given back, and its worker reports before anyone took it
    trial = copy_of(oracle.create_trial("slow"))
    clock.now = 200
    oracle._give_back_lost("fast")
    assert oracle._retry_queue == ["1"]
    finish(oracle, trial, 0.2)
    assert oracle._retry_queue == [] and oracle.create_trial("fast").trial_id == "2"


@any_backend
def test_no_worker_is_sent_home_while_a_trial_may_come_back(oracle, clock):
    trials = [oracle.create_trial(name) for name in "abcd"]
    for trial in trials[:3]:
        finish(oracle, trial)
    assert oracle.create_trial("a").status == "IDLE" and "a" in oracle.tuner_ids
    clock.now = 100
    again = oracle.create_trial("b")
    assert again.trial_id == trials[3].trial_id
    finish(oracle, again)
    assert [oracle.create_trial(name).status for name in "abc"] == ["STOPPED"] * 3
    assert oracle.tuner_ids == set() and len(oracle.ended) == 4


@any_backend
def test_a_trial_that_takes_three_workers_with_it_is_given_up(oracle, clock):
    trial = oracle.create_trial("a")
    for name in "bcd":
        clock.now += 100
        last = oracle.create_trial(name)
    assert last.trial_id == "1" and oracle.ended == [("0", "FAILED")]
    assert trial.message == "3 workers were lost with it"


@any_backend
@pytest.mark.parametrize("tuner", ["random", "grid", "bayesian", "hyperband"])
def test_a_chief_that_is_started_again_takes_the_results_of_before(tuner, clock, tmp_path):
    oracle = make(tmp_path, tuner=tuner)
    done, running, lost = (copy_of(oracle.create_trial(name)) for name in "abc")
    finish(oracle, done, 0.4)
    again = make(tmp_path, tuner=tuner)
    again.reload()
    finish(again, running, 0.6)
    assert again.ended == [("1", "COMPLETED")] and again.trials["0"].score == pytest.approx(0.4)
    if lost.status == "RUNNING":  # the third waits with hyperband, of two trials at a time
        assert again.create_trial("b").trial_id == lost.trial_id == "2"
    assert again.create_trial("d").trial_id == ("3" if lost.status == "RUNNING" else "2")


@any_backend
@pytest.mark.parametrize("tuner", ["random", "grid", "bayesian", "hyperband"])
def test_all_workers_get_different_trials_at_once(tuner, clock, tmp_path):
    oracle = make(tmp_path, tuner=tuner)
    trials = [oracle.create_trial(name) for name in "abcd"]
    if tuner == "hyperband":  # of two epochs: two trials at a time
        trials = trials[:2]
    values = [json.dumps(t.hyperparameters.values) for t in trials]
    assert {t.status for t in trials} == {"RUNNING"} and len(set(values)) == len(values)


@any_backend
@pytest.mark.parametrize("tuner", ["bayesian", "grid"])
def test_numbers_in_single_precision_do_not_confuse_the_oracle(tuner, clock, tmp_path):
    """keras-tuner's own takes over what a worker sends back, and then looks for it in vain."""
    space = {"training.loss.offset": [0.1, 0.2, 0.3]}
    oracle = make(tmp_path, tuner=tuner, max_trials=3, initial_points=2, space=space)
    seen = set()
    for _ in range(3):
        sent = copy_of(oracle.create_trial("a"))
        seen.add(round(sent.hyperparameters.values["training.loss.offset"], 6))
        finish(oracle, sent)
    assert oracle.create_trial("a").status == "STOPPED"
    assert seen == {0.1, 0.2, 0.3} if tuner == "grid" else seen <= {0.1, 0.2, 0.3}


# Chief and worker


@pytest.fixture
def trials(monkeypatch):
    fake = Trials()
    monkeypatch.setattr(worker, "attempt", fake)
    monkeypatch.setattr(driver, "save_figures", lambda *a: None)
    return fake


@any_backend
def test_a_worker_takes_over_from_one_that_died(
    images, tmp_path, address, trials, clock, monkeypatch
):
    monkeypatch.setattr(worker, "_SECONDS_IDLE", 0.1)
    folder = tmp_path / "out"
    chief = Chief(images, folder, address, timeout=60)
    assert chief.lines[-1] == f"chief at {address}; waiting for workers"
    with Member.of("worker", address, "dead").environment():
        dead = OracleClient(None).create_trial("dead")

    def run(*arguments):
        if len(trials.ran) == 4:  # the last one but that of the dead: the worker then asks in vain
            threading.Timer(0.5, setattr, (clock, "now", 61.0)).start()
        return trials(*arguments)

    monkeypatch.setattr(worker, "attempt", run)
    lines = []
    mine = tuning.search(
        SEARCH, images, folder, role="worker", chief=address, worker_id="living", log=lines.append
    )
    chief.join(timeout=60)
    assert not chief.is_alive() and chief.error is None
    assert dead.trial_id == "0" and trials.ran == list("123450")
    assert [t["trial"] for t in chief.result.trials] == list("012345")
    assert {t["worker"] for t in chief.result.trials} == {"living"}
    alone = tuning.search(SEARCH, images, tmp_path / "alone", log=lambda line: None)
    assert [t["values"] for t in chief.result.trials] == [t["values"] for t in alone.trials]
    assert [t["certified"] for t in chief.result.trials] == [t["certified"] for t in alone.trials]
    assert len(mine.trials) == 6 and lines[-1] == "worker living: 6 trials run, no more to do"
    assert len([line for line in chief.lines if line.startswith("trial ")]) == 6
    assert not any(name in os.environ for name in VARIABLES)


@any_backend
def test_a_busy_worker_is_heard(images, tmp_path, address, trials, clock, monkeypatch):
    """Its trial takes longer than the chief's patience, and nobody else gets it."""
    monkeypatch.setattr(worker, "_SECONDS_BEAT", 0.05)
    get_trial, beats, others = oracles._Steady.get_trial, [], []

    def heard(oracle, trial_id):
        trial = get_trial(oracle, trial_id)
        beats.append(clock.now)
        return trial

    def slow(*arguments):
        if not trials.ran:
            for clock.now in (50.0, 100.0, 150.0):
                until = time.monotonic() + 60
                while clock.now not in beats and time.monotonic() < until:
                    time.sleep(0.02)
            others.append(OracleClient(None).create_trial("other").trial_id)
            clock.now = 250.0  # and the other one is lost with its trial
        return trials(*arguments)

    monkeypatch.setattr(oracles._Steady, "get_trial", heard)
    monkeypatch.setattr(worker, "attempt", slow)
    chief = Chief(images, tmp_path / "out", address, timeout=60)
    tuning.search(
        SEARCH, images, tmp_path / "out", role="worker", chief=address, worker_id="busy", log=print
    )
    chief.join(timeout=60)
    assert chief.error is None and others == ["1"]
    assert trials.ran == list("012345")


@any_backend
def test_a_worker_without_its_chief_or_its_folder(images, tmp_path, address, trials, capsys):
    with pytest.raises(OSError, match=f"no chief answers at {address} within 0.3 s"):
        tuning.search(SEARCH, images, tmp_path, role="worker", chief=address, timeout=0.3)
    chief = Chief(images, tmp_path / "out", address, max_trials=1)
    common = dict(role="worker", chief=address)
    with pytest.raises(CheckpointError, match="a worker needs the same folder"):
        tuning.search(SEARCH, images, tmp_path / "elsewhere", **common)
    with pytest.raises(CheckpointError, match=r"holds another search \(space differ"):
        space = {"training.loss.offset": [0.2, 0.3]}
        tuning.search(changed(space=space), images, tmp_path / "out", **common)
    # the port is taken
    with pytest.raises(OSError, match=f"cannot listen on {address}: Address already in use"):
        tuning.search(SEARCH, images, tmp_path / "other", role="chief", chief=address)
    assert not (tmp_path / "other").exists()
    with pytest.raises(OSError, match="cannot listen on nowhere.invalid:8470: "):
        cluster.check_address(Member("chief", "nowhere.invalid", 8470))
    file = tmp_path / "search.yaml"
    file.write_text(json.dumps(SEARCH), encoding="utf-8")
    command = ["search", str(file), "--data", str(images), "--role", "chief", "--chief", address]
    assert cli.main([*command, "--output", str(tmp_path / "again")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(OSError, match="is the port in use"):  # taken between the two
        cluster.serve(None, Member.of("chief", address))
    tuning.search(SEARCH, images, tmp_path / "out", max_trials=1, log=print, **common)
    chief.join(timeout=60)
    assert chief.error is None and len(chief.result.trials) == 1


@any_backend
def test_a_chief_without_workers_gives_up_and_goes_on_later(
    images, tmp_path, address, trials, capsys
):
    file, out = tmp_path / "search.yaml", tmp_path / "out"
    file.write_text(json.dumps(SEARCH), encoding="utf-8")
    command = ["search", str(file), "--data", str(images), "--role", "chief", "--chief", address]
    assert cli.main([*command, "--output", str(out), "--wait", "0.3"]) == 2
    error = capsys.readouterr().err
    assert f"no worker was heard of at {address} for 0.3 s" in error and error.count("\n") == 1
    chief = Chief(images, out, address, max_trials=1, resume=True)
    common = dict(role="worker", chief=address, max_trials=1)
    tuning.search(SEARCH, images, out, log=print, **common)
    chief.join(timeout=60)
    assert chief.error is None and len(chief.result.trials) == 1


@any_backend
def test_a_chief_gives_up_once_its_last_worker_is_gone(images, tmp_path, address, trials, clock):
    chief = Chief(images, tmp_path / "out", address, wait=60)
    clock.now = 50.0
    with Member.of("worker", address, "brief").environment():
        OracleClient(None).create_trial("brief")
    clock.now = 109.0  # it counts from the last sign, not from its start
    chief.join(timeout=1.0)
    assert chief.is_alive()
    clock.now = 111.0
    chief.join(timeout=60)
    assert isinstance(chief.error, OSError) and "no worker was heard of" in str(chief.error)


@any_backend
def test_a_worker_gives_up_a_chief_that_is_gone(images, tmp_path, address, trials, monkeypatch):
    chief = Chief(images, tmp_path / "out", address)

    def end_chief(*arguments):
        # an error of the oracle ends the chief, and the worker is told what its result is worth
        record = trials(*arguments)
        monkeypatch.setattr(oracles._Random, "end_trial", None)
        return record

    monkeypatch.setattr(worker, "attempt", end_chief)
    with pytest.raises(OSError, match=f"no chief answers at {address} any more"):
        tuning.search(
            SEARCH, images, tmp_path / "out", role="worker", chief=address, timeout=10, log=print
        )
    chief.join(timeout=60)
    assert isinstance(chief.error, TypeError)


# Who is who


@any_backend
def test_members_by_keras_tuners_own_variables(monkeypatch):
    assert Member.of() == Member(None)
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.7")
    with pytest.raises(ValueError, match="KERASTUNER_ORACLE_PORT must be set too"):
        Member.of()
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", "8000")
    with pytest.raises(ValueError, match="KERASTUNER_TUNER_ID must be set too"):
        Member.of()
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    assert Member.of() == Member("chief", "127.0.0.7", 8000, "chief")
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker3")
    assert Member.of() == Member("worker", "127.0.0.7", 8000, "worker3")
    assert Member.of("worker", worker_id="w").id == "w"
    assert Member.of("worker", chief="localhost:1").address == "localhost:1"
    with Member(None).environment():
        assert os.environ["KERASTUNER_TUNER_ID"] == "main"
        assert "KERASTUNER_ORACLE_IP" not in os.environ
    assert os.environ["KERASTUNER_ORACLE_IP"] == "127.0.0.7"


@any_backend
def test_by_default_nobody_else_is_let_in():
    assert Member.of("chief").address == cluster.DEFAULT_ADDRESS == "127.0.0.1:8470"
    first, second = Member.of("worker"), Member.of("worker")
    assert first.id == second.id and str(os.getpid()) in first.id


# All of it


@pytest.mark.slow
def test_chief_and_three_workers_one_of_them_killed(images, tmp_path, address):
    kill_a_worker_in_its_second_trial(images, tmp_path, "--chief", address)
