"""The compose file, read as Docker would read it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from agents.registry import FOLD_SETTINGS
from streams.settings import declare, load

ROOT = Path(__file__).parent.parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.kafka.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def test_there_are_kafka_the_topics_job_and_the_worker() -> None:
    assert set(SERVICES) == {"kafka", "topics", "worker"}
    assert SERVICES["kafka"]["image"].startswith("apache/kafka:")
    assert SERVICES["topics"]["command"] == ["topics", "create"]
    assert SERVICES["worker"]["command"] == ["worker"]


@pytest.mark.parametrize("name", ["kafka", "worker"])
def test_what_runs_on_has_a_health_check_with_limits(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] in ("CMD", "CMD-SHELL")
    assert {"interval", "timeout", "retries", "start_period"} <= set(check)


def test_the_worker_waits_for_a_healthy_broker_and_for_the_topics() -> None:
    assert SERVICES["topics"]["depends_on"] == {"kafka": {"condition": "service_healthy"}}
    assert SERVICES["worker"]["depends_on"] == {"kafka": {"condition": "service_healthy"}, "topics": {"condition": "service_completed_successfully"}}


def test_every_published_port_is_bound_to_loopback() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports == ["127.0.0.1:9092:9092", "127.0.0.1:6066:6066"]


def test_every_listener_that_is_advertised_is_listened_on_and_has_a_protocol() -> None:
    kafka = SERVICES["kafka"]["environment"]
    listening = {one.partition("://")[0]: one.rpartition(":")[2] for one in kafka["KAFKA_LISTENERS"].split(",")}
    advertised = {one.partition("://")[0]: one.rpartition(":")[2] for one in kafka["KAFKA_ADVERTISED_LISTENERS"].split(",")}
    protocols = dict(one.split(":") for one in kafka["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(","))
    assert advertised.items() <= listening.items()
    assert set(protocols) == set(listening)
    assert kafka["KAFKA_CONTROLLER_LISTENER_NAMES"] in listening and kafka["KAFKA_INTER_BROKER_LISTENER_NAME"] in advertised
    assert kafka["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    assert kafka["KAFKA_LOG_DIRS"] in {volume.partition(":")[2] for volume in SERVICES["kafka"]["volumes"]}


@pytest.mark.parametrize("name", ["topics", "worker"])
def test_the_settings_of_our_containers_are_settings_and_point_at_the_broker(name: str) -> None:
    given = {k: re.sub(r"\$\{\w+:-(.*)\}", r"\1", v) for k, v in SERVICES[name]["environment"].items()}
    known = declare(FOLD_SETTINGS)
    assert {variable.removeprefix("PULSEFOLD_").lower() for variable in given} <= set(known)
    settings = load({}, given, None, FOLD_SETTINGS)
    assert settings.get("bootstrap") == "kafka:19092"
    assert settings.get("partitions") == 8
    assert settings.get("tokens") is None


def test_volumes_that_are_mounted_are_declared() -> None:
    mounted = {volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}
    assert mounted == set(COMPOSE["volumes"])
