//! Swarms by invitation as those see them who do not belong to them, or not so far: over the wire, at real processes.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use enjambre_core::clock::{Clock, SystemClock};
use enjambre_core::model::id::FileId;
use enjambre_core::model::identity::KeyPair;
use enjambre_core::model::record::{FileKind, Offer};
use enjambre_core::protocol::error::ErrorCode;
use enjambre_core::protocol::message::{HelloProof, Nonce, Reply, Request, SessionId};
use enjambre_core::swarm::authority::Authority;
use enjambre_core::swarm::invitation::Secret;
use enjambre_core::swarm::membership::{LIFE_MS, Rights, SKEW_MS, SignedMembership};
use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::node::{Wire, World};
use enjambre_tests::outsider::Outsider;
use enjambre_tests::wait::{LONG, wait_for};

const INVITED: &str = "swarm.admission=\"invited\"";

/// One request of each kind, but for `hello` without a proof.
fn everything(id: FileId) -> Vec<Request> {
    let session = SessionId([7; 16]);
    let name = "film.bin".parse().unwrap();
    let key = KeyPair::generate();
    let nonce = Nonce([7; 32]);
    let signature = key.sign(b"something else");
    let proof = HelloProof { key: key.public(), nonce, signature, endpoints: Vec::new() };
    let forger = Authority::new(KeyPair::generate());
    vec![
        Request::Hello { proof: Some(proof) },
        Request::Publish { session, name, id, size: 1, kind: FileKind::File },
        Request::Announce { session, offers: vec![Offer { id, size: 1, complete: true }] },
        Request::Withdraw { session, ids: vec![id] },
        Request::Renew { session, known: None },
        Request::Leave { session },
        Request::Pin { session, id },
        Request::Unpin { session, id },
        Request::Join { secret: Secret::generate() },
        Request::Introduce { membership: forger.admit(key.peer_id(), Rights::Full, SystemClock.now_ms()) },
        Request::Find { query: "film.bin".to_owned() },
        Request::Providers { id },
        Request::List { pattern: String::new(), cursor: None, limit: 10 },
        Request::Status,
        Request::Manifest { id, first: 0 },
        Request::Have { id, wait: None },
        Request::Piece { id, index: 0, sparing: false },
        Request::Files { ids: vec![id] },
        Request::Cancel { ids: Vec::new() },
    ]
}

#[test]
fn a_stranger_gets_unauthorized_from_trackers_and_peers_and_nothing_else() {
    let world = World::over(Wire::Secure);
    // One that keeps copies would have all of it to give away.
    let tracker = world.tracker_with("tracker", &[INVITED, "tracker.store.enabled=true"]);
    let (mut a, _) = world.joined("a", &tracker.invite(&[]));
    a.start();
    let (file, hash) = world.file("film.bin", MIB);
    a.publish(&file, &["--pin"]);
    let id: FileId = hash.parse().unwrap();
    let stranger = Outsider::new().unwrap();
    let at_tracker = stranger.connect(tracker.endpoint()).unwrap();
    let at_peer = stranger.connect(a.endpoint()).unwrap();
    for request in everything(id) {
        for (at, line) in [("the tracker", &at_tracker), ("the peer", &at_peer)] {
            assert_eq!(line.refused(&request).unwrap(), ErrorCode::Unauthorized, "{request:?} at {at}");
        }
    }
    let hello = Request::Hello { proof: None };
    assert!(
        matches!(at_tracker.ask(&hello), Ok(Reply::Hello { welcome: None, .. })),
        "which catalogue it is"
    );
    assert_eq!(at_peer.refused(&hello).unwrap(), ErrorCode::Unauthorized);

    // Over the same connections a member is answered.
    let membership = stranger.join(&tracker.invite(&[])).unwrap();
    assert!(matches!(
        at_tracker.ask(&Request::Find { query: "film.bin".to_owned() }),
        Ok(Reply::Find { .. })
    ));
    let at_peer = stranger.connect(a.endpoint()).unwrap();
    at_peer.ask(&Request::Introduce { membership }).unwrap();
    assert!(matches!(at_peer.ask(&Request::Piece { id, index: 0, sparing: false }), Ok(Reply::Piece)));
}

