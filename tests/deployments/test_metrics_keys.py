"""What Prometheus is told of who uses how much: names of keys, and as many values of the label as there are keys."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from pathlib import Path

import httpx
import pytest
from access_builders import Hands, key_file, made_key
from link_builders import settled
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from telemetry_builders import MODEL, PATH, PROMPT, Ingress, play
from vllm.v1.engine import FinishReason

from deployments.access.admission import Admission
from deployments.access.keyring import Keyring
from deployments.access.keys import write_keys
from deployments.access.quotas import Quotas
from deployments.metrics.counting import KeyUse
from deployments.metrics.key_series import KeySeries
from deployments.routing import Limits

ALICE, ALICES = made_key("alice", requests_per_minute=30)
BOB, BOBS = made_key("bob", tokens_per_minute=600)
READER, READERS = made_key("dashboard", role="read")
QUOTA = ALICES.model_copy(update={"requests_per_minute": 1})


class Told:
    """The series of one moment, by name, key, and outcome or code."""

    def __init__(self, used: dict[str, KeyUse], admission: Admission | None) -> None:
        registry = CollectorRegistry()
        registry.register(KeySeries(MODEL, used, admission))
        self.text = generate_latest(registry).decode()
        samples = [one for family in text_string_to_metric_families(self.text) for one in family.samples]
        assert {one.labels["model"] for one in samples} <= {MODEL}
        self.keys = {one.labels["key"] for one in samples}
        self._values = {(one.name, one.labels["key"], *_kind(one.labels)): one.value for one in samples}

    def __call__(self, name: str, *labels: str) -> float | None:
        return self._values.get((f"archipelago_key_{name}", *labels))

    def requests(self, key: str) -> dict[str, float]:
        """By outcome, those that there were."""
        found = {
            name[2]: value
            for name, value in self._values.items()
            if name[:2] == ("archipelago_key_requests_total", key)
        }
        assert found.keys() == {"answered", "refused", "failed", "invalid", "abandoned"}
        return {outcome: value for outcome, value in found.items() if value}


def _kind(labels: Mapping[str, str]) -> list[str]:
    return [labels[name] for name in ("outcome", "code") if name in labels]


def asked(
    scenario: Callable[[Ingress, Callable[[str], Awaitable[httpx.Response]], Callable[[], Told]], Awaitable[None]],
    path: Path,
) -> None:
    """Play a scenario with an ingress that asks for the keys of a file: with who asks by a key, and what is told."""

    async def opened(ingress: Ingress) -> None:
        clock = Hands()
        admission = Admission(ingress.app, Keyring(path, now_s=clock), Quotas(Hands()))

        def told() -> Told:
            clock.s += 10  # long enough for another look at the file
            return Told(ingress.fleet.link.asked.by_key, admission)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=admission), base_url="http://fleet") as client:

            async def post(key: str) -> httpx.Response:
                return await client.post(PATH, json={}, headers={"Authorization": f"Bearer {key}"})

            await scenario(ingress, post, told)

    play(opened, "a", limits=Limits(max_queued_requests=4))


async def answered(ingress: Ingress, asking: Awaitable[httpx.Response], name: str, *token_ids: int) -> None:
    answering = asyncio.ensure_future(asking)
    await settled()
    await ingress.step("a", name, *token_ids, finish=FinishReason.LENGTH)
    assert (await answering).status_code == HTTPStatus.OK


def test_each_key_has_its_requests_its_tokens_and_its_refusals(tmp_path: Path) -> None:
    async def scenario(
        ingress: Ingress, post: Callable[[str], Awaitable[httpx.Response]], told: Callable[[], Told]
    ) -> None:
        await answered(ingress, post(ALICE), "r0", 7, 8)
        await answered(ingress, post(BOB), "r1", 7)
        assert (await post(ALICE)).status_code == HTTPStatus.TOO_MANY_REQUESTS  # beyond its quota of one
        ingress.fleet.traffic.stepped("a", running=64, waiting=9, kv_usage=0.0, now_s=0.0)
        assert (await post(BOB)).status_code == HTTPStatus.TOO_MANY_REQUESTS  # no room, whoever asks
        for stranger in (READER, "ak-wrong", ""):
            assert (await post(stranger)).status_code == HTTPStatus.UNAUTHORIZED
        now = told()
        assert now.requests("alice") == {"answered": 1}
        assert now.requests("bob") == {"answered": 1, "refused": 1}
        assert now.requests("(none)") == {}
        assert [now("input_tokens_total", name) for name in ("alice", "bob")] == [len(PROMPT), len(PROMPT)]
        assert [now("output_tokens_total", name) for name in ("alice", "bob")] == [2, 1]
        assert [now("refused_total", name, "429") for name in ("alice", "bob")] == [1, 0]
        assert now("refused_total", "(none)", "401") == 3

    asked(scenario, key_file(tmp_path / "keys", QUOTA, BOBS, READERS))


def test_a_key_is_told_of_before_its_first_request_and_not_after_it_has_gone(tmp_path: Path) -> None:
    """At 0 before: `increase` does not see a series that begins at 1."""
    path = key_file(tmp_path / "keys", ALICES, READERS)

    async def scenario(
        ingress: Ingress, post: Callable[[str], Awaitable[httpx.Response]], told: Callable[[], Told]
    ) -> None:
        first = told()
        assert first.keys == {"alice", "(none)"}
        assert (first("input_tokens_total", "alice"), first("refused_total", "alice", "429")) == (0, 0)
        await answered(ingress, post(ALICE), "r0", 7)
        write_keys(path, [BOBS])
        assert told().keys == {"bob", "(none)"}
        assert (await post(ALICE)).status_code == HTTPStatus.UNAUTHORIZED
        write_keys(path, [ALICES])
        assert told().requests("alice") == {"answered": 1}

    asked(scenario, path)


def test_strangers_add_no_series_and_no_secret_is_told(tmp_path: Path) -> None:
    async def scenario(
        ingress: Ingress, post: Callable[[str], Awaitable[httpx.Response]], told: Callable[[], Told]
    ) -> None:
        before = told().text.count("\n")
        for _ in range(50):
            await post(made_key()[0])
        after = told().text
        assert after.count("\n") == before
        for secret in (ALICE, ALICES.sha256, ALICES.id):
            assert secret not in after

    asked(scenario, key_file(tmp_path / "keys", ALICES))


@pytest.mark.parametrize(
    ("unit", "quotas"), [("requests", {"alice": 0.5, "bob": None}), ("tokens", {"alice": None, "bob": 10.0})]
)
def test_a_quota_is_told_where_there_is_one_in_the_unit_of_a_rate(
    unit: str, quotas: dict[str, float | None], tmp_path: Path
) -> None:
    async def scenario(
        ingress: Ingress, post: Callable[[str], Awaitable[httpx.Response]], told: Callable[[], Told]
    ) -> None:
        now = told()
        assert {key: now(f"quota_{unit}_per_second", key) for key in quotas} == quotas

    asked(scenario, key_file(tmp_path / "keys", ALICES, BOBS))


def test_where_no_keys_are_asked_for_all_use_is_nobodys() -> None:
    async def scenario(ingress: Ingress) -> None:
        await answered(ingress, ingress.post(), "r0", 7, 8, 9)
        now = Told(ingress.fleet.link.asked.by_key, None)
        assert now.keys == {"(none)"}
        assert now.requests("(none)") == {"answered": 1}
        assert (now("input_tokens_total", "(none)"), now("output_tokens_total", "(none)")) == (len(PROMPT), 3)
        assert now("refused_total", "(none)", "401") is None

    play(scenario, "a")
