"""Folders of processes that died are removed by the next that starts; those of the living, and of others, are not."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agents import scratch

ROOT = Path(__file__).parent.parent.parent
SPILL = """
import sys, tempfile
from pathlib import Path
from agents import scratch
from agents.archive_keeper import Keeper
keeper = Keeper(Path(sys.argv[1]), {"training": 1})
Path(keeper.scratch, "spilled").write_bytes(b"x" * 1000)
print(scratch.home(), flush=True)
sys.stdin.read()
"""


@contextmanager
def process(temporary: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process with a keeper that has spilled something, and its folder; it ends normally when its input does."""
    command = [sys.executable, "-c", SPILL, str(temporary / "archive")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "TMPDIR": str(temporary)}) as running:
        assert running.stdin is not None and running.stdout is not None
        try:
            yield running, Path(running.stdout.readline().strip())
        finally:
            if running.poll() is None:
                running.stdin.close()


def test_what_a_killed_process_spilled_is_removed_by_the_next_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    with process(tmp_path) as (killed, left), process(tmp_path) as (living, kept):
        assert left != kept and left.stat().st_mode & 0o777 == kept.stat().st_mode & 0o777 == 0o700
        killed.kill()
        killed.wait()
        assert len(list(left.rglob("spilled"))) == 1
        with process(tmp_path) as (_, third):
            assert not left.exists()
            assert len(list(kept.rglob("spilled"))) == len(list(third.rglob("spilled"))) == 1
        assert living.poll() is None
    assert list(tmp_path.glob(scratch.PREFIX + "*")) == []  # who ends normally leaves nothing, whatever was not closed


def test_nothing_is_removed_but_folders_that_are_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir(0o700)
    (tmp_path / "elsewhere" / "kept").write_text("kept")
    (tmp_path / f"{scratch.PREFIX}link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / f"{scratch.PREFIX}file").write_text("kept")
    (tmp_path / f"{scratch.PREFIX}open").mkdir(0o755)
    (tmp_path / f"{scratch.PREFIX}dead").mkdir(0o700)
    kept = {"elsewhere", *(scratch.PREFIX + name for name in ("link", "file", "open"))}
    if os.geteuid() == 0:  # only root can give a folder away
        (tmp_path / f"{scratch.PREFIX}other").mkdir(0o700)
        os.chown(tmp_path / f"{scratch.PREFIX}other", 12345, -1)
        kept.add(f"{scratch.PREFIX}other")
    assert scratch.sweep() == 1
    assert {path.name for path in tmp_path.iterdir()} == kept and (tmp_path / "elsewhere" / "kept").exists()


def test_a_folder_that_is_taken_for_dead_while_it_is_made_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make, made = tempfile.mkdtemp, []

    def interrupted(*words: str | None, **more: str | None) -> str:
        """Another process starts between the folder and its lock."""
        made.append(make(*words, **more))
        if len(made) == 1:
            assert scratch.sweep() == 1
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", interrupted)
    path = scratch._made()
    assert path == made[1] and os.path.isdir(path)
    assert scratch.sweep() == 0
