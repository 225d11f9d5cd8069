//! Access control of invite-only swarms: requests of non-members and members to real processes.

use enjambre_core::model::membership::{LIFE, Rights, SKEW, SignedMembership};
use enjambre_core::model::secret::Secret;
use enjambre_core::protocol::error::ErrorCode;
use enjambre_core::protocol::message::{Nonce, Reply, Request, SessionProof};
use enjambre_core::runtime::clock::{Clock, SystemClock};
use enjambre_core::{FileId, FileKind, KeyPair, Offer, SessionId};
use enjambre_swarm::membership::credentials::authority::Authority;
use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::node::World;
use enjambre_tests::outsider::Outsider;
use enjambre_tests::setup::Wire;
use enjambre_tests::wait::{TIMEOUT, wait_for};
use std::time::Duration;

const INVITED: &str = "swarm.admission=\"invite\"";

/// Returns a request of each kind, except `open_session` without a proof.
fn all_requests(id: FileId) -> Vec<Request> {
    let session = SessionId([7; 16]);
    let name = "film.bin".parse().unwrap();
    let key = KeyPair::generate();
    let nonce = Nonce([7; 32]);
    let signature = key.sign(b"something else");
    let proof = SessionProof { key: key.public(), nonce, signature, endpoints: Vec::new() };
    let forger = Authority::new(KeyPair::generate());
    vec![
        Request::OpenSession { proof: Some(proof) },
        Request::Publish { session, name, id, size: 1, kind: FileKind::File, again: None },
        Request::Announce { session, offers: vec![Offer { id, size: 1, complete: true }] },
        Request::Withdraw { session, ids: vec![id] },
        Request::Renew { session, membership: None },
        Request::Leave { session },
        Request::Pin { session, id },
        Request::Unpin { session, id },
        Request::Pins { session, after: None },
        Request::Join { secret: Secret::generate() },
        Request::Authorize { membership: forger.admit(key.peer_id(), Rights::Full, SystemClock.now()) },
        Request::Find { query: "film.bin".to_owned() },
        Request::Providers { id },
        Request::List { pattern: String::new(), cursor: None, limit: 10 },
        Request::Status,
        Request::Manifest { id, first: 0 },
        Request::Have { id, wait: None },
        Request::Piece { id, index: 0, super_seed: false },
        Request::Files { ids: vec![id] },
        Request::Cancel { ids: Vec::new() },
    ]
}

#[test]
fn outsider_gets_unauthorized_from_all_nodes() {
    let world = World::over(Wire::Secure);
    // A tracker with a replica store also serves pieces.
    let tracker = world.tracker_with("tracker", &[INVITED, "tracker.store.enabled=true"]);
    let (mut a, _) = world.joined("a", &tracker.invite(&[]));
    a.start();
    let (file, hash) = world.file("film.bin", MIB);
    a.publish(&file, &["--pin"]);
    let id: FileId = hash.parse().unwrap();
    let outsider = Outsider::new().unwrap();
    let at_tracker = outsider.connect(tracker.endpoint()).unwrap();
    let at_peer = outsider.connect(a.endpoint()).unwrap();
    for request in all_requests(id) {
        for (node, connection) in [("the tracker", &at_tracker), ("the peer", &at_peer)] {
            assert_eq!(
                connection.refusal(&request).unwrap(),
                ErrorCode::Unauthorized,
                "{request:?} at {node}"
            );
        }
    }
    let open_session = Request::OpenSession { proof: None };
    assert!(
        matches!(at_tracker.request(&open_session), Ok(Reply::OpenSession { grant: None, .. })),
        "the catalogue id is public"
    );
    assert_eq!(at_peer.refusal(&open_session).unwrap(), ErrorCode::Unauthorized);

    // A member may use the same connections.
    let membership = outsider.join(&tracker.invite(&[])).unwrap();
    assert!(matches!(
        at_tracker.request(&Request::Find { query: "film.bin".to_owned() }),
        Ok(Reply::Find { .. })
    ));
    let at_peer = outsider.connect(a.endpoint()).unwrap();
    at_peer.request(&Request::Authorize { membership }).unwrap();
    assert!(matches!(at_peer.request(&Request::Piece { id, index: 0, super_seed: false }), Ok(Reply::Piece)));
}

