"""Certificates made on the spot, by the system's openssl."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def self_signed(folder: Path, name: str = "worker", *, password: str | None = None) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 and localhost, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    cert, key = folder / f"{name}.pem", folder / f"{name}-key.pem"
    words = ["req", "-x509", "-newkey", "rsa:2048", "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    locked = ["-nodes"] if password is None else ["-passout", f"pass:{password}"]
    subprocess.run(["openssl", *words, *locked, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True, timeout=60)
    return cert, key


def signed(folder: Path, name: str, authority: tuple[Path, Path]) -> tuple[Path, Path]:
    """A certificate of a client and its key, signed by another one."""
    cert, key, asked = folder / f"{name}.pem", folder / f"{name}-key.pem", folder / f"{name}.csr"
    for words in (
        ["req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(asked)],
        ["x509", "-req", "-in", str(asked), "-CA", str(authority[0]), "-CAkey", str(authority[1]), "-CAcreateserial", "-days", "2", "-out", str(cert)],
    ):
        subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=60)
    return cert, key
