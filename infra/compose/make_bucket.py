"""Make the store's bucket and check the server before anything relies on it; exit code 0 when all is well.

It must refuse a request without a signature, and of two puts of one name with ``If-None-Match: *`` the second must
lose (412): publishing a version rests on that. Reads DAMAGE_ATLAS_STORE and the standard AWS variables.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

GIVE_UP_AFTER_S = 60


def make_bucket(s3: S3Client, bucket: str) -> None:
    """Create the bucket unless it is there; a server that is still starting gets a minute."""
    give_up_at = time.monotonic() + GIVE_UP_AFTER_S
    while True:
        try:
            s3.create_bucket(Bucket=bucket)
            return
        except ClientError as error:
            if error.response["Error"]["Code"] in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                return
            if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500 or time.monotonic() > give_up_at:
                raise
        except BotoCoreError:
            if time.monotonic() > give_up_at:
                raise
        time.sleep(1)


def refuses_strangers(bucket: str) -> bool:
    """True when a request without a signature is turned away, with whatever status: the bucket is there."""
    stranger = boto3.client("s3", config=Config(signature_version=UNSIGNED))
    try:
        stranger.list_objects_v2(Bucket=bucket, MaxKeys=1)
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"] < 500
    return False


def keeps_first_put(s3: S3Client, bucket: str) -> bool:
    """True when the second put of a name, each with "only if absent", loses."""
    key = f"checks/put-if-absent-{uuid.uuid4().hex}"
    s3.put_object(Bucket=bucket, Key=key, Body=b"first", IfNoneMatch="*")
    try:
        s3.put_object(Bucket=bucket, Key=key, Body=b"second", IfNoneMatch="*")
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"] == 412
    finally:
        s3.delete_object(Bucket=bucket, Key=key)
    return False


def main() -> str | None:
    """What is wrong with the store, in one line; None when it can be used."""
    store = os.environ["DAMAGE_ATLAS_STORE"]
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3", "its default endpoint")
    bucket = urlsplit(store).netloc
    s3 = boto3.client("s3")
    try:
        make_bucket(s3, bucket)
        if not refuses_strangers(bucket):
            return f"The S3 server at {endpoint} answers without a key. Set both S3_ACCESS_KEY and S3_SECRET_KEY."
        if not keeps_first_put(s3, bucket):
            return f"The S3 server at {endpoint} ignores If-None-Match on a put. Use one that supports it."
    except (BotoCoreError, ClientError) as error:
        return f"The S3 server at {endpoint} cannot be used for {store}: {error}"
    print(f"{store} is ready at {endpoint}")
    return None


if __name__ == "__main__":
    sys.exit(main())
