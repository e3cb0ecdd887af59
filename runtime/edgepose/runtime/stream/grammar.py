"""What a user writes after --source, --rtsp, --size and --user, read into checked values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from edgepose.runtime.errors import EdgeposeError

LOOPBACK = "127.0.0.1"
SMALLEST, LARGEST = 32, 8192  # pixels of a picture's side: what the H.264 encoders take
FASTEST = 240  # frames per second
_MOUNT = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SYNTHETIC_DEFAULTS = {"seed": "1", "size": "640x480", "fps": "25"}


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Generated people with known poses."""

    seed: int
    size: tuple[int, int]  # width, height in pixels
    fps: int


@dataclass(frozen=True, slots=True)
class File:
    """A video file, played at its own speed."""

    path: str


@dataclass(frozen=True, slots=True)
class Camera:
    """A Video4Linux device such as /dev/video0."""

    device: str


@dataclass(frozen=True, slots=True)
class Network:
    """A camera or server that speaks RTSP."""

    url: str


SourceSpec = Synthetic | File | Camera | Network


@dataclass(frozen=True, slots=True)
class Login:
    """Name and password that a viewer must give."""

    name: str
    password: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where viewers find the stream. Port 0 lets the system choose one."""

    host: str
    port: int
    mount: str  # begins with /
    login: Login | None = None

    def url(self, port: int) -> str:
        """The address to give to a player on this machine, with the port that was really bound."""
        bracketed = f"[{self.host}]" if ":" in self.host else self.host
        return f"rtsp://{bracketed}:{port}{self.mount}"


def parse_source(text: str) -> SourceSpec:
    """Raises EdgeposeError when `text` is no source."""
    if text.startswith("synthetic:") or text == "synthetic":
        return _synthetic(text)
    if text.startswith("v4l2:"):
        return Camera(_non_empty(text, text.removeprefix("v4l2:"), "v4l2:/dev/video0"))
    if not (address := _ADDRESS.match(text)):
        return File(_non_empty(text, text, "walk.mp4"))
    rest = text[address.end() :]
    match address[1].lower():
        case "rtsp":
            return _network(f"rtsp://{rest}")
        case "file":
            return File(_non_empty(text, unquote(rest), "walk.mp4"))
    raise EdgeposeError(
        f"--source {redacted(text)}: this kind of address is not read; give synthetic:, a video file, "
        "v4l2:/dev/videoN or rtsp://..."
    )


def _network(url: str) -> Network:
    if _host_of(url):
        return Network(url)
    mend = "has no host; write rtsp://HOST:PORT/PATH"
    if "@" in url:
        mend = "has no host to be read; write #, /, ? and @ of a password as %23, %2F, %3F and %40"
    raise EdgeposeError(f"--source {redacted(url)}: {mend}")


def _non_empty(text: str, value: str, example: str) -> str:
    if not value.strip():
        raise EdgeposeError(f"--source {text!r}: names nothing; write for example {example}")
    return value


def _host_of(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError when it is no number
        # For GStreamer the host begins after the first @.
        return parts.hostname if parts.netloc.count("@") <= 1 else None
    except ValueError:
        return None


def _synthetic(text: str) -> Synthetic:
    values = dict(_SYNTHETIC_DEFAULTS)
    options = text.removeprefix("synthetic").removeprefix(":")
    for item in filter(None, options.split(",")):
        key, _, value = item.partition("=")
        if key not in values:
            raise EdgeposeError(f"--source {text}: {key!r} is unknown; known are {', '.join(values)}")
        values[key] = value
    return Synthetic(
        _whole(values["seed"], f"--source {text}: seed", 0, 2**31 - 1),
        parse_size(values["size"], f"--source {text}: size"),
        _whole(values["fps"], f"--source {text}: fps", 1, FASTEST),
    )


def _whole(text: str, what: str, least: int, most: int) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
        raise EdgeposeError(f"{what} is {text!r}; give a whole number from {least} to {most}")
    return int(text)


def parse_size(text: str, what: str = "--size") -> tuple[int, int]:
    """`640x480` -> (640, 480). Both even, because H.264 halves the colour's resolution."""
    width, _, height = text.partition("x")
    sides = tuple(_whole(side, f"{what} {text!r}: a side", SMALLEST, LARGEST) for side in (width, height))
    if any(side % 2 for side in sides):
        raise EdgeposeError(f"{what} {text!r}: both sides must be even; give for example 640x480")
    return sides[0], sides[1]


def parse_login(text: str) -> Login:
    """`NAME:PASSWORD`."""
    name, colon, password = text.partition(":")
    if not (name and colon and password):
        raise EdgeposeError("--user: give NAME:PASSWORD, both not empty")
    return Login(name, password)


def parse_endpoint(text: str, login: Login | None = None) -> Endpoint:
    """`[HOST]:PORT/MOUNT`, with or without `rtsp://` before it; no host means this machine only.

    Raises EdgeposeError for anything else, and for an address that others reach without a password.
    """
    match = re.fullmatch(r"(?:rtsp://)?(\[[0-9A-Fa-f:.%]+\]|[^:/@\s\[\]]*):(\d{1,5})(/\S*)", text)
    if not match:
        raise EdgeposeError(
            f"--rtsp {redacted(text)}: give [HOST]:PORT/MOUNT, for example :8554/pose (a password by --user)"
        )
    host = match[1].strip("[]") or LOOPBACK
    mount = match[3].rstrip("/")
    if not _MOUNT.fullmatch(mount):
        raise EdgeposeError(
            f"--rtsp {text}: the mount {match[3]!r} must be letters and digits, such as /pose"
        )
    endpoint = Endpoint(host, _whole(match[2], f"--rtsp {text}: the port", 0, 65535), mount, login)
    if login is None and not _is_loopback(host):
        raise EdgeposeError(
            f"--rtsp {text}: {host} can be reached by others and would show them the camera; "
            "add --user NAME:PASSWORD, or serve this machine only with "
            f":{match[2]}{mount}"
        )
    return endpoint


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or bool(re.fullmatch(r"127(\.\d{1,3}){3}", host))


def redacted(text: str) -> str:
    """The same address without a password in it, for messages and logs.

    Nothing before the last @ is shown: a password may hold anything, whatever an address may hold.
    """
    before, at, place = text.rpartition("@")
    scheme = _ADDRESS.match(before)
    return f"{scheme[0] if scheme else ''}***@{place}" if at else text
