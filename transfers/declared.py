"""What a client said beforehand about the file it uploads. Pure."""

from __future__ import annotations

import attrs

from transfers.digest import Digest


@attrs.frozen(kw_only=True)
class Declared:
    """Size and SHA-256 (lower-case hexadecimal) of the whole file, as far as they were told."""

    size_bytes: int | None = None
    sha256: str | None = None

    def has_room(self, size_bytes: int) -> bool:
        """Whether a file that was declared so may have so many bytes, or more to come."""
        return self.size_bytes is None or size_bytes <= self.size_bytes

    def is_short(self, size_bytes: int) -> bool:
        """Whether bytes are missing yet."""
        return self.size_bytes is not None and size_bytes < self.size_bytes

    def contradicts(self, digest: Digest) -> bool:
        """Whether the bytes are others than were declared."""
        return self.sha256 is not None and digest.hexdigest() != self.sha256
