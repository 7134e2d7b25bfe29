"""Who may ask: keys from a file and the environment, shown in three ways; none only on loopback."""

import base64
import hmac
import os

import pytest
from starlette.testclient import TestClient

from inpaint.errors import InpaintError
from inpaint.serve.dialects.paint_http import paint_http
from inpaint.serve.http.keys import ApiKeys, parse_keys
from inpaint.serve.http.limits import HttpSettings
from tests.unit.serve.clients import DIALECTS, ask, told
from tests.unit.serve.fake import FakeService

ONE, TWO = "one-0123456789abcdef", "two-0123456789abcdef"


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


def keys_of(text: str) -> ApiKeys:
    return ApiKeys(HttpSettings(host="0.0.0.0"), {"INPAINT_API_KEYS": text})


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "::", "example.com"])
def test_without_keys_only_loopback_is_served(host, monkeypatch):
    monkeypatch.delenv("INPAINT_API_KEYS", raising=False)
    with pytest.raises(InpaintError, match="keys_file"):
        paint_http(FakeService(), HttpSettings(host=host))
    monkeypatch.setenv("INPAINT_API_KEYS", ONE)
    paint_http(FakeService(), HttpSettings(host=host))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_on_loopback_no_key_is_needed(host):
    assert ApiKeys(HttpSettings(host=host), {}).name_of({}) == "-"


@pytest.mark.parametrize(
    "headers, name",
    [
        ({"authorization": f"Bearer {ONE}"}, "shop"),
        ({"authorization": f"bearer  {ONE} "}, "shop"),
        ({"authorization": basic(TWO)}, "key-2"),
        ({"x-api-key": TWO}, "key-2"),
        ({"authorization": "Bearer wrong", "x-api-key": ONE}, "shop"),
        ({}, None),
        ({"authorization": f"Bearer {ONE}x"}, None),
        ({"authorization": f"Bearer {ONE[:-1]}"}, None),
        ({"authorization": f"Digest {ONE}"}, None),
        ({"authorization": "Basic ####"}, None),
        ({"authorization": "Basic " + base64.b64encode(ONE.encode()).decode()}, None),
        ({"authorization": "Bearer "}, None),
        ({"x-api-key": ""}, None),
        ({"x-api-key": "\xe9"}, None),
    ],
)
def test_a_key_is_shown_as_bearer_as_basic_password_or_as_x_api_key(headers, name):
    assert keys_of(f"shop:{ONE}\n{TWO} # the other").name_of(headers) == name


def test_every_key_is_compared_every_time(monkeypatch):
    compared = []
    original = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or original(a, b))
    keys = keys_of(f"a:{ONE},b:{TWO},c:third-0123456789")
    for shown in (ONE, "wrong"):
        compared.clear()
        keys.name_of({"x-api-key": shown})
        assert len(compared) == 3
        assert all(len(a) == len(b) == 32 for a, b in compared)


def test_the_file_is_read_again_when_it_has_changed(tmp_path, caplog):
    path = tmp_path / "keys"
    path.write_text(f"# ours\nshop:{ONE}\n\n")
    keys = ApiKeys(HttpSettings(host="0.0.0.0", keys_file=str(path)), {})
    assert keys.name_of({"x-api-key": ONE}) == "shop"

    def replace(text: str) -> None:
        (tmp_path / "new").write_text(text)
        os.replace(tmp_path / "new", path)

    replace(f"shop:{TWO}\n")
    assert keys.name_of({"x-api-key": ONE}) is None
    assert keys.name_of({"x-api-key": TWO}) == "shop"
    replace(f"shop:{ONE}\nshort\n")
    assert keys.name_of({"x-api-key": TWO}) == "shop", "a file with a mistake changes nothing"
    assert "line 2" in caplog.text and ONE not in caplog.text
    path.unlink()
    assert keys.name_of({"x-api-key": TWO}) == "shop"
    replace("# nobody\n")
    assert keys.name_of({"x-api-key": TWO}) is None
    assert keys.name_of({}) is None, "an emptied file opens nothing"


def test_a_file_that_could_not_be_read_is_read_once_it_may_be(tmp_path, monkeypatch):
    path = tmp_path / "keys"
    path.write_text(f"shop:{ONE}\n")
    keys = ApiKeys(HttpSettings(keys_file=str(path)), {})
    path.write_text(f"shop:{TWO} # the other\n")
    with monkeypatch.context() as forbidden:
        forbidden.setattr("pathlib.Path.read_text", lambda *_, **__: (_ for _ in ()).throw(PermissionError("no")))
        assert keys.name_of({"x-api-key": ONE}) == "shop"
    path.chmod(0o600)
    assert keys.name_of({"x-api-key": ONE}) is None and keys.name_of({"x-api-key": TWO}) == "shop"


@pytest.mark.parametrize(
    "text, says",
    [
        ("short", "16 to 512"),
        (f"a b:{ONE}", "line 1"),
        (f"a:{ONE}\na:{TWO}", "twice"),
        ("x:with space 0123456789", "16"),
    ],
)
def test_unusable_keys_are_refused_by_line_without_being_told(text, says):
    with pytest.raises(InpaintError, match=says) as caught:
        parse_keys(text, "keys")
    assert ONE not in str(caught.value)


def test_a_keys_file_that_is_not_there_is_an_error():
    with pytest.raises(InpaintError, match="keys_file"):
        ApiKeys(HttpSettings(keys_file="/nowhere/keys"), {})


@pytest.mark.parametrize("dialect", DIALECTS)
def test_without_a_key_nothing_is_read_nor_painted(dialect, monkeypatch):
    monkeypatch.setenv("INPAINT_API_KEYS", f"shop:{ONE}")
    service = FakeService()
    with TestClient(paint_http(service, HttpSettings(host="0.0.0.0"))) as client:
        response = ask(client, dialect)
        assert told(dialect, response).status == 401
        assert response.headers["www-authenticate"].split()[0] == ("Basic" if dialect == "a1111" else "Bearer")
        assert not service.orders
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
        for path in ("/catalogue", "/v1/models", "/sdapi/v1/loras", "/docs", "/health/"):
            assert client.get(path, follow_redirects=False).status_code == 401, path
        client.headers["x-api-key"] = ONE
        assert ask(client, dialect).status_code == 200
