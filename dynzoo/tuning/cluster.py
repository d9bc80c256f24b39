"""Many machines: who is who, the chief that serves its oracle, and the wait for it.

The protocol is keras-tuner's, over gRPC: without encryption or password on one machine, with
certificates on both sides (`credentials`) where other machines can reach it.
"""

from __future__ import annotations

import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dynzoo.tuning.credentials import Credentials, is_loopback

__all__ = ["DEFAULT_ADDRESS", "Member", "check_address", "check_times", "connect", "join", "serve"]

DEFAULT_ADDRESS = "127.0.0.1:8470"
_ROLES = ("chief", "worker")
_ID, _HOST, _PORT = "KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT"
_TLS, _TLS_NAME = "DYNZOO_SEARCH_TLS", "DYNZOO_SEARCH_TLS_NAME"
# A chief that is started again is found within seconds; by default gRPC tries every two minutes.
_PATIENT = [("grpc.max_reconnect_backoff_ms", 5000)]
_SECONDS_RETRY = 0.5  # between two attempts at reaching the chief


@dataclass(frozen=True)
class Member:
    """What this process is in a search.

    Its role (`None`: all of it), the chief's place, its id, and by what the others know it.
    """

    role: str | None
    host: str = ""
    port: int = 0
    id: str = "main"
    credentials: Credentials | None = None

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @classmethod
    def of(
        cls,
        role: str | None = None,
        chief: str | None = None,
        worker_id: str | None = None,
        tls: Any = None,
        tls_name: str | None = None,
    ) -> Member:
        """From arguments, and for those that are `None` from environment variables.

        Raises:
            ValueError: naming the argument or the variable that is wrong or missing; also for an
                address that other machines reach, without ``tls``.
        """
        given = {"chief": chief, "worker_id": worker_id, "tls": tls, "tls_name": tls_name}
        asked = [name for name, value in given.items() if value is not None]
        if role is None and os.environ.get(_HOST):
            for variable in (_PORT, _ID):
                if not os.environ.get(variable):
                    raise ValueError(f"{_HOST} is set, so {variable} must be set too")
            role = "chief" if "chief" in os.environ[_ID] else "worker"
        if role is None and asked:
            raise ValueError(f"`{asked[0]}` needs a `role`, chief or worker")
        if role is None:
            return cls(None)
        if role not in _ROLES:
            raise ValueError(f"`role` must be chief or worker. Received: role={role!r}")
        if chief is None and os.environ.get(_HOST) and os.environ.get(_PORT):
            chief = f"{os.environ[_HOST]}:{os.environ[_PORT]}"
        host, port = _split(chief or DEFAULT_ADDRESS)
        credentials = _credentials(host, port, tls, tls_name)
        if role == "chief":
            return cls(role, host, port, "chief", credentials)
        name = worker_id or os.environ.get(_ID) or f"{socket.gethostname()}-{os.getpid()}"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or "chief" in name:
            raise ValueError(
                "`worker_id` must be made of letters, digits, points, dashes and underscores, and "
                f"not contain 'chief'. Received: worker_id={name!r}"
            )
        return cls(role, host, port, name, credentials)

    def channel(self) -> Any:
        """A gRPC channel to the chief."""
        import grpc

        if self.credentials is None:
            return grpc.insecure_channel(self.address, _PATIENT)
        return self.credentials.channel(self.address, _PATIENT)

    @contextmanager
    def environment(self) -> Iterator[None]:
        """keras-tuner's environment variables for as long as the block runs."""
        variables: dict[str, str | None] = dict.fromkeys((_HOST, _PORT))
        variables[_ID] = self.id
        if self.role is not None:
            variables |= {_HOST: self.host, _PORT: str(self.port)}
        before = {name: os.environ.get(name) for name in variables}
        try:
            _set(variables)
            yield
        finally:
            _set(before)


def _set(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def _credentials(host: str, port: int, tls: Any, tls_name: str | None) -> Credentials | None:
    folder = tls if tls is not None else os.environ.get(_TLS) or None
    if folder is not None:
        return Credentials(folder, tls_name or os.environ.get(_TLS_NAME) or None)
    if tls_name is not None:
        raise ValueError("`tls_name` needs `tls`, a folder with certificates")
    if not is_loopback(host):
        raise ValueError(
            f"`chief` at {host}:{port} can be reached from other machines: give `tls`, a folder "
            f"with certificates (or {_TLS}), or an address of this machine alone"
        )
    return None


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"`chief` must be HOST:PORT. Received: chief={address!r}")
    return host, int(port)


def check_times(timeout: float, wait: float) -> None:
    """A ValueError for seconds of patience that are not positive."""
    for name, seconds in (("timeout", timeout), ("wait", wait)):
        if not 0 < seconds < math.inf:
            raise ValueError(f"`{name}` must be positive. Received: {name}={seconds}")


