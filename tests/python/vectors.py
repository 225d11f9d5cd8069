"""Checks docs/test-vectors.json with the Python package, and the messages in it against docs/protocol.cddl.

    python vectors.py docs/protocol.cddl docs/test-vectors.json
"""

import base64
import io
import json
import struct
import sys

import blake3
import cbor2
import pycddl
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from enjambre import pieces

unhex = bytes.fromhex


def check_files(files):
    for vector in files["vectors"]:
        size = vector["size"]
        content = (bytes(range(251)) * (size // 251 + 1))[:size]
        hashes = pieces.piece_hashes(io.BytesIO(content), size)
        assert [value.hex() for value in hashes] == vector["pieces"], size
        assert pieces.file_id(hashes).hex() == vector["id"] == blake3.blake3(content).hexdigest(), size


def check_session(session):
    key = Ed25519PrivateKey.from_private_bytes(unhex(session["secret"]))
    assert key.public_key().public_bytes_raw().hex() == session["key"]
    assert blake3.blake3(unhex(session["key"])).hexdigest() == session["peer"]
    texts = "".join(f"{endpoint}\n" for endpoint in session["endpoints"])
    for vector in session["signatures"]:
        tracker = unhex(vector["tracker"] or "00" * 32)
        parts = [tracker, unhex(session["catalogue"]), unhex(session["nonce"]), blake3.blake3(texts.encode()).digest()]
        signed = b"".join([b"enjambre session 1", *parts])
        assert signed.hex() == vector["signed"]
        assert key.sign(signed).hex() == vector["signature"]


def check_membership(vector):
    signed = unhex(vector["signed"])
    rights = {"read-only": 0, "full": 1}[vector["rights"]]
    body = struct.pack(">B32sBQQ", 1, unhex(vector["peer"]), rights, vector["begin_ms"], vector["end_ms"])
    assert signed[:-64] == body
    key = Ed25519PublicKey.from_public_bytes(unhex(vector["authority"]))
    key.verify(signed[-64:], b"enjambre membership 1" + body)


def check_invitation(vector):
    body = struct.pack(">32s16sQ", unhex(vector["authority"]), unhex(vector["secret"]), vector["end_ms"])
    for tracker in vector["trackers"]:
        body += struct.pack(">H", len(tracker)) + tracker.encode()
    body += blake3.blake3(b"enjambre" + body).digest()[:4]
    assert "enjambre1." + base64.urlsafe_b64encode(body).decode().rstrip("=") == vector["line"]


def check_collection(grammar, vector):
    members = [[path, size, unhex(member), executable] for path, size, member, executable in vector["members"]]
    content = cbor2.dumps(["enjambre collection 1", members, vector["directories"]], canonical=True)
    assert content.hex() == vector["content"]
    assert blake3.blake3(content).hexdigest() == vector["id"]
    pycddl.Schema(f"start = collection\n{grammar}").validate_cbor(content)


def check_messages(grammar, messages):
    for kind, headers in messages.items():
        rule = {"requests": "request-message", "replies": "reply-message", "errors": "error-message"}[kind]
        schema = pycddl.Schema(f"start = {rule}\n{grammar}")
        assert headers
        for header in map(unhex, headers):
            try:
                schema.validate_cbor(header)
            except pycddl.ValidationError as error:
                raise AssertionError(cbor2.loads(header)) from error
            check_rejected(schema, header)


def check_rejected(schema, header):
    """The grammar is strict: a message with a field that it does not list does not match."""
    message = cbor2.loads(header)
    message["later"] = 1
    try:
        schema.validate_cbor(cbor2.dumps(message))
    except pycddl.ValidationError:
        return
    raise AssertionError(f"the grammar accepts {message}")


def main(grammar, vectors):
    with open(grammar) as text:
        grammar = text.read()
    with open(vectors) as text:
        vectors = json.load(text)
    check_files(vectors["files"])
    check_session(vectors["session"])
    check_membership(vectors["membership"])
    check_invitation(vectors["invitation"])
    check_collection(grammar, vectors["collection"])
    check_messages(grammar, vectors["messages"])


if __name__ == "__main__":
    main(*sys.argv[1:])
