"""Images sent with a request: check them by their first bytes, and store them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from maskfleet.api.image_header import read_header
from maskfleet.api.services import Services
from maskfleet.api.sources import image_file_too_large
from maskfleet.jobs.errors import CallerError
from maskfleet.jobs.prompt_checks import fit_prompts
from maskfleet.jobs.schema.prompts import Prompt
from maskfleet.jobs.schema.spec import ImageSource
from maskfleet.jobs.settings import ApiSettings
from maskfleet.jobs.storage import upload_id_of

#: Images looked up or stored at once; the store's client has 32 connections, shared by all requests.
AT_ONCE = 8

Made = TypeVar("Made")


def check_image(data: bytes, prompts: tuple[Prompt, ...], settings: ApiSettings) -> None:
    """Raise for an unusable image sent with the request, or for prompts outside it."""
    if len(data) > settings.max_image_bytes:
        raise image_file_too_large(settings.max_image_bytes)
    header = read_header(data, settings.max_image_pixels)
    if header.size_wh is not None:
        fit_prompts(prompts, header.size_wh)


def stored_source(source: ImageSource, data: bytes | None) -> ImageSource:
    """Return an image's source once it is stored; the source itself where nothing came with the request."""
    return source if data is None else source.model_copy(update={"upload_id": upload_id_of(data), "base64": None})


def store_image(data: bytes | None, tenant: str, services: Services) -> None:
    """Store an image that came with the request and was checked, if one did, where ``stored_source`` says."""
    if data is None:
        return
    header = services.cpu.run(len(data), read_header, data, services.settings.max_image_pixels)
    services.store.put_upload(tenant, data, header.content_type)


def for_each(images: Iterable[ImageSource], do: Callable[[ImageSource], Made]) -> list[Made]:
    """Call ``do`` for each image of a batch, several at once; an error names its image, and ends the rest."""

    context = copy_context()  # with the request's id, for the log, and its span

    def do_one(numbered: tuple[int, ImageSource]) -> Made:
        number, image = numbered
        try:
            return context.copy().run(do, image)  # a context is for one thread at a time
        except CallerError as error:
            raise error.locate(f"/images/{number}") from error

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="batch") as pool:
        return list(pool.map(do_one, enumerate(images)))
