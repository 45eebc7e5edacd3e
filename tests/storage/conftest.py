"""A store that speaks S3, for the tests of datasets that lie in one."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from stillhouse.storage import service
from tests.s3_server import BUCKET, KEY, SECRET, SeaweedFS, Window, window_on


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """The server, once for all tests; a test that kills it starts it again."""
    with TemporaryDirectory() as sockets:  # whose paths must be short
        server = SeaweedFS(tmp_path_factory.mktemp("seaweed") / "s3", Path(sockets))
        server.start()
        import botocore.session

        client = botocore.session.get_session().create_client(
            "s3", "us-east-1", endpoint_url=server.endpoint, aws_access_key_id=KEY, aws_secret_access_key=SECRET
        )
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield server
        server.kill()


@pytest.fixture
def s3(seaweed: SeaweedFS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Window]:
    """The store as a test sees it: through a window, with credentials in the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)  # where journals go
    with window_on(seaweed.endpoint) as window:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", window.endpoint)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        forget_stores()
        yield window
        forget_stores()


def forget_stores() -> None:
    """As in a process that has just begun: the environment is read again."""
    service._opened.clear()
    service._answered.clear()


@pytest.fixture
def s3_root(s3: Window) -> str:
    """A place of its own for one test's datasets."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}/labels"
