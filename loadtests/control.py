"""Archipelago's control API, as far as a load test needs it: set what a fleet shall be, and read what it is."""

from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import quote

import httpx

from loadtests.scenario import Control

_ANSWER_S = 30.0
_SHOWN_CHARACTERS = 300
_HOLD_NO_GPUS = frozenset({"failed", "lost"})


class ControlError(Exception):
    """The control API refused, did not answer, or may not be asked; the message says which."""


class ControlApi:
    """A connection to it, for one model. Its methods raise ControlError, and so does making one without a token."""

    def __init__(self, control: Control, model: str, environ: Mapping[str, str]) -> None:
        token = environ.get(control.token_env)
        if not token:
            raise ControlError(f"the environment variable {control.token_env} has no token for the control API")
        self._base = f"{control.url.rstrip('/')}/v1/fleet/{quote(model, safe='')}"
        headers = {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(headers=headers, timeout=_ANSWER_S, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def set_pools(self, pools: Mapping[str, int]) -> int:
        """Take a target; returns the version that the fleet has with it."""
        body = {"pools": dict(pools), "reason": "a load test's scenario"}
        return int(self._asked("PUT", f"{self._base}/pools", body).get("version", 0))

    def fleet(self) -> dict[str, Any]:
        """The fleet as it is."""
        return self._asked("GET", self._base, None)

    def _asked(self, method: str, url: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        try:
            answer = self._http.request(method, url, json=body)
            answer.raise_for_status()
            found = answer.json()
        except httpx.HTTPStatusError as error:
            said = error.response.text[:_SHOWN_CHARACTERS]
            raise ControlError(f"HTTP {error.response.status_code}: {said}") from error
        except (httpx.HTTPError, ValueError) as error:
            raise ControlError(f"{url}: {type(error).__name__}: {error}") from error
        return found if isinstance(found, dict) else {}


def gpus_by_shape(fleet: Mapping[str, Any]) -> dict[str, int]:
    """How many GPUs the replicas of each shape hold, those that start, drain or stop included.

    Raises ControlError where this is no fleet of Archipelago's.
    """
    found: dict[str, int] = {}
    try:
        for replica in fleet["replicas"]:
            if replica["phase"] not in _HOLD_NO_GPUS:
                found[replica["shape"]] = found.get(replica["shape"], 0) + len(replica["seats"])
    except (LookupError, TypeError) as error:
        raise ControlError(f"the answer is no fleet: {str(fleet)[:_SHOWN_CHARACTERS]}") from error
    return dict(sorted(found.items()))
