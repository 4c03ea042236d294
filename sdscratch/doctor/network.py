"""Can the services be reached that a run may use? None of them is needed to train."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from sdscratch.doctor.finding import Finding, Level
from sdscratch.services import hub_url, wandb_key, wandb_url

SECONDS = 2.0


def wandb(mode: str) -> Iterator[Finding]:
    """mode: of the tracker, auto, online or offline; WANDB_MODE overrules it."""
    mode, key, url = os.environ.get("WANDB_MODE") or mode, wandb_key(), wandb_url()
    if mode in ("offline", "dryrun", "disabled"):
        yield Finding("ok", "W&B", f"{mode}, as configured")
        return
    if key is None:
        level: Level = "ok" if mode == "auto" else "warn"
        yield Finding(level, "W&B", "no key: runs are tracked off line", "" if level == "ok" else "wandb login")
        return
    query = json.dumps({"query": "query { viewer { username } }"}).encode()
    token = base64.b64encode(f"api:{key}".encode()).decode()
    headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
    remedy = "runs are tracked off line meanwhile; `wandb sync` sends them later"
    try:
        with urlopen(Request(f"{url}/graphql", query, headers), timeout=SECONDS) as answer:
            viewer = json.loads(answer.read(10_000))["data"]["viewer"]
    except HTTPError as error:
        viewer = None
        if error.code not in (401, 403):
            yield Finding("warn", "W&B", f"{url} answers {error.code}", remedy)
            return
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield Finding("warn", "W&B", f"{url} cannot be reached ({_reason(error)})", remedy)
        return
    if viewer is None:
        yield Finding("warn", "W&B", f"{url} does not know the key", f"wandb login --relogin; {remedy}")
    else:
        yield Finding("ok", "W&B", f"{url} knows you as {viewer['username']}")


def hub() -> Iterator[Finding]:
    """The Hugging Face hub, where pretrained encoders come from, once."""
    url = hub_url()
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield Finding("ok", "hub", "off line by HF_HUB_OFFLINE")
        return
    try:
        with urlopen(Request(url, method="HEAD"), timeout=SECONDS):
            yield Finding("ok", "hub", f"{url} can be reached")
    except HTTPError:
        yield Finding("ok", "hub", f"{url} can be reached")
    except (OSError, ValueError) as error:
        yield Finding(
            "warn",
            "hub",
            f"{url} cannot be reached ({_reason(error)})",
            "needed only to fetch pretrained encoders: copy their folders here and name them by vae.path, text_encoder.path",
        )


def _reason(error: Exception) -> str:
    return str(error.reason if isinstance(error, URLError) else error) or type(error).__name__
