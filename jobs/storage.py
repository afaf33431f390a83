"""The object store: uploaded images, results, and links to both.

Objects in the bucket:

    uploads/{tenant}/{upload id}                     an image that a caller uploaded
    results/{tenant}/{job}/attempt-{n}-{fence}-{token}/…  what one attempt wrote; without the token until version 2
                                                          of the ledger
    results/{tenant}/{job}/manifest.json             written once: names the attempt that counts
    embeddings/{tenant}/{revision}/{sha256}          an image's embedding, by the revision of the model that encoded
                                                     it and the image's bytes
    batches/{tenant}/{batch}/…                       what is collected of a batch from a prefix or a manifest:
                                                     pages, and the files that are made of all of them
    embeddings/{tenant}/sources/{sha256}             what is known of an image, by the name of its source
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cache
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.handlers import add_expect_header
from urllib3.exceptions import HTTPError

from maskfleet.jobs import tracing
from maskfleet.jobs.errors import InvalidRequest, NotFound, StoreMisconfigured, StoreUnavailable
from maskfleet.jobs.schema.wire import key_fault
from maskfleet.jobs.settings import SharedSettings

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.literals import BucketLocationConstraintType
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

#: S3 rejects requests from a clock further off than this.  Source: Amazon S3, "Error responses", RequestTimeTooSkewed.
MAX_SKEW_S = 15 * 60
#: The error codes of S3 that mean "not there".
_ABSENT = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
#: Those that mean that it does not accept who asks, whatever is asked for.  Source: Amazon S3, "Error responses".
_NOT_ACCEPTED = {
    "AuthorizationHeaderMalformed",
    "CredentialsNotSupported",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidToken",
    "NotSignedUp",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
#: The folder of what is known of images.
EMBEDDINGS = "embeddings/"
#: In a tenant's folder, beside the folders of models' revisions, which are in hex.
SOURCES_FOLDER = "sources"
#: S3's own limit for one DeleteObjects, and for one page of a listing.
DELETED_AT_ONCE = 1000
#: Parts of an object that is written bit by bit.  S3 takes 10,000 of 5 MiB or more: 156 GB of these.
PART_BYTES = 16 * 2**20
#: Bytes that are read of a large object at a time.
READ_AT_ONCE = 2**20
#: boto3's clients can be shared by threads, but its sessions cannot.
_MAKING_A_CLIENT = Lock()


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object's size and type in the store."""

    size: int
    content_type: str
    etag: str = ""


