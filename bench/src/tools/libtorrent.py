"""One libtorrent session, driven by `enjambre-bench`.

    libtorrent.py seed TORRENT FOLDER UPLOAD_LIMIT     offers the content of FOLDER; prints the bytes sent so far, and when
    libtorrent.py get TORRENT FOLDER                   prints `complete` when all is verified and written, and stays
    libtorrent.py create PATH TORRENT                  makes a torrent
    libtorrent.py version
"""

import os
import sys
import time

import libtorrent as lt


def say(text):
    print(text, flush=True)


def session(upload_limit=0):
    return lt.session({
        "listen_interfaces": "127.0.0.1:0",
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        # uTP holds back for others, and there are none here.
        "enable_incoming_utp": False,
        "enable_outgoing_utp": False,
        "allow_multiple_connections_per_ip": True,
        "upload_rate_limit": upload_limit,
        "alert_mask": lt.alert.category_t.status_notification
        | lt.alert.category_t.error_notification
        | lt.alert.category_t.storage_notification,
    })


def limit_loopback_too(ses):
    """By default peers on the same machine are in a class of their own that no limit applies to."""
    peers = lt.ip_filter()
    peers.add_rule("0.0.0.0", "255.255.255.255", 1 << lt.session.global_peer_class_id)
    ses.set_peer_class_filter(peers)


def seed(torrent, folder, upload_limit):
    ses = session(upload_limit)
    limit_loopback_too(ses)
    params = lt.add_torrent_params()
    params.ti = lt.torrent_info(torrent)
    params.save_path = folder
    params.flags |= lt.torrent_flags.seed_mode
    params.flags &= ~lt.torrent_flags.auto_managed & ~lt.torrent_flags.paused
    handle = ses.add_torrent(params)
    while True:
        time.sleep(0.2)
        asked = time.time()
        say("sent %d %f" % (handle.status().total_payload_upload, asked))


def get(torrent, folder):
    # What Python takes to load the module is not counted.
    say("ready")
    ses = session()
    limit_loopback_too(ses)
    params = lt.add_torrent_params()
    params.ti = lt.torrent_info(torrent)
    params.save_path = folder
    params.flags &= ~lt.torrent_flags.auto_managed & ~lt.torrent_flags.paused
    handle = ses.add_torrent(params)
    while True:
        ses.wait_for_alert(1000)
        for alert in ses.pop_alerts():
            # `finished` comes before the last write.
            if isinstance(alert, lt.torrent_finished_alert):
                handle.flush_cache()
            elif isinstance(alert, lt.cache_flushed_alert):
                say("complete")
            elif isinstance(alert, (lt.file_error_alert, lt.torrent_error_alert)):
                sys.exit(alert.message())


def create(path, torrent):
    say("ready")
    storage = lt.file_storage()
    lt.add_files(storage, path)
    new = lt.create_torrent(storage, 0, lt.create_torrent.v1_only)
    lt.set_piece_hashes(new, os.path.dirname(path))
    with open(torrent, "wb") as out:
        out.write(lt.bencode(new.generate()))
    say("complete")


def main():
    command, arguments = sys.argv[1], sys.argv[2:]
    if command == "version":
        say(lt.__version__)
    elif command == "seed":
        seed(arguments[0], arguments[1], int(arguments[2]))
    elif command == "get":
        get(*arguments)
    elif command == "create":
        create(*arguments)


main()
