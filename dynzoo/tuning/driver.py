"""``search``: the folder, the oracle, the trials, and what comes out of them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dynzoo.training.checkpoints import CheckpointError
from dynzoo.training.recipes import RecipeError
from dynzoo.tuning import cluster
from dynzoo.tuning.config import SearchConfig
from dynzoo.tuning.figures import save_figures
from dynzoo.tuning.hypermodel import RecipeModel, read_splits
from dynzoo.tuning.oracles import make_oracle
from dynzoo.tuning.records import UNSEEN, SearchResult, collect, number, outcome, write_table
from dynzoo.tuning.worker import RecipeTuner
from dynzoo.utils import interruption, strict_json
from dynzoo.utils.files import write_atomically
from dynzoo.utils.formatting import duration

__all__ = ["search"]

_MAX_SECONDS_UNSEEN = 60


def search(
    config: Any,
    data_file: Any = None,
    output: Any = None,
    resume: bool = False,
    max_trials: int | None = None,
    role: str | None = None,
    chief: str | None = None,
    worker_id: str | None = None,
    tls: Any = None,
    tls_name: str | None = None,
    timeout: float = 60.0,
    wait: float = 600.0,
    log: Callable[[str], None] = print,
) -> SearchResult:
    """Searches the space around a recipe for its best network, on held-out images.

    Each trial trains a recipe as ``dynzoo.training.train`` does and measures it on the part of the
    training images that the recipe holds out; the test set is not read. The first trial is the
    recipe as it stands. A trial that cannot be built, is too large or diverges is recorded with
    its reason. After each trial the folder has the table ``trials.csv`` and the recipe
    ``best.yaml``, at the end also two plots.

    With a ``role``, the trials are shared out: a chief decides on them and any number of workers,
    started with the same config and output folder on a file system that all see, run them.

    Condition: with the same seed, version and backend the trials are the same, unless
    ``search.seconds_per_trial`` cuts them short, or workers finish in another order (Bayesian and
    Hyperband). Held-out accuracies of the best of many trials are optimistic: evaluate what
    ``best.yaml`` trains on the test set.

    Args:
        config: a search: mapping, YAML file, or the name of one that ships.
        data_file: what ``dynzoo.data.load`` shall read in place of the recipe's data set.
        output: folder of the search; default ``runs/<recipe's name>_search``.
        resume: go on with the search in the folder if there is one.
        max_trials: in place of the config's; a search may be resumed with more.
        role: ``"chief"``, ``"worker"``, or ``None``: what keras-tuner's environment variables
            ``KERASTUNER_TUNER_ID``, ``KERASTUNER_ORACLE_IP`` and ``KERASTUNER_ORACLE_PORT`` say,
            and without them a search in this process alone.
        chief: ``"HOST:PORT"`` of the chief, who listens there; default ``127.0.0.1:8470``, which
            this machine alone reaches. Any other needs ``tls``.
        worker_id: name of a worker, unlike all others; default host and process number.
        tls: folder with ``tls.crt`` and ``tls.key`` of this process, and ``ca.crt``, which vouches
            for the others; default: environment variable ``DYNZOO_SEARCH_TLS``, else neither
            password nor encryption.
        tls_name: whom the chief's certificate must be for; default:
            ``DYNZOO_SEARCH_TLS_NAME``, else the host in ``chief``.
        timeout: seconds of silence after which a chief gives the trial of a worker to another
            one, and a worker gives up its chief; workers make themselves heard every 5 s.
        wait: seconds after which a chief without any worker gives up; it can be resumed.
        log: called with each message.

    Returns:
        The trials, of a worker as far as they are known.

    Raises:
        RecipeError: if the config is wrong, naming the key.
        CheckpointError: if the folder holds a search and ``resume`` is not set, or another search.
        OSError: if the folder cannot be written to, the port is in use, no chief answers or only
            one that has no right certificate, or no worker comes.
        ValueError: for other wrong arguments, or if no trial could be completed.

    Example:

    >>> from dynzoo.tuning import search
    >>> result = search("digits", max_trials=3)
    >>> result.best["certified"] > 0.5
    True
    """
    cluster.check_times(timeout, wait)
    plan = SearchConfig.load(config).with_settings(max_trials=max_trials)
    member = cluster.Member.of(role, chief, worker_id, tls, tls_name)
    folder = Path(output) if output else Path("runs") / f"{plan.recipe['name']}_search"
    source = data_file or plan.recipe["data"]["name"]
    log(f"search around {plan.recipe['name']}: reading {source}")
    splits = read_splits(plan, source)
    identity = _identity(plan, splits)
    hypermodel = RecipeModel(plan, splits)
    if member.role == "worker":
        return _work(member, hypermodel, folder, identity, timeout, log)
    if member.role == "chief":
        cluster.check_address(member)
    _open(folder, identity, resume)
    oracle = make_oracle(plan, patience=timeout)
    with member.environment():
        tuner = RecipeTuner(oracle, hypermodel, folder, log=log)
    if Path(oracle._get_oracle_fname()).exists():
        oracle.reload()
        log(f"resumed: {len(oracle.end_order)} of {oracle.max_trials} trials are done")
    interruption.keeps(lambda: _kept(folder, oracle))
    oracle.on_end = _Progress(plan, oracle, folder, log)
    if len(oracle.end_order) < oracle.max_trials:
        if member.role == "chief":
            cluster.serve(oracle, member, log, wait)
        else:
            with member.environment():
                tuner.search()
    return _finish(plan, oracle, folder, log)


def _identity(plan: SearchConfig, splits: Any) -> dict[str, Any]:
    """What all processes of a search must agree on, those of a later resumption too."""
    (x, y), _ = splits
    return {**_plain(plan), "images": hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()}


def _plain(plan: SearchConfig) -> dict[str, Any]:
    parts = plan.to_dict()
    parts["search"] = {k: v for k, v in parts["search"].items() if k != "max_trials"}
    return json.loads(json.dumps(parts))


def _completed(known: Any) -> dict[str, Any]:
    """What an earlier version of dynzoo wrote, with keys that it did not know at their defaults."""
    if not isinstance(known, dict):
        raise ValueError("it is not a mapping")
    try:
        plan = SearchConfig.load({key: known[key] for key in ("recipe", "space", "search")})
    except (KeyError, TypeError, RecipeError):
        return known
    return {**known, **_plain(plan)}


def _open(folder: Path, identity: dict[str, Any], resume: bool) -> None:
    """Makes the folder that of this search, or refuses."""
    path = folder / "search.json"
    if path.exists():
        if not resume:
            raise CheckpointError(
                f"{folder} holds a search: pass --resume to go on, or choose another output folder"
            )
        _check(path, identity)
        return
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty: choose another output folder")
    write_atomically(path, json.dumps(identity, indent=1).encode())


def _check(path: Path, identity: dict[str, Any]) -> None:
    try:
        known = _completed(strict_json.read(path))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} does not hold the chief's search: a worker needs the same folder"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error})") from None
    different = [key for key in identity if known.get(key) != identity[key]]
    if different:
        raise CheckpointError(
            f"{path.parent} holds another search ({', '.join(different)} differ): use its config "
            "and data, or another output folder"
        )


def _work(
    member: cluster.Member,
    hypermodel: RecipeModel,
    folder: Path,
    identity: dict[str, Any],
    timeout: float,
    log: Callable[[str], None],
) -> SearchResult:
    interruption.keeps(lambda: _worker_gone(member))
    with cluster.join(member, timeout), member.environment():
        _check(folder / "search.json", identity)
        log(f"worker {member.id}: joined the chief at {member.address}")
        tuner = RecipeTuner(make_oracle(hypermodel.config), hypermodel, folder, log)
        cluster.connect(tuner, member)
        tuner.search()
    log(f"worker {member.id}: {len(tuner.records)} trials run, no more to do")
    return SearchResult(folder, hypermodel.config.objective, tuner.records)


def _kept(folder: Path, oracle: Any) -> str:
    done = f"{len(oracle.end_order)} of {oracle.max_trials} trials"
    return f"{folder} has {done}, go on: {interruption.command('--resume')}"


def _worker_gone(member: cluster.Member) -> str:
    again = f"start again: {interruption.command()}"
    return f"the chief gives the trial of worker {member.id} to another one, {again}"


class _Progress:
    """After each trial: a line, the table and the best recipe."""

    def __init__(self, plan: SearchConfig, oracle: Any, folder: Path, log: Callable[[str], None]):
        self.plan = plan
        self.oracle = oracle
        self.folder = folder
        self.log = log
        self.began = time.monotonic()
        self.before = len(oracle.end_order)

    def __call__(self, trial: Any) -> None:
        result = _result(self.plan, self.oracle, self.folder)
        write_table(self.plan, result)
        row = next(t for t in result.trials if t["trial"] == trial.trial_id)
        done, total = len(self.oracle.end_order), self.oracle.max_trials
        line = f"trial {done} of {total}, {number(row)}: {outcome(row, self.plan.objective)}"
        best = result.best
        if best is not None:
            value = 100 * best[result.objective]
            line += f"; best so far {value:.2f} % ({number(best)})"
        elapsed = time.monotonic() - self.began
        left = elapsed / (done - self.before) * (total - done)
        self.log(line + (f"; {duration(left)} left" if done < total else ""))


def _result(plan: SearchConfig, oracle: Any, folder: Path) -> SearchResult:
    trials = [oracle.trials[name] for name in oracle.start_order]
    return SearchResult(folder, plan.objective, collect(trials, folder, plan))


def _finish(
    plan: SearchConfig, oracle: Any, folder: Path, log: Callable[[str], None]
) -> SearchResult:
    for _ in range(_MAX_SECONDS_UNSEEN):
        result = _result(plan, oracle, folder)
        if all(t["status"] != UNSEEN for t in result.trials):
            break
        time.sleep(1.0)
    write_table(plan, result)
    if result.best is None:
        reason = next((t["reason"] for t in result.trials if t["reason"]), "none was run")
        raise ValueError(
            f"none of {len(result.trials)} trials could be completed, see {folder / 'trials.csv'}; "
            f"the first: {reason}"
        )
    save_figures(plan, result)
    log(f"best: {number(result.best)}, {outcome(result.best, plan.objective)}")
    log(f"table and plots: {folder.absolute()}")
    log(f"train it: dynzoo train {result.best_recipe}")
    return result
