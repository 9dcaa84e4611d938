"""Keys, their file, and the file while it changes."""

import json
import logging
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from access_builders import NOW, Hands, key_file, made_key
from hypothesis import given
from hypothesis import strategies as st

from deployments.access.keyring import Keyring, Unknown, control_verifier
from deployments.access.keys import KeyFileError, KeyRecord, digest, id_of, new_key, parse_keys, read_keys, write_keys
from deployments.control.gate import Caller, known_tokens


def keyring(path: Path, clock: Hands) -> Keyring:
    return Keyring(path, now_s=clock, utc=lambda: NOW)


def test_keys_are_long_unlike_and_found_by_their_id() -> None:
    keys = {new_key() for _ in range(1000)}
    assert len({key for key, _ in keys}) == len({key_id for _, key_id in keys}) == 1000
    assert all(id_of(key) == key_id and len(key) == 59 for key, key_id in keys)


@given(st.text("ak-09fg_ é", max_size=60))
def test_text_that_is_no_key_has_no_id_or_the_one_in_it(text: str) -> None:
    found = id_of(text)
    assert found is None or text.startswith(f"ak-{found}-")


def test_the_file_holds_no_key_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    key, record = made_key()
    path = key_file(tmp_path / "keys.json", record)
    assert key not in path.read_text()
    assert key.rpartition("-")[2] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_keys(path) == (record,)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"role": "admin"}, "keys[0].role"),
        ({"sha256": "abc"}, "keys[0].sha256: not accepted"),
        ({"sha265": "abc"}, "keys[0].sha265: unknown name; did you mean sha256?"),
        ({"requests_per_minute": 0}, "keys[0].requests_per_minute: 0 is not accepted; give an integer from 1"),
        ({"priority": 100_001}, "keys[0].priority: 100001 is not accepted; give an integer from -100000 to 100000"),
        ({"expires_at": "tomorrow"}, "keys[0].expires_at: 'tomorrow' is not accepted"),
        ({"name": "a\nb"}, "keys[0].name: 'a\\nb' is not accepted"),
    ],
)
def test_a_mistake_in_the_file_is_named(change: dict[str, object], words: str) -> None:
    document = {"keys": [made_key()[1].model_dump(mode="json") | change]}
    with pytest.raises(KeyFileError, match=r"^keys\.json: ") as caught:
        parse_keys(json.dumps(document), "keys.json")
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_key_that_was_made_before_there_were_priorities_is_an_interactive_one() -> None:
    document = {"keys": [made_key()[1].model_dump(mode="json", exclude={"priority"})]}
    assert parse_keys(json.dumps(document), "keys.json")[0].priority == 0


@pytest.mark.parametrize("field", ["id", "name"])
def test_two_keys_of_one_id_or_name_are_refused(field: str) -> None:
    one, other = made_key("one")[1], made_key("other")[1]
    twin = other.model_copy(update={field: getattr(one, field)})
    document = {"keys": [key.model_dump(mode="json") for key in (one, twin)]}
    with pytest.raises(KeyFileError, match=f"two keys have the {field}"):
        parse_keys(json.dumps(document), "keys.json")


@pytest.mark.parametrize("text", ["", "{", "ak-0123", "[" * 100_000])
def test_what_is_not_json_is_said_to_be_none(text: str) -> None:
    with pytest.raises(KeyFileError, match="not JSON; make it with `archipelago keys add`"):
        parse_keys(text, "keys.json")


def test_a_key_is_known_by_all_of_it(tmp_path: Path) -> None:
    key, record = made_key()
    ring = keyring(key_file(tmp_path / "keys.json", record), Hands())
    assert ring.find(key) == record
    swapped = key[:-1] + ("A" if key[-1] != "A" else "B")
    other = new_key()[0]
    for wrong in (swapped, key[:-1], key + "A", key.upper(), f" {key}", other, record.id, record.sha256, "ä" * 59):
        assert ring.find(wrong) == Unknown(why="unknown")
    assert ring.find("") == Unknown(why="missing")