def check_address(member: Member) -> None:
    """Whether a chief can listen where it is meant to, before anything is written.

    Raises:
        OSError: if not, such as for a port in use.
    """
    host = member.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, member.port), family=family).close()
    except OSError as error:
        raise _cannot_listen(member, error.strerror) from None


def _cannot_listen(member: Member, why: str | None) -> OSError:
    return OSError(f"cannot listen on {member.address}: {why or 'unknown reason'}")


def serve(
    oracle: Any, member: Member, log: Callable[[str], None] = print, wait: float = math.inf
) -> None:
    """Serves the oracle to workers until all trials have ended and all workers know.

    Args:
        oracle: from `make_oracle`.
        member: this process, a chief.
        log: called with each message.
        wait: seconds without any worker after which the chief gives up.

    Raises:
        OSError: if the address cannot be listened on, such as a port in use, or no worker comes.
    """
    from concurrent import futures  # the command checks addresses here without it

    import grpc
    from keras_tuner.src import protos
    from keras_tuner.src.distribute.oracle_chief import OracleServicer

    class Servicer(OracleServicer):
        error: Exception | None = None

        def CreateTrial(self, request, context):
            return self._guarded(super().CreateTrial, request, context)

        def UpdateTrial(self, request, context):
            return self._guarded(super().UpdateTrial, request, context)

        def EndTrial(self, request, context):
            return self._guarded(super().EndTrial, request, context)

        def _guarded(self, answer, request, context):
            try:
                return answer(request, context)
            except Exception as error:  # such as a full disk: the search must not go on
                self.error = error
                raise

    # One thread, so that the oracle need not lock. Without the option, Linux lets two chiefs
    # share a port.
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=1), options=[("grpc.so_reuseport", 0)]
    )
    servicer = Servicer(oracle)
    protos.get_service_grpc().add_OracleServicer_to_server(servicer, server)
    try:
        if member.credentials is None:
            bound = server.add_insecure_port(member.address)
        else:
            bound = server.add_secure_port(member.address, member.credentials.server())
    except RuntimeError:
        bound = 0
    if not bound:
        raise _cannot_listen(member, "is the port in use?")
    began = time.monotonic()
    server.start()
    log(f"chief at {member.address}; waiting for workers")
    if member.credentials is not None:
        log("TLS: whoever shows a certificate of this search can take part, and nobody else")
    try:
        while not (
            servicer.stop_triggered
            and not oracle.ongoing_trials
            and not any(oracle.is_alive(worker) for worker in list(oracle.tuner_ids))
        ):
            if servicer.error is not None:
                raise servicer.error
            if time.monotonic() - max(began, oracle.last_heard) > wait:
                raise OSError(
                    f"no worker was heard of at {member.address} for {wait:g} s: start the chief "
                    "again with --resume, and workers with it"
                )
            time.sleep(0.2)
    finally:
        server.stop(grace=1.0).wait()


@contextmanager
def join(member: Member, timeout: float) -> Iterator[None]:
    """Waits for the chief, and says in one line where it is lost later on.

    Args:
        member: this process, a worker.
        timeout: seconds to wait, now and for each answer.

    Raises:
        OSError: if the chief does not answer in time, or its certificate is not the right one.
    """
    import grpc
    from keras_tuner.src.distribute import oracle_client

    channel = member.channel()
    try:
        _await(channel, member, timeout)
    finally:
        channel.close()
    before = oracle_client.TIMEOUT
    oracle_client.TIMEOUT = timeout  # an hour, with which a worker would outlive its chief
    try:
        yield
    except grpc.RpcError as error:
        code = error.code().name
        raise OSError(f"no chief answers at {member.address} any more ({code})") from None
    finally:
        oracle_client.TIMEOUT = before


def _await(channel: Any, member: Member, timeout: float) -> None:
    """Asks until the chief answers. A certificate that is refused once will be again."""
    import grpc
    from keras_tuner.src import protos

    ask = protos.get_service_grpc().OracleStub(channel).GetSpace
    until = time.monotonic() + timeout
    closed = False
    while (left := until - time.monotonic()) > 0:
        try:
            ask(protos.get_service().GetSpaceRequest(), timeout=left)
            return
        except grpc.RpcError as error:
            details = error.details() or ""
            if member.credentials is not None:
                refusal = member.credentials.refusal(details, member.address)
                if refusal is not None:
                    raise OSError(refusal) from None
            closed = "Socket closed" in details
        time.sleep(min(_SECONDS_RETRY, max(0.0, until - time.monotonic())))
    tls = "without `tls`" if member.credentials is None else "with the certificate of this worker"
    raise OSError(
        f"the chief at {member.address} lets nobody in {tls}"
        if closed
        else f"no chief answers at {member.address} within {timeout:g} s"
    )


def connect(tuner: Any, member: Member) -> None:
    """Has a worker's tuner speak to the chief over the member's channel.

    keras-tuner's client makes itself one without credentials, which it has not used yet.
    """
    from keras_tuner.src import protos

    tuner.oracle.stub = protos.get_service_grpc().OracleStub(member.channel())
