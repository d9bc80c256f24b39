"""A search over more than one machine: who is let in, and that nobody listens there without TLS."""

import os
import shutil
import subprocess

import grpc
import pytest
from keras_tuner.src import protos
from tuning_fixtures import (
    SEARCH,
    Chief,
    Trials,
    free_address,
    kill_a_worker_in_its_second_trial,
    write_images,
)

from dynzoo import tuning
from dynzoo.cli import program as cli
from dynzoo.tuning import cluster, driver, worker
from dynzoo.tuning.cluster import Member
from dynzoo.tuning.credentials import Credentials, is_loopback

pytestmark = [
    pytest.mark.any_backend,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates"),
    pytest.mark.filterwarnings("ignore:currentThread:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:getName:DeprecationWarning"),
]
NAME = "dynzoo-search"
VARIABLES = ("DYNZOO_SEARCH_TLS", "DYNZOO_SEARCH_TLS_NAME", "KERASTUNER_ORACLE_IP")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    fake = Trials()
    monkeypatch.setattr(worker, "attempt", fake)
    monkeypatch.setattr(driver, "save_figures", lambda *a: None)


def openssl(*arguments, **more):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, **more)


def self_signed(folder, name=NAME, days=1):
    """The command of docs/search.md: one certificate for all."""
    folder.mkdir()
    openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-days", days, "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}",
        "-keyout", folder / "tls.key", "-out", folder / "tls.crt",
    )  # fmt: skip
    return folder


def signed(folder, authority, name):
    """A certificate of its own for a member, by an authority that all trust."""
    self_signed(folder, name)
    openssl(
        "req", "-new", "-key", folder / "tls.key", "-subj", f"/CN={name}",
        "-addext", f"subjectAltName=DNS:{name}", "-out", folder / "csr",
    )  # fmt: skip
    openssl(
        "x509", "-req", "-in", folder / "csr", "-CA", authority / "tls.crt", "-CAkey",
        authority / "tls.key", "-days", "1", "-copy_extensions", "copy", "-out", folder / "tls.crt",
    )  # fmt: skip
    shutil.copy(authority / "tls.crt", folder / "ca.crt")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    self_signed(folder / "ours"), self_signed(folder / "other")
    authority = self_signed(folder / "authority", "authority")
    signed(folder / "chief", authority, NAME), signed(folder / "worker", authority, "worker")
    write_images(folder / "images.npz")
    return folder


@pytest.fixture
def address():
    return free_address()


def joins(made, folder, address, tls, **more):
    more = {"tls_name": NAME, "log": lambda line: None, "timeout": 10.0, **more}
    return tuning.search(
        SEARCH, made / "images.npz", folder, role="worker", chief=address, tls=tls, **more
    )


def chief(made, folder, address, tls, **more):
    return Chief(made / "images.npz", folder, address, tls=tls, **more)


@pytest.mark.parametrize("pair", [("ours", "ours"), ("chief", "worker")])
def test_members_of_a_search_share_its_trials(made, tmp_path, address, pair, monkeypatch):
    head = chief(made, tmp_path / "out", address, made / pair[0])
    assert head.lines[-1].startswith("TLS: whoever shows a certificate of this search")
    monkeypatch.setenv("DYNZOO_SEARCH_TLS", str(made / pair[1]))
    monkeypatch.setenv("DYNZOO_SEARCH_TLS_NAME", NAME)
    mine = joins(made, tmp_path / "out", address, None, tls_name=None)
    head.join(timeout=60)
    assert head.error is None and len(mine.trials) == len(head.result.trials) == 6


def test_others_are_told_in_one_line_why_they_are_not_let_in(made, tmp_path, address):
    head = chief(made, tmp_path / "out", address, made / "chief", max_trials=1)
    refused = [
        (made / "worker", None, "has a certificate that is not for '127.0.0.1': say with `tls_n"),
        (made / "worker", "worker", "has a certificate that is not for 'worker'"),
        (made / "other", NAME, r"other/tls.crt does not vouch for: unable to get local issuer"),
    ]
    for tls, name, message in refused:
        with pytest.raises(OSError, match=message):
            joins(made, tmp_path / "out", address, tls, tls_name=name)
    stranger = made / "stranger"  # trusts the chief, who does not know it
    shutil.copytree(made / "other", stranger)
    shutil.copy(made / "chief" / "ca.crt", stranger / "ca.crt")
    for tls, name, message in [
        (stranger, NAME, f"chief at {address} lets nobody in with the certificate of this worker"),
        (None, None, f"the chief at {address} lets nobody in without `tls`"),
    ]:
        with pytest.raises(OSError, match=message):
            joins(made, tmp_path / "out", address, tls, tls_name=name, timeout=1.0)
    assert len(joins(made, tmp_path / "out", address, made / "worker", max_trials=1).trials) == 1
    head.join(timeout=60)
    assert head.error is None


def test_a_stranger_can_ask_nothing_and_change_nothing(made, tmp_path, address):
    """No method of the protocol answers without a certificate, by any means of gRPC's."""
    head = chief(made, tmp_path / "out", address, made / "ours", max_trials=1, wait=60)
    trusted = (made / "ours" / "tls.crt").read_bytes()
    key, certificate = ((made / "other" / f).read_bytes() for f in ("tls.key", "tls.crt"))
    named = [("grpc.ssl_target_name_override", NAME)]
    service = protos.get_service()
    for channel in (
        grpc.insecure_channel(address),
        grpc.secure_channel(address, grpc.ssl_channel_credentials(trusted), named),
        grpc.secure_channel(
            address, grpc.ssl_channel_credentials(trusted, key, certificate), named
        ),
    ):
        stub = protos.get_service_grpc().OracleStub(channel)
        for ask, request in [
            (stub.GetSpace, service.GetSpaceRequest()),
            (stub.CreateTrial, service.CreateTrialRequest(tuner_id="stranger")),
            (stub.EndTrial, service.EndTrialRequest()),
            (stub.GetBestTrials, service.GetBestTrialsRequest(num_trials=1)),
        ]:
            with pytest.raises(grpc.RpcError) as error:
                ask(request, timeout=5.0)
            assert error.value.code() == grpc.StatusCode.UNAVAILABLE
        channel.close()
    assert joins(made, tmp_path / "out", address, made / "ours", max_trials=1).trials
    head.join(timeout=60)
    assert [t["worker"] for t in head.result.trials] != ["stranger"]


