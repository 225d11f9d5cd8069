"""A client for Enjambre in another language: lists, finds, downloads and verifies a file.

    python client.py [--socket dealer|req] TRACKER NAME PATH

TRACKER is an endpoint such as zmq://127.0.0.1:7700. Everything here follows from docs/PROTOCOL.md alone. ZMTP
heartbeats are on, and with a DEALER many pieces are asked for at once and taken in the order in which they come.
"""

import argparse
import sys

import blake3
import cbor2
import zmq

VERSION = 1
WINDOW = 8
TIMEOUT_MS = 20_000
HEARTBEAT_MS = 100
MIN_PIECE, MAX_PIECE = 256 * 1024, 4 * 1024 * 1024


class Refused(Exception):
    """The other side answered with an error."""


class Connection:
    """Requests and replies over one socket, matched by id."""

    def __init__(self, context, endpoint, kind):
        self.kind = kind
        self.socket = context.socket(zmq.REQ if kind == "req" else zmq.DEALER)
        self.socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, TIMEOUT_MS)
        self.socket.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.lost = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.socket.connect(endpoint.replace("zmq://", "tcp://", 1))
        self.last_id = 0

    def rest(self):
        """Says nothing for several heartbeats. Without an answer to them the connection would be lost and made anew."""
        surplus = self.socket.poll(5 * HEARTBEAT_MS)
        assert not surplus, "a message that nobody asked for"
        assert not self.lost.poll(0), "the connection was lost"

    def send(self, ask):
        """Sends a request and returns its id."""
        self.last_id += 1
        self.socket.send(cbor2.dumps({"v": VERSION, "id": self.last_id, "ask": ask}))
        return self.last_id

    def receive(self):
        """The next reply: its id, its fields, and its payload."""
        frames = self.socket.recv_multipart()
        header = cbor2.loads(frames[0])
        payload = frames[1] if len(frames) > 1 else b""
        if header.get("error") is not None:
            raise Refused(f"{header['error']['code']}: {header['error']['message']}")
        return header["id"], header["reply"], payload

    def call(self, kind, **fields):
        """One request and its reply."""
        asked = self.send({kind: fields})
        answered, reply, payload = self.receive()
        assert answered == asked, f"the reply to {answered} came for {asked}"
        return reply[kind], payload


def piece_size(size):
    """How large the pieces of a file are: the next power of two that makes at most 8192 of them, within bounds."""
    wanted = 1
    while wanted * 8192 < size:
        wanted *= 2
    return min(max(wanted, MIN_PIECE), MAX_PIECE)


def list_files(tracker):
    """All files of the catalogue, page by page."""
    cursor = None
    while True:
        fields = {"pattern": "", "limit": 1}
        if cursor is not None:
            fields["cursor"] = cursor
        page, _ = tracker.call("list", **fields)
        yield from page["files"]
        cursor = page.get("cursor")
        if cursor is None:
            return


def piece_count(peer, file):
    """The number of pieces, after the list of their hashes was fetched and its length checked."""
    wanted = -(-file["size"] // piece_size(file["size"]))
    hashes = b""
    while len(hashes) < 32 * wanted:
        reply, payload = peer.call("manifest", id=file["id"], first=len(hashes) // 32)
        assert reply["size"] == file["size"] and payload, "the peer knows another file"
        hashes += payload
    assert len(hashes) == 32 * wanted
    return wanted


def download(peer, file, path):
    """Fetches all pieces into `path`."""
    count = piece_count(peer, file)
    size = piece_size(file["size"])
    window = 1 if peer.kind == "req" else WINDOW
    waiting, asked = list(range(count)), {}
    with open(path, "wb") as out:
        while waiting or asked:
            while waiting and len(asked) < window:
                index = waiting.pop(0)
                asked[peer.send({"piece": {"id": file["id"], "index": index}})] = index
            answered, reply, payload = peer.receive()
            index = asked.pop(answered)
            assert reply == "piece", reply
            assert len(payload) == min(size, file["size"] - index * size)
            out.seek(index * size)
            out.write(payload)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--socket", choices=["dealer", "req"], default="dealer")
    parser.add_argument("tracker")
    parser.add_argument("name")
    parser.add_argument("path")
    options = parser.parse_args()

    context = zmq.Context()
    tracker = Connection(context, options.tracker, options.socket)
    for file in list_files(tracker):
        print(f"{file['id'].hex()}  {file['size']:>12}  {file['providers']:>3}  {file['name']}")

    found, _ = tracker.call("find", query=options.name)
    file = found["file"]
    assert file["name"] == options.name
    answer, _ = tracker.call("providers", id=file["id"])
    for provider in answer["providers"]:
        # A peer may be reachable in other ways, too.
        endpoint = next(endpoint for endpoint in provider["endpoints"] if endpoint.startswith("zmq://"))
        peer = Connection(context, endpoint, options.socket)
        # What is not known is answered with an error, and does no harm to what comes after it.
        for kind, code in [("dance", "unsupported"), ("piece", "malformed")]:
            try:
                peer.call(kind)
            except Refused as refused:
                assert str(refused).startswith(code), refused
            else:
                raise AssertionError(f"{kind} was not refused")
        peer.rest()
        download(peer, file, options.path)
        peer.rest()
        break
    else:
        sys.exit("nobody offers it now")

    hasher = blake3.blake3()
    with open(options.path, "rb") as got:
        while block := got.read(1 << 20):
            hasher.update(block)
    if hasher.digest() != file["id"]:
        sys.exit("the content is not what the id says")
    print(f"complete  {file['id'].hex()}  {options.path}")


if __name__ == "__main__":
    main()
