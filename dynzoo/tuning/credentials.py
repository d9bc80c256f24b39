"""TLS between a chief and its workers: a folder with the certificate by which they know each other.

Both ends show a certificate and check the other's (mutual TLS); gRPC does all of it.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Credentials", "is_loopback"]

_CERTIFICATE, _KEY, _TRUSTED = "tls.crt", "tls.key", "ca.crt"


@dataclass(frozen=True)
class Credentials:
    """What a member of a search shows to the others, and by what it knows them.

    Args:
        folder: holds ``tls.crt`` and ``tls.key``, PEM, and ``ca.crt``: whoever has a certificate
            that it signed is a member. Without ``ca.crt``, ``tls.crt`` stands for it: one
            self-signed certificate, and all who have its key are members.
        name: what the chief's certificate must be for; default: the host that workers ask.

    Raises:
        ValueError: if a file is missing, damaged or readable by everybody, or key and certificate
            are no pair.

    Example:

    >>> from dynzoo.tuning.credentials import Credentials
    >>> Credentials("/nowhere")
    Traceback (most recent call last):
    ValueError: `tls` must be a folder with tls.crt and tls.key. /nowhere has no tls.crt
    """

    folder: str | os.PathLike[str]
    name: str | None = None

    def __post_init__(self):
        folder = Path(self.folder)
        for file in (_CERTIFICATE, _KEY):
            if not (folder / file).is_file():
                raise ValueError(
                    f"`tls` must be a folder with {_CERTIFICATE} and {_KEY}. {folder} has no {file}"
                )
        if (folder / _KEY).stat().st_mode & stat.S_IRWXO:
            raise ValueError(
                f"{folder / _KEY} can be read by every user of this machine: chmod 600 it, and "
                "make a new one if others were on it"
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(folder / _CERTIFICATE, folder / _KEY, password=lambda: b"")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{folder / _KEY} must be a PEM key without password, and {_CERTIFICATE} its "
                f"certificate. {_reason(error)}"
            ) from None
        try:
            context.load_verify_locations(self._trusted)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self._trusted} must hold PEM certificates. {_reason(error)}"
            ) from None

    @property
    def _trusted(self) -> Path:
        trusted = Path(self.folder) / _TRUSTED
        return trusted if trusted.exists() else Path(self.folder) / _CERTIFICATE

    def _read(self) -> tuple[bytes, bytes, bytes]:
        folder = Path(self.folder)
        files = (self._trusted, folder / _KEY, folder / _CERTIFICATE)
        trusted, key, certificate = (file.read_bytes() for file in files)
        return trusted, key, certificate

    def server(self) -> Any:
        """gRPC's credentials of a chief, who lets nobody in without a certificate."""
        import grpc

        trusted, key, certificate = self._read()
        return grpc.ssl_server_credentials([(key, certificate)], trusted, require_client_auth=True)

    def channel(self, address: str, options: Sequence[tuple[str, Any]] = ()) -> Any:
        """A gRPC channel of a worker's to ``HOST:PORT``, where the chief must show who it is."""
        import grpc

        trusted, key, certificate = self._read()
        named = [("grpc.ssl_target_name_override", self.name)] if self.name else []
        credentials = grpc.ssl_channel_credentials(trusted, key, certificate)
        return grpc.secure_channel(address, credentials, [*options, *named])

    def refusal(self, details: str, address: str) -> str | None:
        """Why no connection comes about, if it is a certificate's fault, from what gRPC says."""
        chief = f"the chief at {address}"
        if "Hostname Verification" in details:
            name = self.name or address.rpartition(":")[0]
            return f"{chief} has a certificate that is not for {name!r}: say with `tls_name` whose"
        if "CERTIFICATE_VERIFY_FAILED" in details:
            why = details.partition("CERTIFICATE_VERIFY_FAILED:")[2].split(": OK")[0].strip()
            return f"{chief} has a certificate that {self._trusted} does not vouch for: {why}"
        if "WRONG_VERSION_NUMBER" in details:
            return f"{chief} does not speak TLS: start it with `tls`"
        return None


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)


def is_loopback(host: str) -> bool:
    """Whether a host's every address is one that only this machine reaches; unknown: no."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    addresses = [str(entry[4][0]).partition("%")[0] for entry in found]
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)