#[test]
fn invalid_memberships_are_rejected() {
    let world = World::over(Wire::Secure);
    let authority = Authority::new(KeyPair::generate());
    let setting = format!("swarm.authority=\"{}\"", authority.key());
    // The checks of a peer need no tracker.
    let peer = world.running_peer_with("peer", &[], &[&setting]);
    let outsider = Outsider::new().unwrap();
    let now = SystemClock.now();
    let from = |from| authority.admit(outsider.peer(), Rights::Full, from);
    let changed = |at: usize| {
        let mut bytes = authority.admit(outsider.peer(), Rights::ReadOnly, now).as_bytes().to_vec();
        bytes[at] ^= 1;
        SignedMembership::from_bytes(&bytes).unwrap()
    };
    let cases = [
        ("valid", from(now), true),
        ("expired within the clock skew", from(now - LIFE - SKEW / 2), true),
        ("expired", from(now - LIFE - SKEW), false),
        ("long expired", from(now - 2 * LIFE), false),
        ("early within the clock skew", from(now + SKEW / 2), true),
        ("not yet valid", from(now + 2 * SKEW), false),
        ("changed version", changed(0), false),
        ("changed peer", changed(1), false),
        ("changed rights", changed(33), false),
        ("changed start", changed(41), false),
        ("changed end", changed(49), false),
        ("changed signature", changed(50), false),
        (
            "membership of another peer",
            authority.admit(KeyPair::generate().peer_id(), Rights::Full, now),
            false,
        ),
        (
            "membership of another authority",
            Authority::new(KeyPair::generate()).admit(outsider.peer(), Rights::Full, now),
            false,
        ),
    ];
    for (case, membership, valid) in cases {
        // An authorized connection stays authorized, so each case uses a new one.
        let connection = outsider.connect(peer.endpoint()).unwrap();
        let authorize = Request::Authorize { membership };
        if valid {
            assert!(matches!(connection.request(&authorize), Ok(Reply::Authorized { .. })), "{case}");
            assert!(matches!(connection.request(&Request::Status), Ok(Reply::PeerStatus(_))), "{case}");
        } else {
            assert_eq!(connection.refusal(&authorize).unwrap(), ErrorCode::Unauthorized, "{case}");
            assert_eq!(connection.refusal(&Request::Status).unwrap(), ErrorCode::Unauthorized, "{case}");
        }
    }

    // A membership that expires during a connection ends its authorization. On a loaded machine the short membership may
    // expire before its use.
    let authorized = [3, 30].into_iter().find_map(|seconds| {
        let connection = outsider.connect(peer.endpoint()).unwrap();
        let membership = from(SystemClock.now() + Duration::from_secs(seconds) - LIFE - SKEW);
        connection.request(&Request::Authorize { membership }).ok()?;
        connection.request(&Request::Status).ok()?;
        Some((connection, membership))
    });
    let (connection, membership) = authorized.expect("a membership is valid until it expires");
    wait_for("the expiry of the membership", TIMEOUT, || connection.request(&Request::Status).is_err());
    assert_eq!(connection.refusal(&Request::Status).unwrap(), ErrorCode::Unauthorized);
    assert_eq!(connection.refusal(&Request::Authorize { membership }).unwrap(), ErrorCode::Unauthorized);
}

#[test]
fn member_cannot_exceed_its_rights() {
    let world = World::over(Wire::Secure);
    let tracker = world.tracker_with("tracker", &[INVITED]);
    let (mut owner, owner_id) = world.joined("owner", &tracker.invite(&[]));
    owner.start();
    let (file, hash) = world.file("film.bin", MIB);
    tracker.run(["reserve", "film.bin", &owner_id]).ok();
    owner.publish(&file, &[]);
    let (id, size, kind) = (hash.parse().unwrap(), MIB, FileKind::File);
    let publish = |session, name: &str| {
        let id = FileId::from_bytes([9; 32]);
        Request::Publish { session, name: name.parse().unwrap(), id, size, kind, again: None }
    };

    let reader = Outsider::new().unwrap();
    reader.join(&tracker.invite(&["--read-only"])).unwrap();
    let session = reader.session(tracker.endpoint()).unwrap();
    let connection = reader.connect(tracker.endpoint()).unwrap();
    assert_eq!(connection.refusal(&publish(session, "mine")).unwrap(), ErrorCode::Forbidden);
    assert_eq!(connection.refusal(&Request::Pin { session, id }).unwrap(), ErrorCode::Forbidden);
    let offers = vec![Offer { id, size, complete: true }];
    assert!(matches!(
        connection.request(&Request::Announce { session, offers }),
        Ok(Reply::Announced { .. })
    ));

    let writer = Outsider::new().unwrap();
    writer.join(&tracker.invite(&[])).unwrap();
    let writer_session = writer.session(tracker.endpoint()).unwrap();
    let connection = writer.connect(tracker.endpoint()).unwrap();
    assert_eq!(connection.refusal(&publish(writer_session, "film.bin")).unwrap(), ErrorCode::Forbidden);
    assert!(matches!(connection.request(&publish(writer_session, "other.bin")), Ok(Reply::Published { .. })));
    // Another member cannot use a session id that it has learned.
    let thief = Outsider::new().unwrap();
    thief.join(&tracker.invite(&[])).unwrap();
    let thief_connection = thief.connect(tracker.endpoint()).unwrap();
    let ids = vec![FileId::from_bytes([9; 32])];
    for request in [
        publish(writer_session, "mine"),
        Request::Announce { session: writer_session, offers: vec![Offer { id, size, complete: true }] },
        Request::Withdraw { session: writer_session, ids },
        Request::Renew { session: writer_session, membership: None },
        Request::Pin { session: writer_session, id },
        Request::Unpin { session: writer_session, id },
        Request::Leave { session: writer_session },
    ] {
        assert_eq!(thief_connection.refusal(&request).unwrap(), ErrorCode::Unauthorized, "{request:?}");
    }
    assert!(matches!(
        connection.request(&Request::Renew { session: writer_session, membership: None }),
        Ok(Reply::Renewed { .. })
    ));
    let own = thief.session(tracker.endpoint()).unwrap();
    assert!(
        matches!(thief_connection.request(&publish(own, "own.bin")), Ok(Reply::Published { .. })),
        "its own session is valid"
    );
    let got = world.path("got.bin");
    let (b, _) = world.joined("b", &tracker.invite(&[]));
    b.get_to("film.bin", &got);
    assert_eq!(hash_of(&got), hash);
    let listed = b.listed("film.bin").unwrap();
    assert_eq!(listed["publisher"], owner_id.as_str());
}
