"""The wheel: one top-level name, little for a trainer, and the service inside it beside a package that is called `tables`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..ports import free_port
from ..workers import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OWN = {name: value for name, value in os.environ.items() if not name.startswith(("PULSEFOLD_", "PYTHONPATH", "PYTHONSAFEPATH"))}
"""Environment of a user who has heard of none of our settings."""


def run(*words: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True, timeout=280, env=OWN)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def install(python: Path | str, *words: str | Path, cwd: Path) -> None:
    """pip, where a package index answers: skipped at home without one, failed in CI. What is imported is compiled then."""
    env = {**OWN, "PIP_NO_COMPILE": "1"}
    done = subprocess.run([str(python), "-m", "pip", *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=280, env=env)
    unreachable = "No matching distribution found" in done.stderr and ("connection" in done.stderr.lower() or "resolution" in done.stderr.lower())
    if done.returncode and unreachable and os.environ.get("CI") != "true":
        pytest.skip("no package index answers here")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def pulsefold(python: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The console script of an environment."""
    return subprocess.run([str(python.parent / "pulsefold"), *words], cwd=cwd, capture_output=True, text=True, timeout=120, env=OWN)


def installed(python: Path, cwd: Path) -> set[str]:
    """Names of the packages of an environment."""
    return {one["name"].lower() for one in json.loads(run(python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check", cwd=cwd))}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "source"  # built from a copy: in the checkout, files of an earlier build would come along
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("streams", "tables", "agents"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    install(sys.executable, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source, cwd=folder)
    yield next(folder.glob("pulsefold-*.whl"))


def environment(folder: Path) -> Path:
    """Python of a new virtual environment."""
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    return folder / "venv" / "bin" / "python"


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a clean environment with the wheel and PyTables."""
    folder = tmp_path_factory.mktemp("clean")
    python = environment(folder)
    install(python, "install", "--quiet", wheel, "tables", cwd=folder)
    return python


def test_every_module_of_the_checkout_is_in_the_wheel_and_nothing_else(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    wanted = set()
    for room, homes in {
        "streams": ("pulsefold", "pulsefold/_service/streams"),
        "tables": ("pulsefold/_service/tables",),
        "agents": ("pulsefold/_service/agents",),
    }.items():
        for file in (ROOT / room).rglob("*.py"):
            wanted |= {f"{home}/{file.relative_to(ROOT / room).as_posix()}" for home in homes}
    assert inside == wanted


def test_a_trainer_installs_msgspec_and_confluent_kafka_and_nothing_else(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path)
    before = installed(python, tmp_path)
    install(python, "install", "--quiet", wheel, cwd=tmp_path)
    assert installed(python, tmp_path) - before == {"pulsefold", "msgspec", "confluent-kafka"}
    run(python, "-c", "from pulsefold import AlertSubscriber, Publisher, SyncPublisher, events", cwd=tmp_path)
    told = pulsefold(python, "publish", "-", cwd=tmp_path)
    assert (told.returncode, told.stdout) == (2, "")
    assert "pip install 'pulsefold[cli]'" in told.stderr and "Traceback" not in told.stderr


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


def test_a_trainers_installation_publishes_beside_pytables_without_the_services_packages(clean: Path, tmp_path: Path) -> None:
    code = (
        "import tables, pulsefold, sys\n"
        "from pulsefold import SyncPublisher, AlertSubscriber, events\n"
        "assert hasattr(tables, 'open_file'), tables\n"
        "assert not [n for n in ('faust', 'aiokafka', 'scipy', 'agents') if n in sys.modules]\n"
        "print(events.TrustObserved(kind='model', id='m', success=True).TYPE)"
    )
    assert run(clean, "-c", code, cwd=tmp_path).strip() == "trust.observed.v1"


def test_the_service_of_the_wheel_imports_its_own_tables_in_its_own_process(clean: Path, wheel: Path, tmp_path: Path) -> None:
    install(clean, "install", "--quiet", f"pulsefold[service] @ {wheel.as_uri()}", cwd=tmp_path)
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
    assert pytables_is_whole(clean, tmp_path)


def pytables_is_whole(python: Path, cwd: Path) -> bool:
    """Whether `import tables` still is PyTables."""
    return run(python, "-c", "import tables; print(hasattr(tables, 'open_file'), tables.__version__ != '')", cwd=cwd).split() == ["True", "True"]


def test_the_command_of_the_wheel_runs_broker_worker_publish_and_query(clean: Path, wheel: Path, tmp_path: Path) -> None:
    install(clean, "install", "--quiet", f"pulsefold[service] @ {wheel.as_uri()}", cwd=tmp_path)
    usage = pulsefold(clean, "worker", "--help", cwd=tmp_path)
    assert (usage.returncode, usage.stderr) == (0, "")
    assert "--web-port" in usage.stdout and "--trust-half-life" in usage.stdout
    script = str(clean.parent / "pulsefold")
    port = str(free_port())
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(child([script, "broker", "--partitions", "2"], tmp_path))
        assert broker.stdout is not None
        bootstrap = broker.stdout.readline().strip()
        worker = [script, "worker", "--bootstrap", bootstrap, "--partitions", "2", "--web-port", port, "--log-level", "warning"]
        stack.enter_context(child(worker, tmp_path))
        event = {"type": "trust.observed.v1", "time": "2026-03-02T00:00:00Z", "data": {"kind": "model", "id": "m", "success": True}}
        (tmp_path / "events.jsonl").write_text(json.dumps(event) + "\n")
        sent = pulsefold(clean, "publish", "events.jsonl", "--bootstrap", bootstrap, cwd=tmp_path)
        assert (sent.returncode, sent.stdout.strip()) == (0, "1 accepted, 0 refused"), sent.stderr
        deadline = time.monotonic() + 60
        while True:
            seen = pulsefold(clean, "query", "/trust/model/m", "--url", f"http://127.0.0.1:{port}", "--json", cwd=tmp_path)
            if seen.returncode == 0:
                break
            assert time.monotonic() < deadline, seen.stderr
            time.sleep(0.5)
        assert json.loads(seen.stdout)["observations"] == 1


@contextlib.contextmanager
def child(words: list[str], cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is asked to end when the test does."""
    with subprocess.Popen(words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=OWN) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
