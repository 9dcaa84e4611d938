"""The page's files: open to all, closed in on themselves."""

import re
from importlib.resources import files

import httpx
import pytest
from control_builders import MemoryFleet, raw_client

from deployments.page.shell import PATHS

STATIC = files("deployments.page") / "static"


def get(path: str, **headers: str) -> httpx.Response:
    with raw_client(MemoryFleet(), token=None) as http:
        return http.get(path, headers=headers)


@pytest.mark.parametrize("path", sorted(PATHS))
def test_a_file_needs_no_token_and_allows_nothing_from_elsewhere(path: str) -> None:
    response = get(path)
    assert response.status_code == 200
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


def test_a_file_that_has_not_changed_is_not_sent_again() -> None:
    tag = get("/fleet").headers["etag"]
    again = get("/fleet", **{"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["/fleet/", "/fleet/secrets", "/fleet/../v1/fleet", "/fleet/page.html", "/v1/load"])
def test_nothing_beside_the_files_is_open(path: str) -> None:
    assert get(path).status_code == 401


def test_every_file_is_served_and_names_nothing_elsewhere() -> None:
    served = {path.rsplit("/", 1)[-1] for path in PATHS} - {"fleet"} | {"page.html"}
    assert {file.name for file in STATIC.iterdir()} == served
    for file in STATIC.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", text), file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function", text), file.name
        assert not re.search(r"<script(?![^>]*src=)|<style|\son[a-z]+=|\sstyle=", text), file.name


def test_modules_import_only_what_is_served() -> None:
    for file in STATIC.iterdir():
        for name in re.findall(r'from "\./([a-z]+\.js)"', file.read_text(encoding="utf-8")):
            assert f"/fleet/{name}" in PATHS
