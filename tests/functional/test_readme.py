"""Every command block of README.md and docs/ is run, or checked as far as it can be without Docker and the network.

A comment above a block says how: ``<!-- test: KIND -->``. A block without one fails.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from streams.broker import EmbeddedBroker

from ..workers import WorkerProcess

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *(ROOT / "docs" / name for name in ("alerts.md", "migration.md", "past.md", "scaling.md", "settings.md", "upgrades.md"))]
BLOCK = re.compile(r"^(?P<before>[^\n]*)\n```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!-- test: (?P<kind>[a-zA-Z -]+) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page and how it is tested."""

    page: str
    number: int
    language: str
    kind: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page}-{self.number}-{self.kind}"


def blocks() -> list[Block]:
    """All blocks, in reading order."""
    found = []
    for page in PAGES:
        for number, match in enumerate(BLOCK.finditer(page.read_text(encoding="utf-8")), 1):
            mark = MARK.fullmatch(match["before"].strip())
            found.append(Block(page.name, number, match["language"], mark["kind"] if mark else None, match["text"]))
    return found


BLOCKS = blocks()


def of(*kinds: str) -> list[Block]:
    return [block for block in BLOCKS if block.kind in kinds]


@dataclass
class Place:
    """Where the blocks are run: a folder, a broker, a worker, and this checkout's `pulsefold` first on the path."""

    folder: Path
    worker: WorkerProcess
    bootstrap: str

    def text(self, block: Block) -> str:
        """The block for this place: other addresses, nothing else."""
        return block.text.replace("127.0.0.1:9092", self.bootstrap).replace("127.0.0.1:6066", f"127.0.0.1:{self.worker.port}")

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PULSEFOLD_BOOTSTRAP": self.bootstrap,
            "PULSEFOLD_WEB_PORT": str(self.worker.port),
            "PULSEFOLD_PARTITIONS": "2",
            "PYTHONPATH": f"{self.folder / 'lib'}:{ROOT}",
        }

    def start(self, words: list[str], **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            words, cwd=self.folder, env={**self.environment, **more}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, words: list[str], timeout_s: float = 110) -> str:
        """Output of a command that must succeed."""
        process = self.start(words)
        try:
            out, _ = process.communicate(timeout=timeout_s)
        finally:
            process.kill()
        assert process.returncode == 0, out
        return out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One for all blocks, since later ones ask for what earlier ones published."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "bin").mkdir()
    (folder / "lib").mkdir()
    (folder / "lib" / "pulsefold").symlink_to(ROOT / "streams")  # the package under its own name, from this checkout
    command = folder / "bin" / "pulsefold"
    command.write_text(f"#!{sys.executable}\nimport sys\nfrom pulsefold.cli import main\nsys.exit(main())\n")
    command.chmod(0o755)
    with EmbeddedBroker(partitions=2, prefix="pulsefold.") as broker:
        worker = WorkerProcess(broker.bootstrap, folder, partitions=2, roles="all").start()
        try:
            yield Place(folder, worker, broker.bootstrap)
        finally:
            worker.stop()


def test_every_block_says_how_it_is_tested_and_every_way_is_used() -> None:
    known = {"shell", "python", "python until the first alert", "until Ctrl-C", "make", "docker", "pip", "json", "toml", "help"}
    assert [str(block) for block in BLOCKS if block.kind not in known] == []
    assert {block.kind for block in BLOCKS} == known
    assert {block.language for block in BLOCKS} <= {"bash", "python", "json", "toml"}


@pytest.mark.timeout(400)
def test_blocks_that_end_run_one_after_the_other_as_they_stand(place: Place) -> None:
    for block in of("shell", "python"):
        words = [sys.executable, "-c", place.text(block)] if block.language == "python" else ["bash", "-euo", "pipefail", "-c", place.text(block)]
        out = place.run(words)
        place.worker.until(place.worker.settled)
        if block.page == "README.md" and "what-if" in block.text:
            assert "cost.daily" in out and "only changed" in out and "0.35" in out, out
        elif block.page == "README.md" and "query" in block.text:
            assert "m1" in out and "vix_level" in out and '"percentage": 100' in out and '"allowed":true' in out, out


