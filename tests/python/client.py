"""Protocol client in Python: lists the catalogue, and finds, downloads and verifies a file.

    python client.py [--socket dealer|req] TRACKER NAME PATH

TRACKER is an endpoint such as zmq://127.0.0.1:7700. The client is written from docs/PROTOCOL.md alone. It enables ZMTP
heartbeats. With a DEALER socket it requests several pieces at the same time and accepts replies in any order.
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
    """An error reply."""


class Connection:
    """A socket with requests and replies, matched by id."""

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

    def idle(self):
        """Stays idle for several heartbeats and checks that the connection survives."""
        unexpected = self.socket.poll(5 * HEARTBEAT_MS)
        assert not unexpected, "unsolicited message"
        assert not self.lost.poll(0), "connection lost"

    def send(self, request):
        """Sends a request and returns its id."""
        self.last_id += 1
        self.socket.send(cbor2.dumps({"v": VERSION, "id": self.last_id, "request": request}))
        return self.last_id

    def receive(self):
        """Returns the id, the fields and the payload of the next reply."""
        frames = self.socket.recv_multipart()
        header = cbor2.loads(frames[0])
        payload = frames[1] if len(frames) > 1 else b""
        if header.get("error") is not None:
            raise Refused(f"{header['error']['code']}: {header['error']['message']}")
        return header["id"], header["reply"], payload

    def call(self, kind, **fields):
        """Sends a request and returns the fields and the payload of its reply."""
        request_id = self.send({kind: fields})
        reply_id, reply, payload = self.receive()
        assert reply_id == request_id, f"expected a reply to {request_id}, got one to {reply_id}"
        return reply[kind], payload


def piece_size(size):
    """Returns the piece size: the smallest power of two for which a file has at most 8192 pieces, within bounds."""
    length = 1
    while length * 8192 < size:
        length *= 2
    return min(max(length, MIN_PIECE), MAX_PIECE)


def list_files(tracker):
    """Yields all files of the catalogue, page by page."""
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
    """Fetches the piece hashes of a file, checks their number and returns it."""
    count = -(-file["size"] // piece_size(file["size"]))
    hashes = b""
    while len(hashes) < 32 * count:
        reply, payload = peer.call("manifest", id=file["id"], first=len(hashes) // 32)
        assert reply["size"] == file["size"] and payload, "manifest of another file"
        hashes += payload
    assert len(hashes) == 32 * count
    return count


def download(peer, file, path):
    """Downloads all pieces of a file to `path`."""
    count = piece_count(peer, file)
    size = piece_size(file["size"])
    window = 1 if peer.kind == "req" else WINDOW
    waiting, pending = list(range(count)), {}
    with open(path, "wb") as out:
        while waiting or pending:
            while waiting and len(pending) < window:
                index = waiting.pop(0)
                pending[peer.send({"piece": {"id": file["id"], "index": index}})] = index
            request_id, reply, payload = peer.receive()
            index = pending.pop(request_id)
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
    reply, _ = tracker.call("providers", id=file["id"])
    for provider in reply["providers"]:
        # A peer may also have endpoints of other transports.
        endpoint = next(endpoint for endpoint in provider["endpoints"] if endpoint.startswith("zmq://"))
        peer = Connection(context, endpoint, options.socket)
        # Invalid requests get an error reply and leave the connection usable.
        for kind, code in [("dance", "unsupported"), ("piece", "malformed")]:
            try:
                peer.call(kind)
            except Refused as refused:
                assert str(refused).startswith(code), refused
            else:
                raise AssertionError(f"{kind} was not refused")
        peer.idle()
        download(peer, file, options.path)
        peer.idle()
        break
    else:
        sys.exit("no provider offers the file")

    hasher = blake3.blake3()
    with open(options.path, "rb") as content:
        while block := content.read(1 << 20):
            hasher.update(block)
    if hasher.digest() != file["id"]:
        sys.exit("the content does not match the id")
    print(f"complete  {file['id'].hex()}  {options.path}")


if __name__ == "__main__":
    main()
