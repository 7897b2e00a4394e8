"""Certificates and tokens in files, as a deployment has them."""

import os
from pathlib import Path

import trustme

from services.common.rpc.security import SecurityFiles

HOST = "127.0.0.1"
TOKEN = "token-of-the-deployment-0"
OTHER_TOKEN = "token-of-the-deployment-1"


class Authority:
    """A certificate authority whose certificates are files of a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._ca = trustme.CA()
        self.ca = str(folder / "ca.pem")
        self._ca.cert_pem.write_to_path(self.ca)

    def issue(self, name: str = "process", host: str = HOST, tokens: str = "") -> SecurityFiles:
        """A certificate for a host; issued again under the same name it takes the place of the earlier one."""
        issued = self._ca.issue_cert(host)
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}-key.pem"
        replace(cert, b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        replace(key, issued.private_key_pem.bytes())
        return SecurityFiles(cert=str(cert), key=str(key), ca=self.ca, tokens=tokens)


def replace(path: Path, content: bytes) -> None:
    """Puts a file in the place of another, whole."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def token_file(path: Path, *tokens: str) -> str:
    """A file with tokens; gives its path."""
    replace(path, "".join(f"{token}\n" for token in tokens).encode())
    return str(path)
