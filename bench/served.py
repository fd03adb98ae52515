"""Pictures and store on a real S3 server, for benchmarks that ask for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from damage_atlas.store import Store
from tests.support.faulty_proxy import FaultyProxy
from tests.support.s3_server import S3Server

BUCKET = "bench"


@dataclass(frozen=True)
class Served:
    """Where things lie; ``os.environ`` leads there."""

    server: S3Server
    images: str
    stores: str

    def upload(self, shards: Path) -> None:
        """Put the tar files among the images that are not there yet."""
        images = Store(self.images)
        there = {item.key for item in images.list()}
        for shard in sorted(shards.glob("*.tar")):
            if shard.name not in there:
                images.create(shard.name, shard.read_bytes())


@contextmanager
def on_s3(shards: Path, spoilt: float) -> Iterator[Served]:
    """A server with the tar files of ``shards``; a share of its answers is turned into 503s and resets."""
    with ExitStack() as stack:
        server = stack.enter_context(S3Server())
        server.create_bucket(BUCKET)
        os.environ |= server.env()
        served = Served(server, f"s3://{BUCKET}/images", f"s3://{BUCKET}/stores")
        served.upload(shards)
        if spoilt:
            os.environ["AWS_ENDPOINT_URL_S3"] = stack.enter_context(FaultyProxy(server.endpoint_url, spoilt)).url
        yield served
