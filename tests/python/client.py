"""Checks of the Python package against real nodes, and of their behaviour towards libzmq.

    python client.py get TRACKER NAME FOLDER      downloads over each transport, and checks what a node must tolerate
    python client.py serve TRACKER PATH           publishes a file and serves it until it is killed
"""

import argparse
import os
import time

import cbor2
import zmq

import enjambre
from enjambre.wire import connect

TIMEOUT_MS = 20_000


def check_request_socket(endpoint):
    """A REQ socket sends an empty delimiter frame. Heartbeats keep an idle connection."""
    socket = zmq.Context.instance().socket(zmq.REQ)
    with socket:
        socket.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.HEARTBEAT_IVL, 100)
        lost = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        socket.connect(endpoint.replace("zmq://", "tcp://", 1))
        for _ in range(2):
            socket.send(cbor2.dumps({"v": 1, "id": 5, "request": "status"}))
            reply = cbor2.loads(socket.recv())
            assert reply["id"] == 5 and "reply" in reply, reply
            assert not lost.poll(500), "connection lost"
        socket.disable_monitor()


def check_errors(endpoint):
    """Invalid requests get an error reply and leave the connection usable."""
    with connect(endpoint) as connection:
        for kind, fields, code in [("dance", {}, "unsupported"), ("find", {"query": 5}, "malformed")]:
            try:
                connection.call(kind, **fields)
            except enjambre.RequestError as error:
                assert error.code == code, error
            else:
                raise AssertionError(f"{kind} was not refused")
        connection.call("status", "tracker_status")


def check_invalid_pieces(tracker, folder):
    """A peer whose file changed unnoticed sends pieces that do not match their hashes."""
    path = os.path.join(folder, "changed.bin")
    with open(path, "wb") as content:
        content.write(os.urandom(1_000_000))
    times = os.stat(path)
    listen = ("tcp://127.0.0.1:0", "zmq://127.0.0.1:0")
    with enjambre.Peer(tracker.endpoint, listen) as peer:
        peer.publish(path)
        with open(path, "r+b") as content:
            content.write(b"changed")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        try:
            enjambre.get(tracker, "changed.bin", os.path.join(folder, "copy.bin"))
        except enjambre.NoProvider as error:
            assert str(error).count("does not match its length and hash") == len(listen), error
        else:
            raise AssertionError("invalid pieces were accepted")
    assert not os.path.exists(os.path.join(folder, "copy.bin"))


def get(tracker_endpoint, name, folder):
    if tracker_endpoint.startswith("zmq:"):
        check_request_socket(tracker_endpoint)
    check_errors(tracker_endpoint)
    with enjambre.Tracker(tracker_endpoint) as tracker:
        for file in tracker.list():
            print(f"{file.id.hex()}  {file.size:>12}  {file.providers:>3}  {file.name}")
        record = tracker.find(name)
        assert record == tracker.find(record.id.hex()[:16])
        for scheme in enjambre.download.SCHEMES:
            seen = []
            path = os.path.join(folder, f"{scheme}.bin")
            enjambre.get(tracker, record, path, lambda *at: seen.append(at), schemes=[scheme])
            assert seen == sorted(seen) and seen[-1] == (record.size, record.size), seen
        check_invalid_pieces(tracker, folder)


def serve(tracker_endpoint, path):
    with enjambre.Peer(tracker_endpoint, ("tcp://127.0.0.1:0", "zmq://127.0.0.1:0")) as peer:
        print("published", peer.publish(path).hex(), flush=True)
        while True:
            time.sleep(60)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["get", "serve"])
    parser.add_argument("tracker")
    parser.add_argument("arguments", nargs="+")
    options = parser.parse_args()
    {"get": get, "serve": serve}[options.command](options.tracker, *options.arguments)


if __name__ == "__main__":
    main()
