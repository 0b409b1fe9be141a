"""The audit of dependencies says what it did not do."""

from __future__ import annotations

import pytest

from ..packaging.audit import NOT_DONE, code_of, mute, verdict

FINE = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1"}]}
SKIPPED = {"name": "c", "skip_reason": "not found"}
OWN = {"name": "pulsefold", "skip_reason": "distribution marked as editable"}


@pytest.mark.parametrize(
    ("dependencies", "code", "says"),
    [
        ([FINE, OWN], 0, "none known in 1 packages"),
        ([FINE, BAD, SKIPPED], 1, "b 2: CVE-1"),
        ([FINE, SKIPPED], NOT_DONE, "NOT DONE for 1 of 2"),
        ([SKIPPED, OWN], NOT_DONE, "NOT DONE for 1 of 1"),
        ([], NOT_DONE, "NOT DONE"),
    ],
)
def test_none_is_known_only_where_every_package_was_looked_up(dependencies: list[dict[str, object]], code: int, says: str) -> None:
    found, said = verdict({"dependencies": dependencies})
    assert found == code and says in said


def test_who_knows_no_vulnerability_of_a_release_that_has_one_is_nobody_to_ask() -> None:
    assert mute({"dependencies": [BAD]}) is None
    assert "knows nothing" in (mute({"dependencies": [FINE]}) or "")
    assert "knows nothing" in (mute({"dependencies": [SKIPPED]}) or "")
    assert "could not ask" in (mute(None) or "")


def test_what_could_not_be_asked_fails_ci_and_a_release_and_passes_at_home_alone() -> None:
    assert [code_of(NOT_DONE, words, ci) for words, ci in (([], False), ([], True), (["--required"], False), (["--required"], True))] == [0, 3, 3, 3]
    assert [code_of(code, [], ci) for code in (0, 1) for ci in (False, True)] == [0, 0, 1, 1]