def test_a_worker_with_tls_does_not_speak_to_a_chief_without(made, tmp_path, address):
    head = Chief(made / "images.npz", tmp_path / "out", address, max_trials=1)
    with pytest.raises(OSError, match=f"chief at {address} does not speak TLS: start it with"):
        joins(made, tmp_path / "out", address, made / "ours")
    joins(made, tmp_path / "out", address, None, tls_name=None, max_trials=1)
    head.join(timeout=60)


@pytest.mark.parametrize("role", ["chief", "worker"])
@pytest.mark.parametrize(
    "address", ["0.0.0.0:8470", "[::]:8470", "192.0.2.7:8470", "no.such.host.invalid:8470"]
)
def test_beyond_this_machine_only_with_tls(made, role, address, tmp_path, capsys):
    with pytest.raises(ValueError, match="can be reached from other machines: give `tls`"):
        Member.of(role, address)
    assert Member.of(role, address, tls=made / "ours").credentials is not None
    command = ["search", "digits", "--role", role, "--chief", address, "--output", str(tmp_path)]
    assert cli.main(command) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_keras_tuners_variables_open_nothing_either(monkeypatch):
    for name, value in {"IP": "0.0.0.0", "PORT": "8470"}.items():
        monkeypatch.setenv(f"KERASTUNER_ORACLE_{name}", value)
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    with pytest.raises(ValueError, match="can be reached from other machines"):
        Member.of()


def test_loopback():
    assert all(map(is_loopback, ("127.0.0.1", "127.0.0.2", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.0.2.7", "", "no.such.host.invalid", "a" * 99)))
    cluster.check_address(Member.of("chief", free_address("127.0.0.2")))


def test_a_folder_that_is_no_good_is_named(made, tmp_path, capsys):
    def copy(name, **files):
        folder = shutil.copytree(made / "ours", tmp_path / name)
        for file, content in files.items():
            (folder / f"tls.{file}").write_bytes(content)
        return folder

    other = (made / "other" / "tls.key").read_bytes()
    missing, mixed, damaged = copy("missing"), copy("mixed", key=other), copy("bad", crt=b"x")
    (missing / "tls.key").unlink()
    shown, locked, trusts = copy("shown"), copy("locked"), copy("trusts")
    (shown / "tls.key").chmod(0o644)
    (trusts / "ca.crt").write_text("no certificate")
    openssl(
        "ec", "-aes256", "-passout", "pass:word", "-in", made / "ours" / "tls.key",
        "-out", locked / "tls.key",
    )  # fmt: skip
    for folder, message in {
        tmp_path / "nowhere": "nowhere has no tls.crt",
        missing: "missing has no tls.key",
        mixed: "mixed/tls.key must be a PEM key without password, and tls.crt its certificate",
        damaged: "bad/tls.key must be a PEM key without password",
        locked: "locked/tls.key must be a PEM key without password",
        shown: "shown/tls.key can be read by every user of this machine: chmod 600",
        trusts: "trusts/ca.crt must hold PEM certificates",
    }.items():
        with pytest.raises(ValueError, match=message):
            Credentials(folder)
        command = ["search", "digits", "--role", "chief", "--tls", str(folder)]
        assert cli.main(command) == 2 and capsys.readouterr().err.count("\n") == 1
    for more in ({"tls": made / "ours"}, {"tls_name": NAME}):
        with pytest.raises(ValueError, match=f"`{next(iter(more))}` needs a `role`"):
            Member.of(**more)
    with pytest.raises(ValueError, match="`tls_name` needs `tls`"):
        Member.of("chief", tls_name=NAME)


# Hosts of their own


@pytest.fixture
def hosts():
    """Commands that run another one on a host: four network namespaces joined by a bridge."""
    names = [f"dynzoo-{os.getpid()}-{n}" for n in range(5)]
    switch = names.pop()

    def ip(*arguments):
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

    try:
        ip("netns", "add", switch)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces are not permitted here: {error}")
    try:
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        for n, name in enumerate(names):
            ip("netns", "add", name)
            ip(
                "-n", name, "link", "add", "up0", "type", "veth",
                "peer", "name", f"port{n}", "netns", switch,
            )  # fmt: skip
            ip("-n", switch, "link", "set", f"port{n}", "master", "bridge", "up")
            ip("-n", name, "address", "add", f"10.213.0.{n + 1}/24", "dev", "up0")
            for link in ("lo", "up0"):
                ip("-n", name, "link", "set", link, "up")
        yield [("ip", "netns", "exec", name) for name in names]
    finally:
        for name in (*names, switch):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.mark.slow
def test_a_worker_on_another_host_is_killed(made, hosts, tmp_path):
    arguments = ("--chief", "10.213.0.1:8470", "--tls", str(made / "ours"), "--tls-name", NAME)
    kill_a_worker_in_its_second_trial(made / "images.npz", tmp_path, *arguments, hosts=hosts)
