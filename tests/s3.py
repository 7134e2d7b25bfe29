"""A real S3 server on loopback (moto's), with a bucket; all of it in memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import boto3
from moto.server import ThreadedMotoServer

KEYS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}


@contextmanager
def s3_bucket() -> Iterator[str]:
    """The bucket's URL; what is joined to its end lies in it."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **KEYS).create_bucket(Bucket="bucket")
        yield f"s3://key:secret@bucket?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    finally:
        server.stop()