@dataclass(frozen=True, slots=True)
class FetchedObject:
    """An object's bytes, and the tag that changes with them; empty if the store gives none."""

    data: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class PresignedUpload:
    """How a caller uploads an image to the store: one PUT with these headers."""

    upload_id: str
    url: str
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object as it appears in a listing."""

    key: str
    size: int
    modified: datetime


class ObjectDenied(NotFound):
    """The store denies us the object."""


class ObjectChanged(NotFound):
    """The object is not the one that was found before."""


class ObjectWriter:
    """An object that is being written; memory is bounded by one part."""

    def __init__(self, s3: S3Client, bucket: str, key: str, upload_id: str) -> None:
        self._s3, self._bucket, self._key, self._upload_id = s3, bucket, key, upload_id
        self._buffer = bytearray()
        self._tags: list[str] = []
        self.size = 0

    def write(self, data: bytes) -> None:
        """Add bytes.  Raises as Store does."""
        self._buffer += data
        self.size += len(data)
        while len(self._buffer) >= PART_BYTES:
            self._put(bytes(self._buffer[:PART_BYTES]))
            del self._buffer[:PART_BYTES]

    def finish(self) -> None:
        """Write the rest, and let the object appear."""
        if self._buffer or not self._tags:
            self._put(bytes(self._buffer))
        parts: list[CompletedPartTypeDef] = [
            {"ETag": tag, "PartNumber": number} for number, tag in enumerate(self._tags, 1)
        ]
        with _s3_errors():
            self._s3.complete_multipart_upload(
                Bucket=self._bucket, Key=self._key, UploadId=self._upload_id, MultipartUpload={"Parts": parts}
            )

    def _put(self, data: bytes) -> None:
        with _s3_errors():
            answer = self._s3.upload_part(
                Bucket=self._bucket,
                Key=self._key,
                UploadId=self._upload_id,
                PartNumber=len(self._tags) + 1,
                Body=data,
            )
        self._tags.append(answer["ETag"])


class Store:
    """The bucket, by key.

    Every method raises StoreUnavailable when the store does not respond, or responds that it is unavailable, and
    StoreMisconfigured when it refuses this program's credentials or clock, or access to its own bucket.
    """

    def __init__(self, settings: SharedSettings) -> None:
        self._settings = settings
        self.bucket = settings.bucket
        self.sign_in_again()

    def sign_in_again(self) -> None:
        """Read the credentials again, where settings leave it to boto3 to find them: a file may have changed."""
        settings = self._settings
        session = _session_of_given_keys() if settings.s3_access_key.get_secret_value() else boto3.session.Session()
        self._s3 = _client(session, settings, settings.s3_endpoint)
        # A presigned link's signature covers the host name, so links are made for the address that clients use.
        self._public_s3 = _client(session, settings, settings.s3_public_endpoint or settings.s3_endpoint)

    def put(self, key: str, data: bytes, content_type: str) -> None:
        """Write an object, replacing any older one."""
        with self._request("PutObject", key):
            self._s3.put_object(Bucket=self.bucket, Key=key, Body=data, ContentType=content_type)

    def put_once(self, key: str, data: bytes, content_type: str) -> bool:
        """Write an object unless it exists; return whether it was written."""
        try:
            with self._request("PutObject", key):
                self._s3.put_object(Bucket=self.bucket, Key=key, Body=data, ContentType=content_type, IfNoneMatch="*")
        except ClientError as error:
            if _code(error) in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409"):
                return False
            raise
        return True

    def read(self, key: str, *, bucket: str = "", max_bytes: int | None = None) -> bytes:
        """Return an object's bytes, at most ``max_bytes`` + 1 of them, so that the caller can see that it is too long.

        Raises NotFound (``object_not_found``), ObjectDenied (``object_denied``; only for another bucket).
        """
        return self.fetch(key, bucket=bucket, max_bytes=max_bytes).data

    def fetch(self, key: str, *, bucket: str = "", max_bytes: int | None = None) -> FetchedObject:
        """Return an object's bytes as ``read`` does, with its tag."""
        extent = f"bytes=0-{max_bytes}" if max_bytes is not None else "bytes=0-"
        try:
            with self._request("GetObject", key, bucket):
                response = self._s3.get_object(Bucket=bucket or self.bucket, Key=key, Range=extent)
                # Not the body's own ``with``, which yields the bare connection, whose errors are urllib3's.
                with closing(response["Body"]) as body:
                    return FetchedObject(body.read(), response.get("ETag", ""))
        except ClientError as error:
            if _code(error) == "InvalidRange":  # an empty object has no first byte
                return FetchedObject(b"", "")
            raise

    def head(self, key: str, *, bucket: str = "") -> StoredObject | None:
        """Return an object's size and type, or None if it does not exist."""
        try:
            with self._request("HeadObject", key, bucket):
                response = self._s3.head_object(Bucket=bucket or self.bucket, Key=key)
        except NotFound:
            return None
        return StoredObject(response["ContentLength"], response.get("ContentType", ""), response.get("ETag", ""))

    @contextmanager
    def _request(self, method: str, key: str = "", bucket: str = "") -> Iterator[None]:
        """A request's span, and the translation of its errors.  Source: OpenTelemetry's conventions for S3."""
        attributes = {"rpc.method": method, "aws.s3.bucket": bucket or self.bucket, "aws.s3.key": key}
        request = tracing.span(f"S3 {method}", attributes, kind=tracing.Kind.CLIENT)
        with request, _s3_errors(own=bucket in ("", self.bucket)):
            yield

    def link(self, key: str) -> str:
        """Return a link with which anyone can read the object for a limited time."""
        params = {"Bucket": self.bucket, "Key": key}
        return self._public_s3.generate_presigned_url("get_object", Params=params, ExpiresIn=self._settings.link_ttl_s)

    def public_origin(self) -> str:
        """Return the origin of the links, as a browser names it; empty while there are no credentials to sign one."""
        try:
            link = urlsplit(self.link("origin"))
        except BotoCoreError:
            return ""
        return f"{link.scheme}://{link.netloc}"

    def presign_upload(self, tenant: str, content_type: str, size: int, ttl_s: int) -> PresignedUpload:
        """Return a link to upload one image of exactly this type and size, once.

        The signature covers all of this; an upload cannot be replaced, so a job always reads the image it was sent for.
        """
        upload_id = f"upl_{uuid.uuid4().hex}"
        params = {
            "Bucket": self.bucket,
            "Key": upload_key(tenant, upload_id),
            "ContentType": content_type,
            "ContentLength": size,
            "IfNoneMatch": "*",
        }
        url = self._public_s3.generate_presigned_url("put_object", Params=params, ExpiresIn=ttl_s)
        headers = {"Content-Type": content_type, "Content-Length": str(size), "If-None-Match": "*"}
        return PresignedUpload(upload_id, url, headers)

    def put_upload(self, tenant: str, data: bytes, content_type: str) -> str:
        """Store an image that came with the request; return its upload id, the same for the same bytes."""
        upload_id = upload_id_of(data)
        self.put(upload_key(tenant, upload_id), data, content_type)
        return upload_id

    def listed(self, prefix: str) -> Iterator[ListedObject]:
        """Yield the objects whose keys begin with ``prefix``, in key order, page by page."""
        with _s3_errors():
            for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
                for found in page.get("Contents", []):
                    yield ListedObject(found["Key"], found["Size"], found["LastModified"])

    def listed_after(self, bucket: str, prefix: str, after: str, most: int) -> tuple[tuple[ListedObject, ...], bool]:
        """Return the next objects of a bucket whose keys begin with ``prefix``, and whether there are more.

        after: the key before the first; empty for the beginning.  Raises NotFound, ObjectDenied.
        """
        with _s3_errors(own=bucket == self.bucket):
            page = self._s3.list_objects_v2(Bucket=bucket, Prefix=prefix, StartAfter=after, MaxKeys=most)
        found = tuple(ListedObject(one["Key"], one["Size"], one["LastModified"]) for one in page.get("Contents", []))
        return found, bool(page.get("IsTruncated"))

    def read_part(self, bucket: str, key: str, at: int, size: int, etag: str) -> bytes:
        """Return bytes of an object, from ``at`` on.  Raises NotFound, ObjectDenied, ObjectChanged (another tag)."""
        try:
            with _s3_errors(own=bucket == self.bucket):
                response = self._s3.get_object(Bucket=bucket, Key=key, Range=f"bytes={at}-{at + size - 1}")
                if response.get("ETag", "") != etag:
                    raise ObjectChanged("object_changed", "The object was replaced.")
                with closing(response["Body"]) as body:
                    return body.read()
        except ClientError as error:
            if _code(error) == "InvalidRange":  # it is shorter now
                raise ObjectChanged("object_changed", "The object was replaced.") from error
            raise

    def chunks(self, key: str) -> Iterator[bytes]:
        """Yield an object's bytes, some at a time.  Raises NotFound."""
        with _s3_errors(), closing(self._s3.get_object(Bucket=self.bucket, Key=key)["Body"]) as body:
            while chunk := body.read(READ_AT_ONCE):
                yield chunk

    @contextmanager
    def writing(self, key: str, content_type: str) -> Iterator[ObjectWriter]:
        """Write an object of any size part by part; it appears at the end, and not at all if the block raises."""
        with _s3_errors():
            upload_id = self._s3.create_multipart_upload(Bucket=self.bucket, Key=key, ContentType=content_type)[
                "UploadId"
            ]
        writer = ObjectWriter(self._s3, self.bucket, key, upload_id)
        try:
            yield writer
            writer.finish()
        except BaseException:
            with suppress(ClientError, BotoCoreError):
                self._s3.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload_id)
            raise

    def folders(self, prefix: str) -> Iterator[str]:
        """Yield the folders directly under ``prefix``, which ends with a slash, each with its own slash."""
        with _s3_errors():
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix, Delimiter="/")
            for page in pages:
                for found in page.get("CommonPrefixes", []):
                    yield found["Prefix"]

    def delete(self, keys: Iterable[str]) -> int:
        """Delete objects, whether or not they still exist; return how many keys were given."""
        count, left = 0, iter(keys)
        while batch := list(islice(left, DELETED_AT_ONCE)):
            with self._request("DeleteObjects"):
                response = self._s3.delete_objects(
                    Bucket=self.bucket, Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True}
                )
            if response.get("Errors"):
                raise StoreUnavailable("The object store did not delete every object. Send the request again.")
            count += len(batch)
        return count

    def delete_prefix(self, folder: str) -> int:
        """Delete all objects in a folder, whose name must end with a slash; return how many there were."""
        if not folder.endswith("/") or folder.count("/") < 2:
            raise ValueError(f"{folder!r} is not one job's folder: other jobs' keys may begin with it.")
        return self.delete(found.key for found in self.listed(folder))

    def ping(self) -> None:
        """Raise StoreUnavailable, StoreMisconfigured or NotFound (no bucket) unless the bucket is reachable."""
        with _s3_errors():
            self._s3.head_bucket(Bucket=self.bucket)

    def clock_ahead_s(self) -> float:
        """Return how far this machine's clock is ahead of the store's, in seconds.  Raises as ``ping``."""
        with _s3_errors():
            response = self._s3.head_bucket(Bucket=self.bucket)
        date = response["ResponseMetadata"]["HTTPHeaders"].get("date")
        return time.time() - parsedate_to_datetime(date).timestamp() if date else 0.0

    def make_bucket(self) -> None:
        """Create the missing bucket."""
        region = self._settings.s3_region
        with _s3_errors():
            if region == "us-east-1":  # the one region that S3 does not accept by name
                self._s3.create_bucket(Bucket=self.bucket)
            else:
                place = cast("BucketLocationConstraintType", region)
                self._s3.create_bucket(Bucket=self.bucket, CreateBucketConfiguration={"LocationConstraint": place})