@pytest.mark.parametrize("block", of("until Ctrl-C", "python until the first alert"), ids=str)
def test_what_runs_until_it_is_stopped_starts_and_stops_by_ctrl_c_without_a_traceback(place: Place, block: Block) -> None:
    worker = "pulsefold worker" in block.text
    beside = WorkerProcess("", place.folder)  # its port alone is used
    with EmbeddedBroker(partitions=2, prefix="pulsefold.") as other:
        if block.language == "python":
            process = place.start([sys.executable, "-c", place.text(block)])
        elif worker:  # beside the one that runs: a broker and a port of its own
            process = place.start(shlex.split(block.text), PULSEFOLD_BOOTSTRAP=other.bootstrap, PULSEFOLD_WEB_PORT=str(beside.port))
        else:
            process = place.start(shlex.split(place.text(block)))
        try:
            assert process.stdout is not None
            if worker:
                beside.process = process
                beside.until(lambda: beside.get("/readyz", api="") is not None)
            else:
                publish_alert(place)
                line = process.stdout.readline()
                assert "opened" in line and ("cost.cumulative" in line or "goal.completed" in line), line
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=90)
        finally:
            process.kill()
    assert process.returncode in ((0, 130, -signal.SIGINT) if block.language == "python" else (0, 130)), (process.returncode, out)
    assert block.language == "python" or "Traceback" not in out


def publish_alert(place: Place) -> None:
    """An alert that is there, whichever block was run before."""
    event = {"id": f"alarm-{time.time_ns()}", "source": "t", "type": "cost.incurred.v1", "data": {"cost": 11}}
    file = place.folder / "alarm.jsonl"
    file.write_text(json.dumps(event) + "\n")
    place.run(["pulsefold", "publish", str(file)])


@pytest.mark.parametrize("block", of("make"), ids=str)
def test_make_has_these_targets_and_they_run_the_command_of_that_name(block: Block) -> None:
    for line in block.text.splitlines():
        words = shlex.split(line)
        assert words[0] == "make"
        shown = subprocess.run([*words, "--dry-run", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        flags = [word.removeprefix("ARGS=") for word in words[2:]]
        assert shown.rstrip().splitlines()[-1].split()[-1 - len(flags) :] == ["demo", *flags]


@pytest.mark.parametrize("block", of("docker"), ids=str)
def test_docker_commands_name_a_compose_file_that_is_there_and_variables_that_it_reads(block: Block) -> None:
    for line in block.text.splitlines():
        words = shlex.split(line)
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            assert "${" + name in (ROOT / "docker-compose.kafka.yml").read_text()
            assert json.loads(value)
        else:
            assert words[:3] == ["docker", "compose", "-f"]
            assert {"kafka", "topics", "worker"} <= set(yaml.safe_load((ROOT / words[3]).read_text())["services"])
            assert words[4:] == ["up", "--build", "--detach"]


@pytest.mark.parametrize("block", of("pip"), ids=str)
def test_what_is_installed_has_the_extras_that_are_named(block: Block) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    words = shlex.split(block.text)
    assert words[:2] == ["pip", "install"] and len(words) == 3
    assert set(re.findall(r"\w+", words[2])) <= set(extras)


@pytest.mark.parametrize("block", of("json"), ids=str)
def test_examples_of_json_are_json(block: Block) -> None:
    assert json.loads(block.text)


@pytest.mark.parametrize("block", of("toml"), ids=str)
def test_examples_of_settings_are_taken(block: Block, tmp_path: Path) -> None:
    (tmp_path / "pulsefold.toml").write_text(block.text)
    out = subprocess.run(
        [sys.executable, "-m", "agents.main", "config", "--config", str(tmp_path / "pulsefold.toml")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "pulsefold.toml" in out.stdout


@pytest.mark.parametrize("block", of("help"), ids=str)
def test_benchmarks_know_the_flags_that_are_named(block: Block) -> None:
    words = shlex.split(block.text)
    assert words[:2] == ["python", "-m"]
    out = subprocess.run([sys.executable, "-m", words[2], "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(word in out for word in words[3:] if word.startswith("--"))
