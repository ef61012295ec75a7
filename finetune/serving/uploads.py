"""The images in a request, within limits of size, number and time. Nothing is written to disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from fastapi import HTTPException, Request
from python_multipart.exceptions import FormParserError
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

MAX_FILE = 16 * 2**20  # bytes of one image
MAX_FILES = 16  # images of one request
MAX_BODY = 32 * 2**20  # bytes of one request
MAX_HELD = 256 * 2**20  # bytes of all requests at the same time
SECONDS = 30  # that one request may take to arrive
RAW_TYPES = ("", "application/octet-stream")  # and all of image/*


class InMemory(MultiPartParser):
    """Starlette's parser, which by default writes files of more than 1 MiB to disk."""

    spool_max_size = MAX_BODY + 1


class Uploads:
    """The bodies of the requests that are being answered."""

    def __init__(self) -> None:
        self.held = 0
        """Bytes."""

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[list[bytes]]:
        """The images of a request: the files of a form, or a raw body. Their bytes count as held inside the block.

        Raises `HTTPException` for a request that is too large, too slow or no image upload.
        """
        taken = 0

        async def chunks() -> AsyncGenerator[bytes, None]:
            nonlocal taken
            async for chunk in request.stream():
                taken += len(chunk)
                self.held += len(chunk)
                if taken > MAX_BODY:
                    raise _too_large()
                if self.held > MAX_HELD:
                    raise busy()
                yield chunk

        try:
            if int(request.headers.get("content-length", 0)) > MAX_BODY:
                raise _too_large()
            files = await asyncio.wait_for(_files(request, chunks()), SECONDS)
            for k, data in enumerate(files):
                if len(data) > MAX_FILE:
                    raise HTTPException(413, f"file {k + 1} is larger than {MAX_FILE >> 20} MiB.")
            yield files
        except asyncio.TimeoutError:
            raise HTTPException(408, f"the upload took longer than {SECONDS} s.") from None
        except ClientDisconnect:
            raise HTTPException(400, "the upload ended early.") from None
        finally:
            self.held -= taken


def busy() -> HTTPException:
    """The answer above the server's capacity."""
    return HTTPException(503, "the server is busy. Try again in a second.", {"Retry-After": "1"})


async def _files(request: Request, chunks: AsyncGenerator[bytes, None]) -> list[bytes]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        try:
            form = await InMemory(request.headers, chunks, max_files=MAX_FILES, max_fields=0).parse()
        except KeyError:
            raise HTTPException(400, "the form cannot be read: it names no boundary.") from None
        except (MultiPartException, FormParserError) as error:
            reason = getattr(error, "message", "it is damaged.")
            raise HTTPException(400, f"the form cannot be read: {reason}") from None
        files = [await file.read() for _, file in form.multi_items()]
    elif kind in RAW_TYPES or kind.startswith("image/"):
        files = [b"".join([chunk async for chunk in chunks])]
    else:
        raise HTTPException(415, "send images as files of a form (multipart/form-data), or one as the body (image/…).")
    if not any(files):
        raise HTTPException(400, "the request has no image.")
    return files


def _too_large() -> HTTPException:
    return HTTPException(413, f"the request is larger than {MAX_BODY >> 20} MiB.")
