"""The server's address: what is one, and what of it, or of where it redirects to, may stand in a message."""

import ipaddress
from urllib.parse import urlsplit

from transformers_agci.errors import InputError, short


def checked_url(url: str | None) -> str:
    """The URL without a slash at its end; InputError where it is none, or carries something secret."""
    if not url:
        raise InputError(
            "`base_url` is needed: the server's address up to /chat/completions, such as http://localhost:8000/v1."
        )
    authority = (url.partition("//")[2] or url).partition("/")[0]
    if "@" in authority or "?" in url or "#" in url:  # looked for by hand: what cannot be parsed is shown below
        raise InputError(
            "`base_url` must be an address alone, without user, password or query: it is written into manifests. The "
            "key comes from the environment."
        )
    if not _is_usable(url):
        raise InputError(f"`base_url` must be like http://localhost:8000/v1, but is {short(url)}.")
    return url.rstrip("/").removesuffix("/chat/completions")


def _is_usable(url: str) -> bool:
    """Whether a request can be sent there: brackets, port and the name of the host are what they may be."""
    try:
        parts = urlsplit(url)
        named = bool((parts.hostname or "").encode("idna")) and parts.port != 0
    except ValueError:
        return False
    return named and parts.scheme in ("http", "https") and url.isprintable() and " " not in url


def place(location: str) -> str:
    """Scheme and host of a redirect, for a message."""
    try:
        target = urlsplit(location)
        return f"{target.scheme}://{short(target.hostname, 80)[1:-1]}" if target.hostname else "another address"
    except ValueError:
        return "another address"


def is_this_machine(host: str) -> bool:
    """Whether a host is the loopback, so that nobody else sees what is sent there."""
    try:
        address = ipaddress.ip_address(host)
        address = getattr(address, "ipv4_mapped", None) or address
        return address.is_loopback or address.is_unspecified  # 0.0.0.0 is what vLLM's log calls its own address
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
