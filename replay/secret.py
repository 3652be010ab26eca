"""Keyed hashes: equal values are seen to be equal within one recording, and cannot be guessed without its key.

Token ids and tenants are few, so a plain hash of one is as good as the value to whoever tries them all.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

KEY_FILE = ".token_tag_key"


class RecordingKey:
    """The key of a recording, shared by all processes that write into the directory. Made when there is none.

    It stays on the recording host: whoever has it can test guesses against tags. Raises OSError.
    """

    def __init__(self, directory: Path) -> None:
        self._key = _read_or_make(directory / KEY_FILE)
        self.id = hashlib.sha256(b"token_tag blake2b" + self._key).hexdigest()[:16]

    def token_tag(self, position: int, token_id: int) -> str:
        """Return the tag of a token at an output position: 16 hex digits."""
        # Four of them a step record: keyed BLAKE2b (RFC 7693) takes a third of the time of an HMAC.
        return hashlib.blake2b(f"{position}:{token_id}".encode(), key=self._key, digest_size=8).hexdigest()

    def tenant_sha256(self, tenant: str) -> str:
        """Return the hash of a tenant's name or id: 64 hex digits."""
        return hmac.new(self._key, f"tenant:{tenant}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def _read_or_make(path: Path) -> bytes:
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        for _ in range(100):  # another process may be between create and write
            if len(key := path.read_bytes()) == 32:
                return key
            time.sleep(0.01)
        raise OSError(f"{path}: not a 32-byte key; delete it to start a new recording") from None
    key = secrets.token_bytes(32)
    with os.fdopen(handle, "wb") as file:
        file.write(key)
    return key
