"""A real S3 server on loopback, which tests write to and read from as they would anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def s3_server(*buckets: str) -> Iterator[str]:
    """Serve empty buckets; yields the address. This process and those it starts use it for every s3:// URL."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra `remote`)")
    server_of = pytest.importorskip("moto.server", reason="moto is not installed (extra `dev`)")
    import s3fs

    server = server_of.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(variable, raising=False)
        patch.setenv("AWS_ENDPOINT_URL", address)
        patch.setenv("AWS_ACCESS_KEY_ID", "tester")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        s3fs.S3FileSystem.clear_instance_cache()
        try:
            for bucket in buckets:
                s3fs.S3FileSystem().mkdir(bucket)
            yield address
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            server.stop()
