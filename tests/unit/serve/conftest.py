"""The HTTP side over a real socket, with a key, in front of a service without an engine."""

from collections.abc import Iterator

import pytest

from inpaint.serve.http.limits import HttpSettings
from tests.unit.serve.fake import KEY, FakeService, served


@pytest.fixture(scope="package")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeService, str]]:
    """The service and the server's URL."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"shop:{KEY}\n")
    service = FakeService()
    with served(service, HttpSettings(keys_file=str(keys))) as url:
        yield service, url


@pytest.fixture
def service(running: tuple[FakeService, str]) -> FakeService:
    service, _ = running
    service.reset()
    return service
