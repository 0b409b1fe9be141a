"""Where a setting's value comes from, and how a wrong one is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.registry import FOLD_SETTINGS
from streams.errors import ConfigError
from streams.settings import MASK, SERVICE, declare, flags_of, load


class Fading(msgspec.Struct, frozen=True):
    """Settings of a fold.

    Attributes:
        half_life: seconds, by kind;
            None = it does not fade.
        low, high: limits.
        steps: rising.
        strict: or not.
    """

    half_life: dict[str, Annotated[float, msgspec.Meta(gt=0)] | None] = msgspec.field(default_factory=lambda: {"": None})
    low: float = 0.1
    high: float | None = 0.9
    steps: tuple[int, ...] | None = (10, 50, 100)
    strict: bool = False


def toml(folder: Path, text: str) -> Path:
    file = folder / "settings.toml"
    file.write_text(text)
    return file


def test_a_flag_wins_over_the_environment_which_wins_over_the_file_which_wins_over_the_default(tmp_path: Path) -> None:
    file = toml(tmp_path, "web_port = 1\npartitions = 1\nreplication = 3\n")
    found = load({"web_port": "3", "app_id": None}, {"PULSEFOLD_WEB_PORT": "2", "PULSEFOLD_PARTITIONS": "2"}, file)
    assert [found.get(name) for name in ("web_port", "partitions", "replication", "app_id")] == [3, 2, 3, "pulsefold"]
    assert [found.origin(name) for name in ("web_port", "partitions", "replication", "app_id")] == ["flag", "PULSEFOLD_PARTITIONS", str(file), "default"]


def test_the_file_of_the_working_folder_is_read_where_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load({}, {}).origin("app_id") == "default"
    (tmp_path / "pulsefold.toml").write_text('app_id = "b"')
    assert (load({}, {}).get("app_id"), load({}, {}).origin("app_id")) == ("b", "pulsefold.toml")


@pytest.mark.parametrize(
    "text",
    ['"half_life.Model-X" = 60\n"half_life.judge" = "off"', '[half_life]\n"Model-X" = 60\njudge = "off"', 'half_life.Model-X = 60\nhalf_life.judge = "null"'],
)
def test_a_keyed_setting_in_the_file_joins_the_default(tmp_path: Path, text: str) -> None:
    found = load({}, {}, toml(tmp_path, text), [Fading])
    assert found.fold(Fading).half_life == {"": None, "Model-X": 60.0, "judge": None}


def test_keys_of_the_environment_keep_their_case_and_join_the_whole_map_whichever_comes_first(tmp_path: Path) -> None:
    environment = {"PULSEFOLD_HALF_LIFE__Model_X": "5", "PULSEFOLD_HALF_LIFE": '{"": 9, "Model_X": 1, "b": null}', "PULSEFOLD_HALF_LIFE__b": "7"}
    for order in (environment, dict(reversed(environment.items()))):
        found = load({"half_life.c": "3"}, order, toml(tmp_path, '"half_life.d" = 4'), [Fading])
        assert found.fold(Fading).half_life == {"": 9.0, "Model_X": 5.0, "b": 7.0, "c": 3.0, "d": 4.0}
        assert set(found.origin("half_life").split(", ")) == {str(tmp_path / "settings.toml"), *environment, "flag"}


def test_one_value_for_a_keyed_setting_is_the_default_of_all_keys() -> None:
    assert load({}, {"PULSEFOLD_HALF_LIFE": "60"}, None, [Fading]).fold(Fading).half_life == {"": 60.0}
    assert load({}, {"PULSEFOLD_HALF_LIFE": "60", "PULSEFOLD_HALF_LIFE__a": "off"}, None, [Fading]).fold(Fading).half_life == {"": 60.0, "a": None}


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("APP_ID", "1e5", "1e5"),
        ("APP_ID", "true", "true"),
        ("APP_ID", '"quoted"', "quoted"),
        ("KAFKA_SASL_PASSWORD", "0123", "0123"),
        ("KAFKA_SASL_PASSWORD", "12345", "12345"),
        ("INSTANCE_ID", "off", None),
        ("OUTPUTS", "off", "off"),
        ("TOPIC_RETENTION_DAYS", "7.5", 7.5),
        ("TOPIC_RETENTION_DAYS", "null", None),
        ("HIGH", "off", None),
        ("STEPS", "[1,2,3]", (1, 2, 3)),
        ("STEPS", "off", None),
        ("STRICT", "on", True),
        ("STRICT", "false", False),
        ("TOKENS", '{"t": {"tenant": "a"}}', {"t": {"tenant": "a"}}),
        ("TOKENS", "", None),
    ],
)
def test_text_stays_text_and_everything_else_is_plain_or_json(variable: str, text: str, value: Any) -> None:
    found = load({}, {f"PULSEFOLD_{variable}": text}, None, [Fading]).get(variable.lower())
    assert found == value and type(found) is type(value)


@given(st.text(min_size=1).filter(lambda s: not s.startswith('"') and s.lower() not in ("off", "null", "none")))
def test_any_password_is_taken_as_it_stands(password: str) -> None:
    assert load({}, {"PULSEFOLD_KAFKA_SASL_PASSWORD": password}).get("kafka_sasl_password") == password


def test_off_and_numbers_in_the_file_suit_settings_that_are_text(tmp_path: Path) -> None:
    found = load({}, {}, toml(tmp_path, "outputs = false\napp_id = 7\n"))
    assert (found.get("outputs"), found.get("app_id")) == ("off", "7")


@pytest.mark.parametrize(
    ("environment", "names", "expected"),
    [
        ({"PULSEFOLD_WEB_PORT": "many"}, "web_port", "expected whole number from 1 to 65535, got 'many'"),
        ({"PULSEFOLD_WEB_PORT": "70000"}, "web_port", "65535"),
        ({"PULSEFOLD_PARTITIONS": "0"}, "partitions", "at least 1, got 0"),
        ({"PULSEFOLD_PARTITIONS": "2.5"}, "partitions", "whole number"),
        ({"PULSEFOLD_DEDUPE_WINDOW": "100"}, "dedupe_window", "multiple of 64"),
        ({"PULSEFOLD_TOKENS": '{"secret": 1}'}, "tokens", "object"),
        ({"PULSEFOLD_APP_ID": "a b"}, "app_id", "expected text like ^[A-Za-z0-9._-]+$"),
        ({"PULSEFOLD_OUTPUTS": "maybe"}, "outputs", "expected auto or on or off"),
        ({"PULSEFOLD_ROLES": "serve,cook"}, "roles", "expected all or some of fold, serve, archive by comma, got 'serve,cook'"),
        ({"PULSEFOLD_KAFKA_SECURITY_PROTOCOL": "ssl"}, "kafka_security_protocol", "SASL_SSL"),
        ({"PULSEFOLD_KAFKA_SASL_MECHANISM": "GSSAPI"}, "kafka_sasl_mechanism", "SCRAM-SHA-512"),
        ({"PULSEFOLD_HALF_LIFE__a": "-1"}, "half_life.a", "number above 0 or off, got -1"),
        ({"PULSEFOLD_HALF_LIFE": '{"a": "long"}'}, "half_life.a", "number above 0"),
        ({"PULSEFOLD_LOW__a": "1"}, "low.a", "one value"),
        ({"PULSEFOLD_STEPS": "[1, 2"}, "steps", "array"),
        ({"PULSEFOLD_LOW": "off"}, "low", "expected number"),
        ({"PULSEFOLD_LOW": "[" * 100_000}, "low", "expected number"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_what_was_expected_and_where_it_came_from(environment: dict[str, str], names: str, expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load({}, environment, None, [Fading])
    assert refused.value.setting == names
    assert expected in str(refused.value)
    assert next(iter(environment)) in str(refused.value)
    assert len(str(refused.value)) < 300
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"colour = 1", "colour: there is no such setting"),
        (b"x = [", "no TOML"),
        (b"\xff", "no UTF-8"),
        (b'app_id = ""', "app_id"),
        (b"[web_port]\na = 1", "web_port"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        load({}, {}, file)


def test_a_file_that_is_asked_for_must_be_there_and_be_a_file(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            load({}, {}, path)


def test_settings_of_others_are_passed_over_only_where_they_are_known(tmp_path: Path) -> None:
    file = toml(tmp_path, '"half_life.a" = 1\n')
    assert load({}, {}, file, others={"half_life"}).origin("app_id") == "default"
    assert load({}, {}, file, others=None).origin("app_id") == "default"
    with pytest.raises(ConfigError, match="half_life"):
        load({}, {}, file, others={"colour"})


def test_an_unknown_flag_is_refused_and_an_unknown_variable_is_not_ours() -> None:
    with pytest.raises(ConfigError, match="colour"):
        load({"colour": "red"}, {})
    load({}, {"PULSEFOLD_TOKEN": "x", "PULSEFOLD_TEST_BOOTSTRAP": "y"})


def test_secrets_are_masked_and_everything_is_described() -> None:
    found = load({}, {"PULSEFOLD_TOKENS": '{"hidden": {"tenant": "a"}}', "PULSEFOLD_KAFKA_SASL_PASSWORD": "hidden"}, None, FOLD_SETTINGS)
    rows = found.describe()
    assert {name for name, *_ in rows} == set(declare(FOLD_SETTINGS))
    assert "hidden" not in json.dumps(rows)
    assert {name: value for name, value, *_ in rows}["tokens"] == MASK
    assert {name: value for name, value, *_ in load({}, {}).describe()}["tokens"] is None
    assert all(text and not text.startswith("of ") for *_, text in rows), "every setting says what it is"


def test_a_folds_settings_are_explained_by_its_docstring() -> None:
    declared = declare([Fading])
    assert declared["half_life"].help == "seconds, by kind; None = it does not fade."
    assert (declared["low"].help, declared["high"].help) == ("limits.", "limits.")
    assert declared["half_life"].keyed and not declared["steps"].keyed


def test_no_two_settings_share_a_name() -> None:
    names = [one.name for one in SERVICE] + [name for struct in FOLD_SETTINGS for name in struct.__struct_fields__]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("struct", FOLD_SETTINGS)
def test_the_defaults_of_a_fold_come_back_as_they_are(struct: type[msgspec.Struct]) -> None:
    assert load({}, {}, None, FOLD_SETTINGS).fold(struct) == struct()


def test_flags_keep_the_case_and_the_hyphens_of_keys() -> None:
    assert flags_of(["--half-life.my-Model=5", "--json", "--web-port", "1", "x", "--low", "-3"]) == (
        {"half_life.my-Model": "5", "json": "on", "web_port": "1", "low": "-3"},
        ["x"],
    )