def upload_id_of(data: bytes) -> str:
    """Return the upload id of an image that comes with a request."""
    return f"upl_{hashlib.sha256(data).hexdigest()[:32]}"


def upload_key(tenant: str, upload_id: str) -> str:
    return f"uploads/{tenant}/{upload_id}"


def result_prefix(tenant: str, job_id: str) -> str:
    """Return the folder of everything that a job's attempts wrote."""
    return f"results/{tenant}/{job_id}"


def manifest_key(tenant: str, job_id: str) -> str:
    """Return the key of the manifest, which is written once for each job."""
    return f"{result_prefix(tenant, job_id)}/manifest.json"


def attempt_prefix(tenant: str, job_id: str, attempt: int, fence: int, token: str) -> str:
    """Return the folder of one attempt.

    The fence distinguishes attempts that were handed back uncharged, and the claim's token those to which a Redis that
    lost its last writes gave the same fence.
    """
    return f"{result_prefix(tenant, job_id)}/attempt-{attempt}-{fence}-{token[:8]}"


def batch_prefix(tenant: str, batch_id: str) -> str:
    """Return the folder of what is collected of a batch that couriers expand."""
    return f"batches/{tenant}/{batch_id}"


def embedding_key(tenant: str, revision: str, sha256: str) -> str:
    """Return the key of an image's embedding.

    revision: of the model, in hex.  sha256: of the image's bytes, computed by this service from the bytes themselves.
    """
    return f"{EMBEDDINGS}{tenant}/{revision}/{sha256}"