#[test]
fn a_peer_takes_no_membership_that_is_over_changed_early_or_of_somebody_else() {
    let world = World::over(Wire::Secure);
    let authority = Authority::new(KeyPair::generate());
    let setting = format!("swarm.authority=\"{}\"", authority.key());
    // It reaches no tracker, and needs none for this.
    let peer = world.running_peer_with("peer", &[], &[&setting]);
    let outsider = Outsider::new().unwrap();
    let now = SystemClock.now_ms();
    let from = |from| authority.admit(outsider.peer(), Rights::Full, from);
    let changed = |at: usize| {
        let mut bytes = authority.admit(outsider.peer(), Rights::ReadOnly, now).as_bytes().to_vec();
        bytes[at] ^= 1;
        SignedMembership::from_bytes(&bytes).unwrap()
    };
    let cases = [
        ("it is good", from(now), true),
        ("over, but for the clocks", from(now - LIFE_MS - SKEW_MS / 2), true),
        ("over", from(now - LIFE_MS - SKEW_MS), false),
        ("over for long", from(now - 2 * LIFE_MS), false),
        ("early, but for the clocks", from(now + SKEW_MS / 2), true),
        ("early", from(now + 2 * SKEW_MS), false),
        ("another version", changed(0), false),
        ("another peer", changed(1), false),
        ("other rights", changed(33), false),
        ("another begin", changed(41), false),
        ("another end", changed(49), false),
        ("another signature", changed(50), false),
        ("of somebody else", authority.admit(KeyPair::generate().peer_id(), Rights::Full, now), false),
        (
            "of another authority",
            Authority::new(KeyPair::generate()).admit(outsider.peer(), Rights::Full, now),
            false,
        ),
    ];
    for (what, membership, good) in cases {
        // A new one each time: over one where it was let in before, it still is.
        let line = outsider.connect(peer.endpoint()).unwrap();
        let shown = Request::Introduce { membership };
        if good {
            assert!(matches!(line.ask(&shown), Ok(Reply::Introduced { .. })), "{what}");
            assert!(matches!(line.ask(&Request::Status), Ok(Reply::PeerStatus(_))), "{what}");
        } else {
            assert_eq!(line.refused(&shown).unwrap(), ErrorCode::Unauthorized, "{what}");
            assert_eq!(line.refused(&Request::Status).unwrap(), ErrorCode::Unauthorized, "{what}");
        }
    }

    // One that ends while it is there: from then on it is refused, over what is open too.
    let line = outsider.connect(peer.endpoint()).unwrap();
    let membership = from(SystemClock.now_ms() + 30_000 - LIFE_MS - SKEW_MS);
    line.ask(&Request::Introduce { membership }).unwrap();
    line.ask(&Request::Status).unwrap();
    wait_for("its end", LONG, || line.ask(&Request::Status).is_err());
    assert_eq!(line.refused(&Request::Status).unwrap(), ErrorCode::Unauthorized);
    assert_eq!(line.refused(&Request::Introduce { membership }).unwrap(), ErrorCode::Unauthorized);
}

#[test]
fn what_a_member_may_not_do_is_not_done_however_it_is_asked_for() {
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
        Request::Publish { session, name: name.parse().unwrap(), id, size, kind }
    };

    let reader = Outsider::new().unwrap();
    reader.join(&tracker.invite(&["--read-only"])).unwrap();
    let session = reader.session(tracker.endpoint()).unwrap();
    let line = reader.connect(tracker.endpoint()).unwrap();
    assert_eq!(line.refused(&publish(session, "mine")).unwrap(), ErrorCode::Forbidden);
    assert_eq!(line.refused(&Request::Pin { session, id }).unwrap(), ErrorCode::Forbidden);
    let offers = vec![Offer { id, size, complete: true }];
    assert!(matches!(line.ask(&Request::Announce { session, offers }), Ok(Reply::Announced { .. })));

    let writer = Outsider::new().unwrap();
    writer.join(&tracker.invite(&[])).unwrap();
    let theirs = writer.session(tracker.endpoint()).unwrap();
    let line = writer.connect(tracker.endpoint()).unwrap();
    assert_eq!(line.refused(&publish(theirs, "film.bin")).unwrap(), ErrorCode::Forbidden);
    assert!(matches!(line.ask(&publish(theirs, "other.bin")), Ok(Reply::Published { .. })));
    // Nobody does anything in the name of somebody else, whatever it got to know.
    let thief = Outsider::new().unwrap();
    thief.join(&tracker.invite(&[])).unwrap();
    let stolen = thief.connect(tracker.endpoint()).unwrap();
    let ids = vec![FileId::from_bytes([9; 32])];
    for request in [
        publish(theirs, "mine"),
        Request::Announce { session: theirs, offers: vec![Offer { id, size, complete: true }] },
        Request::Withdraw { session: theirs, ids },
        Request::Renew { session: theirs, known: None },
        Request::Pin { session: theirs, id },
        Request::Unpin { session: theirs, id },
        Request::Leave { session: theirs },
    ] {
        assert_eq!(stolen.refused(&request).unwrap(), ErrorCode::Unauthorized, "{request:?}");
    }
    assert!(matches!(line.ask(&Request::Renew { session: theirs, known: None }), Ok(Reply::Done)));
    let own = thief.session(tracker.endpoint()).unwrap();
    assert!(matches!(stolen.ask(&publish(own, "own.bin")), Ok(Reply::Published { .. })), "it may by its own");
    let got = world.path("got.bin");
    let (b, _) = world.joined("b", &tracker.invite(&[]));
    b.get_to("film.bin", &got);
    assert_eq!(hash_of(&got), hash);
    let listed = b.listed("film.bin").unwrap();
    assert_eq!(listed["publisher"], owner_id.as_str());
}
