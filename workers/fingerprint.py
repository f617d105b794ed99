"""Names for results, derived from everything that they depend on."""

import json
from hashlib import blake2b
from typing import Any


def fingerprint(identity: Any, num_bytes: int = 6) -> str:
    """A digest of JSON content in hexadecimal; the order of keys does not matter. TypeError if a value has no JSON
    form, so that its digest could differ between processes."""
    return fingerprint_bytes(json.dumps(identity, sort_keys=True).encode(), num_bytes)


def fingerprint_bytes(content: bytes, num_bytes: int = 6) -> str:
    return blake2b(content, digest_size=num_bytes).hexdigest()
