"""Services that are silent, closed or strict cost seconds and are told; none of them is needed."""

from __future__ import annotations

import time

import pytest
from wandb_servers import server, silent_server

from sdscratch.doctor import network

KEY = "canary" + "k" * 40


@pytest.fixture(autouse=True)
def a_key(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for name in ("WANDB_MODE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


def asked(monkeypatch, address: str, mode: str = "auto"):
    monkeypatch.setenv("WANDB_BASE_URL", address)
    monkeypatch.setenv("HF_ENDPOINT", address)
    start = time.perf_counter()
    (wandb,), (hub,) = network.wandb(mode), network.hub()
    assert time.perf_counter() - start < 10
    assert KEY not in f"{wandb} {hub}"
    return wandb, hub


def test_services_that_answer_are_ok(monkeypatch):
    with server() as serving:
        wandb, hub = asked(monkeypatch, serving.address)
    assert wandb.level == hub.level == "ok" and "as me" in wandb.found


@pytest.mark.parametrize("fault", ["silent", "closed", "no address"])
def test_services_that_cannot_be_reached_are_warnings(monkeypatch, fault):
    with silent_server() as silent:
        address = {"silent": silent, "closed": "http://127.0.0.1:9", "no address": "nowhere"}[fault]
        wandb, hub = asked(monkeypatch, address)
    assert wandb.level == hub.level == "warn" and "off line" in wandb.remedy and "cannot be reached" in hub.found


@pytest.mark.parametrize(("status", "said"), [(401, "does not know the key"), (500, "answers 500")])
def test_an_account_that_is_refused_is_a_warning(monkeypatch, status, said):
    with server(status) as serving:
        wandb, hub = asked(monkeypatch, serving.address)
    assert wandb.level == "warn" and said in wandb.found and hub.level == "ok"


@pytest.mark.parametrize(("mode", "level"), [("auto", "ok"), ("offline", "ok"), ("online", "warn")])
def test_nothing_is_asked_without_a_key(monkeypatch, mode, level):
    monkeypatch.setenv("WANDB_API_KEY", "")
    with server() as serving:
        monkeypatch.setenv("WANDB_BASE_URL", serving.address)
        (finding,) = network.wandb(mode)
        assert finding.level == level and serving.seen == []