@pytest.mark.parametrize(("in_s", "is_let_in"), [(1, True), (0, False), (-1, False)])
def test_a_key_ends_at_its_time(in_s: int, is_let_in: bool, tmp_path: Path) -> None:
    key, record = made_key(expires_at=NOW + timedelta(seconds=in_s))
    found = keyring(key_file(tmp_path / "keys.json", record), Hands()).find(key)
    assert found == (record if is_let_in else Unknown(why="expired"))


def test_keys_come_and_go_while_the_file_is_in_use(tmp_path: Path) -> None:
    (old, old_record), (new, new_record) = made_key("old"), made_key("new")
    clock, path = Hands(), key_file(tmp_path / "keys.json", old_record)
    ring = keyring(path, clock)
    assert isinstance(ring.find(old), KeyRecord)
    write_keys(path, [old_record, new_record])
    clock.s += 1
    assert isinstance(ring.find(new), KeyRecord)
    write_keys(path, [new_record])
    clock.s += 1
    assert (ring.find(old), ring.find(new)) == (Unknown(why="unknown"), new_record)


@pytest.mark.parametrize("content", ["", "{", '{"keys": 7}', None])
def test_a_file_that_turns_bad_leaves_the_keys_as_they_were_and_says_so(
    content: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key, record = made_key()
    clock, path = Hands(), key_file(tmp_path / "keys.json", record)
    ring = keyring(path, clock)
    ring.find(key)
    path.unlink()
    if content is not None:
        path.write_text(content)
    clock.s += 1
    with caplog.at_level(logging.ERROR, "ray.serve"):
        assert ring.find(key) == record
        clock.s += 1
        assert ring.find(key) == record
    errors = [line.message.partition(":")[0] for line in caplog.records if line.levelno == logging.ERROR]
    assert errors == ["the keys stay as they were"]
    write_keys(path, [])
    clock.s += 1
    assert ring.find(key) == Unknown(why="unknown")


def test_a_file_that_is_swapped_through_a_link_is_noticed(tmp_path: Path) -> None:
    """As the volume of a Kubernetes secret: `..data` is replaced, the file's own link stays."""
    (one, first), (other, second) = made_key("one"), made_key("other")
    for name, record in (("v1", first), ("v2", second)):
        (tmp_path / name).mkdir()
        key_file(tmp_path / name / "keys.json", record)
    (tmp_path / "..data").symlink_to("v1")
    (tmp_path / "keys.json").symlink_to("..data/keys.json")
    clock = Hands()
    ring = keyring(tmp_path / "keys.json", clock)
    assert ring.find(one) == first
    (tmp_path / "..tmp").symlink_to("v2")
    (tmp_path / "..tmp").replace(tmp_path / "..data")
    clock.s += 1
    assert (ring.find(one), ring.find(other)) == (Unknown(why="unknown"), second)


def test_without_a_file_nobody_is_known_until_there_is_one(tmp_path: Path) -> None:
    key, record = made_key()
    clock, path = Hands(), tmp_path / "keys.json"
    ring = keyring(path, clock)
    assert ring.find(key) == Unknown(why="unknown")
    write_keys(path, [record])
    clock.s += 1
    assert ring.find(key) == record


def test_the_log_has_no_key_and_no_hash(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key, record = made_key()
    clock, path = Hands(), key_file(tmp_path / "keys.json")
    ring = keyring(path, clock)
    with caplog.at_level(logging.DEBUG):
        for text in (json.dumps({"keys": [record.model_dump(mode="json"), {"sha256": digest(key)}]}), "{", ""):
            path.write_text(text)
            clock.s += 1
            ring.find(key)
    assert len(caplog.records) >= 3
    assert digest(key) not in caplog.text
    assert key not in caplog.text


@pytest.mark.parametrize(("role", "is_known"), [("use", False), ("read", True), ("operate", True)])
def test_the_control_api_takes_keys_of_its_roles_beside_its_token(role: str, is_known: bool, tmp_path: Path) -> None:
    key, record = made_key("dash", role=role)
    boss = Caller(name="operator", role="operate")
    tokens = known_tokens({"token": boss})
    verify = control_verifier(tokens, str(key_file(tmp_path / "keys.json", record)), Hands())
    assert verify("token") == boss
    assert verify(key) == (Caller(name="dash", role=record.role) if is_known else None)  # type: ignore[arg-type]
    assert verify("") is None
    assert control_verifier(tokens, None, Hands()) is tokens