def source_key(tenant: str, name: str) -> str:
    """Return the key of what is known of an image.  name: of its source, see ``source_name``."""
    return f"{EMBEDDINGS}{tenant}/{SOURCES_FOLDER}/{hashlib.sha256(name.encode()).hexdigest()}"


def delete_known_image(store: Store, tenant: str, names: Iterable[str], sha256: str) -> int:
    """Delete a tenant's embeddings of an image, for every model, and what is known of its sources.

    names: of the sources.  Returns how many keys were given.  Raises as Store does.
    """
    own = f"{EMBEDDINGS}{tenant}/"
    folders = [folder for folder in store.folders(own) if folder != f"{own}{SOURCES_FOLDER}/"]
    return store.delete([*(source_key(tenant, name) for name in names), *(f"{folder}{sha256}" for folder in folders)])


def split_s3_uri(uri: str) -> tuple[str, str]:
    """Split ``s3://bucket/key`` into bucket and key."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def allowed_prefix(s3_uri: str, tenant: str, settings: SharedSettings) -> tuple[str, str]:
    """Split a prefix of a tenant's batch into bucket and beginning of keys.  Raises as ``allowed_object``.

    It must lie in an allowed folder: of one that is only the beginning of that folder's name, or of a folder around it,
    not all is allowed.
    """
    bucket, prefix = split_s3_uri(s3_uri)
    if prefix and (fault := key_fault(prefix.removesuffix("/"))):
        raise InvalidRequest("invalid_s3_uri", f"The prefix is not allowed. {fault}")
    _check_allowed(bucket, prefix, tenant, settings)
    return bucket, prefix


def allowed_object(s3_uri: str, tenant: str, settings: SharedSettings) -> tuple[str, str]:
    """Split a URI that a tenant's job names.  Raises InvalidRequest (``invalid_s3_uri``, ``bucket_not_allowed``)."""
    bucket, key = split_s3_uri(s3_uri)
    if fault := key_fault(key):  # a job that was recorded before keys were checked
        raise InvalidRequest("invalid_s3_uri", f"The s3_uri is not allowed. {fault}")
    _check_allowed(bucket, key, tenant, settings)
    return bucket, key


