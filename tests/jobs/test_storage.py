"""The store on a real S3."""

import threading
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import requests
from pydantic import SecretStr

from maskfleet.jobs.errors import NotFound, StoreMisconfigured, StoreUnavailable
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.storage import Store, attempt_prefix, split_s3_uri, upload_key


def test_what_was_put_is_read_back(store: Store) -> None:
    store.put("t/a", b"bytes", "text/plain")

    head = store.head("t/a")

    assert store.read("t/a") == b"bytes"
    assert head is not None
    assert (head.size, head.content_type) == (5, "text/plain")


def test_a_read_stops_one_byte_after_the_limit(store: Store) -> None:
    store.put("t/long", b"0123456789", "text/plain")

    assert store.read("t/long", max_bytes=4) == b"01234"


def test_an_empty_object_is_read_as_no_bytes(store: Store) -> None:
    store.put("t/empty", b"", "text/plain")

    assert store.read("t/empty", max_bytes=4) == b""


def test_what_is_put_once_stays(store: Store) -> None:
    store.put_once("t/once", b"first", "text/plain")

    assert store.put_once("t/once", b"second", "text/plain") is False
    assert store.read("t/once") == b"first"


def test_a_missing_object_is_told_as_such(store: Store) -> None:
    assert store.head("t/none") is None
    with pytest.raises(NotFound):
        store.read("t/none")
    with pytest.raises(NotFound):
        store.read("t/none", bucket="no-such-bucket")


def test_a_link_reads_the_object_without_a_key(store: Store) -> None:
    store.put("t/linked", b"bytes", "text/plain")

    assert requests.get(store.link("t/linked"), timeout=5).content == b"bytes"


def test_links_are_made_for_the_address_that_clients_reach(store_fields: dict[str, str]) -> None:
    store = Store(SharedSettings(**store_fields, s3_public_endpoint="https://photos.example.com"))

    assert store.link("t/linked").startswith("https://photos.example.com/maskfleet/t/linked?")
    assert store.presign_upload("ant", "image/png", 3, 60).url.startswith("https://photos.example.com/")


def test_a_presigned_upload_takes_the_one_object_that_it_was_made_for(store: Store) -> None:
    upload = store.presign_upload("ant", "image/png", 5, ttl_s=60)

    wrong_type = requests.put(upload.url, data=b"bytes", headers={"Content-Type": "text/html"}, timeout=5)
    wrong_size = requests.put(upload.url, data=b"more bytes", headers={"Content-Type": "image/png"}, timeout=5)
    right = requests.put(upload.url, data=b"bytes", headers=upload.headers, timeout=5)

    assert (wrong_type.status_code, wrong_size.status_code, right.status_code) == (403, 403, 200)
    assert store.read(upload_key("ant", upload.upload_id)) == b"bytes"


def test_a_store_that_is_gone_is_told_as_such() -> None:
    gone = Store(SharedSettings(s3_endpoint="http://127.0.0.1:1", s3_access_key="a", s3_secret_key="b"))

    with pytest.raises(StoreUnavailable):
        gone.put("t/a", b"", "text/plain")
    with pytest.raises(StoreUnavailable):
        gone.ping()


def test_stores_of_one_process_sign_with_their_own_keys(store: Store, store_fields: dict[str, str]) -> None:
    other = Store(SharedSettings(**{**store_fields, "s3_access_key": "nobody"}))

    with pytest.raises(StoreMisconfigured):
        other.put("t/a", b"", "text/plain")
    store.put("t/a", b"bytes", "text/plain")


def test_keys_that_boto3_finds_are_read_again_when_the_store_signs_in_again(
    store_fields: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_keys(access_key: str) -> None:
        lines = f"[default]\naws_access_key_id={access_key}\naws_secret_access_key={store_fields['s3_secret_key']}\n"
        (tmp_path / "credentials").write_text(lines)

    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    write_keys("nobody")
    store = Store(SharedSettings(**{**store_fields, "s3_access_key": "", "s3_secret_key": ""}))
    with pytest.raises(StoreMisconfigured):
        store.put("t/a", b"", "text/plain")

    write_keys(store_fields["s3_access_key"])
    store.sign_in_again()
    store.put("t/a", b"bytes", "text/plain")


def test_an_s3_uri_is_split_at_its_bucket() -> None:
    assert split_s3_uri("s3://photos/a/b.jpg") == ("photos", "a/b.jpg")


def test_attempts_write_to_folders_of_their_own() -> None:
    claims = [(1, 1, "0" * 32), (1, 3, "0" * 32), (2, 5, "0" * 32), (2, 5, "1" * 32)]
    folders = {attempt_prefix("t", "j", *claim) for claim in claims}

    assert len(folders) == 4


def test_an_upload_takes_one_round_trip() -> None:
    heads: list[Message] = []

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            heads.append(self.headers)
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        store = Store(
            SharedSettings(
                s3_endpoint=f"http://127.0.0.1:{server.server_port}",
                s3_access_key=SecretStr("key"),
                s3_secret_key=SecretStr("secret"),
            )
        )
        store.put("uploads/one", b"photo", "image/png")

    assert [head["Expect"] for head in heads] == [None]
