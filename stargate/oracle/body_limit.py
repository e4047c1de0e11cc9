"""No answer takes the memory: a short compressed one may be gigabytes, another may never end."""

from collections.abc import AsyncIterator

import httpx2

# What each request says: a compressed body has no size that is known before it is taken apart.
UNCOMPRESSED = {"accept-encoding": "identity"}
# A hundred times what the longest answer of any model has.
_MAX_BYTES = 16 << 20


async def limit_body(response: httpx2.Response) -> None:
    """An httpx2 response hook. Raises DecodingError for a compressed body, at once, and for one
    that is too long, when it is.
    """
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise httpx2.DecodingError(
            f"the answer is compressed ({encoding[:20]}), which was not asked for",
            request=response.request,
        )
    if isinstance(response.stream, httpx2.AsyncByteStream):
        response.stream = _Limited(response.stream, response.request)


class _Limited(httpx2.AsyncByteStream):
    """A body that fails where it becomes too long."""

    def __init__(self, stream: httpx2.AsyncByteStream, request: httpx2.Request) -> None:
        self._stream = stream
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > _MAX_BYTES:
                raise httpx2.DecodingError(
                    f"the answer has more than {_MAX_BYTES:,} bytes", request=self._request
                )
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()
