"""The wheel: one top-level name, little for a trainer, and the service inside it beside a package that is called `tables`."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..workers import ROOT


def run(*words: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    yield next(folder.glob("pulsefold-*.whl"))


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a clean environment with the wheel and PyTables."""
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel, "tables", cwd=folder)
    return python


@pytest.mark.timeout(300)
def test_the_wheel_has_one_top_level_name_and_carries_the_service_and_its_pages(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} - {n for n in {name.split("/")[0] for name in names} if n.endswith(".dist-info")} == {"pulsefold"}
    for part in (
        "publisher.py",
        "py.typed",
        "_service/agents/main.py",
        "_service/agents/static/index.html",
        "_service/tables/trust.py",
        "_service/streams/cli/__init__.py",
        "cli/__init__.py",
    ):
        assert f"pulsefold/{part}" in names, part


@pytest.mark.timeout(300)
def test_a_trainers_installation_publishes_beside_pytables_without_the_services_packages(clean: Path, tmp_path: Path) -> None:
    code = (
        "import tables, pulsefold, sys\n"
        "from pulsefold import SyncPublisher, AlertSubscriber, events\n"
        "assert hasattr(tables, 'open_file'), tables\n"
        "assert not [n for n in ('faust', 'aiokafka', 'scipy', 'agents') if n in sys.modules]\n"
        "print(events.TrustObserved(kind='model', id='m', success=True).TYPE)"
    )
    assert run(clean, "-c", code, cwd=tmp_path).strip() == "trust.observed.v1"


@pytest.mark.timeout(300)
def test_the_service_of_the_wheel_imports_its_own_tables_in_its_own_process(clean: Path, wheel: Path, tmp_path: Path) -> None:
    run(clean, "-m", "pip", "install", "--quiet", f"pulsefold[service] @ {wheel.as_uri()}", cwd=tmp_path)
    code = (
        "import os, subprocess, sys, tables, pulsefold, pathlib\n"
        "root = pathlib.Path(pulsefold.__file__).parent / '_service'\n"
        "env = {**os.environ, 'PYTHONPATH': str(root), 'PYTHONSAFEPATH': '1'}\n"
        "out = subprocess.run([sys.executable, '-m', 'agents.main', 'worker', '--bootstrap', '127.0.0.1:1'], env=env, capture_output=True, text=True)\n"
        "print(hasattr(tables, 'open_file'), out.returncode, out.stderr.strip())"
    )
    whole, code_, text = run(clean, "-c", code, cwd=tmp_path).strip().split(" ", 2)
    assert (whole, code_) == ("True", "2")
    assert text.startswith("pulsefold: bootstrap: no Kafka broker answers")
