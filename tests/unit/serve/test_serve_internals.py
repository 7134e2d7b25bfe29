"""What is used of Ray Serve's internals is there, on the version that it was tried on."""

from types import SimpleNamespace

import pytest
import ray

from inpaint.errors import InpaintError
from inpaint.serve.deployments import serve_internals, serve_run
from inpaint.serve.http.keys import ApiKeys
from inpaint.serve.http.limits import HttpSettings


def test_the_version_is_the_one_it_was_tried_on() -> None:
    assert ray.__version__.startswith(f"{serve_internals.TRIED_ON}."), "look at serve_internals.py"


def test_applications_finish_what_they_have_before_serves_proxies_end(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    left = [["paint", "ddpm"], ["paint", "ddpm"], ["paint"], []]
    monkeypatch.setattr(serve_run.serve, "status", lambda: SimpleNamespace(applications=dict.fromkeys(left.pop(0))))
    monkeypatch.setattr(serve_run.serve, "delete", lambda name, _blocking: done.append(name))
    monkeypatch.setattr(serve_run, "_shutdown_now", lambda: done.append("shut down"))
    monkeypatch.setattr(serve_run.time, "sleep", lambda seconds: None)
    serve_run.finish()
    assert done == ["paint", "ddpm", "shut down"] and not left


def test_keys_are_asked_for_where_serve_listens_whatever_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other way round, a loopback address that the settings do not know of, is in tests/jobs/test_serve.py."""
    proxies = SimpleNamespace(http_config=SimpleNamespace(host="0.0.0.0"))
    monkeypatch.setattr(serve_internals, "_get_global_client", lambda: proxies)
    with pytest.raises(InpaintError, match=r"host 0\.0\.0\.0"):
        ApiKeys(serve_internals.listening(HttpSettings(host="127.0.0.1")), {})