def _check_allowed(bucket: str, key: str, tenant: str, settings: SharedSettings) -> None:
    # Never our own bucket: it holds other tenants' images and masks.
    own = [one for one in settings.allowed_buckets if one.is_for(tenant) and one.bucket != settings.bucket]
    if not any(one.holds(bucket, key) for one in own):
        listed = ", ".join(one.uri for one in own)
        may = f"Your jobs may read objects under {listed}." if own else "The operator allows your jobs no bucket."
        raise InvalidRequest(
            "bucket_not_allowed", f"This object is in no bucket or folder that is allowed. {may}", status=403
        )


@cache
def _session_of_given_keys() -> boto3.session.Session:
    """Return the session of clients that are given their keys: one, since each reads what S3 is anew, for 0.05 s."""
    return boto3.session.Session()


def _client(session: boto3.session.Session, settings: SharedSettings, endpoint: str) -> S3Client:
    credentials: dict[str, Any] = {}  # Any: boto3 types each keyword of client() on its own
    if settings.s3_access_key.get_secret_value():
        credentials = {
            "aws_access_key_id": settings.s3_access_key.get_secret_value(),
            "aws_secret_access_key": settings.s3_secret_key.get_secret_value(),
        }
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path" if endpoint else "auto"},
        connect_timeout=3,
        read_timeout=20,
        retries={"max_attempts": 2, "mode": "standard"},
        max_pool_connections=32,
        # Not all S3-compatible servers support the newer default checksums.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    with _MAKING_A_CLIENT:
        client = session.client(
            "s3", endpoint_url=endpoint or None, region_name=settings.s3_region, config=config, **credentials
        )
    # Each upload would wait for a "100 Continue", a second round trip, before it sends a body that is in memory anyway.
    client.meta.events.unregister("before-call.s3", add_expect_header)
    return client


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _clock_is_off(error: ClientError) -> bool:
    """Return whether S3 rejected a request for the time in its signature; a response to HEAD has no body to say so."""
    date = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    apart_s = abs(parsedate_to_datetime(date).timestamp() - time.time()) if date else 0.0
    return _code(error) == "RequestTimeTooSkewed" or apart_s > MAX_SKEW_S


@contextmanager
def _s3_errors(*, own: bool = True) -> Iterator[None]:
    """Translate boto3's errors.  own: whether the bucket is ours, so that a refusal is not the caller's fault."""
    try:
        yield
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if own and _code(error) == "NoSuchBucket":
            raise StoreMisconfigured("its bucket does not exist.") from error
        if _code(error) in _ABSENT:
            raise NotFound("object_not_found", "The object is not in the store.") from error
        if status == 403 and _clock_is_off(error):
            raise StoreMisconfigured("a machine's clock is wrong.") from error
        if _code(error) in _NOT_ACCEPTED:
            raise StoreMisconfigured("its credentials are not accepted.") from error
        if status == 403 and own:
            raise StoreMisconfigured("access to its bucket is denied.") from error
        if status == 403:
            raise ObjectDenied("object_denied", "The object store denies this service access to the object.") from error
        if status >= 500 or _code(error) in ("SlowDown", "RequestTimeout"):
            raise StoreUnavailable from error
        raise
    except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
        raise StoreMisconfigured("it has no credentials.") from error
    except (BotoCoreError, HTTPError, OSError) as error:  # urllib3's own, when a response to an error breaks off
        raise StoreUnavailable from error
