"""One KLV item (SMPTE ST 336: 16-byte label, BER length, value), as RFC 6597 carries it on RTP."""

from __future__ import annotations

# Class 15 (0x0F) is the experimental class of SMPTE's dictionary: nobody else's meaning.
POSE_LABEL = bytes.fromhex("060e2b34010101010f") + b"edgpose"
_LABEL_BYTES = 16


def encode(value: bytes) -> bytes:
    """`value` under the pose label."""
    size = len(value)
    if size < 128:
        return POSE_LABEL + bytes([size]) + value  # BER short form
    digits = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return POSE_LABEL + bytes([0x80 | len(digits)]) + digits + value


def decode(item: bytes) -> bytes:
    """The value. Raises ValueError when the item is cut short, too long or of another label."""
    if item[:_LABEL_BYTES] != POSE_LABEL:
        raise ValueError(f"KLV label {item[:_LABEL_BYTES].hex() or 'missing'} is not that of poses")
    if len(item) == _LABEL_BYTES:
        raise ValueError("KLV item ends before its length")
    first, start = item[_LABEL_BYTES], _LABEL_BYTES + 1
    size = first
    if first & 0x80:
        digits = item[start : start + (first & 0x7F)]
        size, start = int.from_bytes(digits, "big"), start + (first & 0x7F)
    if len(item) - start != size:
        raise ValueError(f"KLV item says {size} bytes and has {len(item) - start}")
    return item[start:]
