//! The HTTP API of peers and trackers.

use std::fs;
use std::path::Path;

use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::http::{self, Response, begin};
use enjambre_tests::node::{Node, World};
use enjambre_tests::setup::Wire;
use enjambre_tests::wait::{TIMEOUT, wait_until};
use serde_json::{Value, json};

const HTTP: &str = "http.listen=[\"127.0.0.1:0\"]";
const JSON: &str = "Content-Type: application/json";

/// The API of a node.
struct Api(String);

impl Api {
    fn of(node: &mut Node) -> Self {
        Self(node.http_address())
    }

    #[track_caller]
    fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Response {
        let path = format!("/api/v1{path}");
        match body {
            Some(body) => http::send(&self.0, method, &path, &[JSON], body.to_string().as_bytes()),
            None => http::request(&self.0, method, &path, &[]),
        }
    }

    /// Returns the JSON of a successful response.
    #[track_caller]
    fn ok(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let response = self.send(method, path, body);
        assert!((200..300).contains(&response.status), "{method} {path}: {}", response.text());
        if response.status == 204 { Value::Null } else { serde_json::from_str(response.text()).unwrap() }
    }

    #[track_caller]
    fn get(&self, path: &str) -> Value {
        self.ok("GET", path, None)
    }

    /// Checks that a request fails with this status. Returns its problem details.
    #[track_caller]
    fn fails(&self, method: &str, path: &str, body: Option<&Value>, status: u16) -> Value {
        let response = self.send(method, path, body);
        assert_eq!(response.status, status, "{method} {path}: {}", response.text());
        assert_eq!(response.headers["content-type"], "application/problem+json");
        let problem: Value = serde_json::from_str(response.text()).unwrap();
        assert_eq!(problem["status"], status);
        assert!(problem["title"].is_string() && !problem["detail"].as_str().unwrap().is_empty());
        problem
    }

    #[track_caller]
    fn publish(&self, path: &Path) -> Value {
        let published = self.ok("POST", "/library", Some(&json!({ "paths": [path] })));
        published["published"][0].clone()
    }
}

fn names(page: &Value) -> Vec<String> {
    let files = page["files"].as_array().unwrap();
    files.iter().map(|file| file["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn catalogue_is_searched_page_by_page() {
    let world = World::default();
    let mut tracker = world.tracker_with("tracker", &[HTTP]);
    let mut peer = world.running_peer_with("peer", &[&tracker], &[HTTP]);
    let (peer_api, tracker_api) = (Api::of(&mut peer), Api::of(&mut tracker));
    for (name, size) in [("a.bin", 1), ("b.bin", 2), ("b.bin.sig", 3), ("c*.bin", 4)] {
        let published = peer_api.publish(&world.file(name, size).0);
        assert_eq!(
            (&published["name"], &published["version"], &published["new"]),
            (&json!(name), &json!(1), &json!(true))
        );
    }
    let (file, id) = world.file("new", 5);
    let request = json!({ "paths": [file], "name": "b.bin" });
    assert_eq!(peer_api.ok("POST", "/library", Some(&request))["published"][0]["version"], 2);
    for api in [&peer_api, &tracker_api] {
        for limit in [1, 2, 5, 1000] {
            let (mut found, mut cursor) = (Vec::new(), String::new());
            loop {
                let page = api.get(&format!("/files?limit={limit}{cursor}"));
                found.extend(names(&page));
                match page["next"].as_str() {
                    Some(next) => cursor = format!("&cursor={next}"),
                    None => break,
                }
            }
            assert_eq!(found, ["a.bin", "b.bin", "b.bin", "b.bin.sig", "c*.bin"]);
        }
        assert_eq!(names(&api.get("/files?pattern=sig")), ["b.bin.sig"]);
        assert_eq!(names(&api.get("/files?pattern=%3F.bin")), ["a.bin", "b.bin", "b.bin"]);
        let file = api.get("/files/b.bin");
        assert_eq!((&file["id"], &file["version"], &file["size"]), (&json!(id), &json!(2), &json!(5)));
        assert_eq!(file["providers"].as_array().unwrap().len(), 1);
        assert_eq!(file["providers"][0]["complete"], true);
        let versions = file["versions"].as_array().unwrap();
        assert_eq!(
            versions.iter().map(|version| version["version"].as_u64().unwrap()).collect::<Vec<_>>(),
            [2, 1]
        );
        assert_eq!(api.get(&format!("/files/{}", &id[..8]))["name"], "b.bin");
        let file = api.get("/files/c*.bin");
        let versions = file["versions"].as_array().unwrap().iter();
        let versions: Vec<_> = versions.map(|version| (&version["name"], &version["version"])).collect();
        assert_eq!(versions, [(&json!("c*.bin"), &json!(1))]);
        assert_eq!(names(&api.get("/files?pattern=/b.bin")), ["b.bin", "b.bin"]);
        assert_eq!(api.fails("GET", "/files/absent", None, 404)["code"], "not_found");
        api.fails("GET", "/files?cursor=AAAA", None, 400);
        api.fails("GET", "/files?limit=0", None, 400);
    }
    let online = tracker_api.get("/peers");
    assert_eq!((online["peers"].as_array().unwrap().len(), &online["peers"][0]["files"]), (1, &json!(5)));
    assert!(online["peers"][0]["endpoints"].to_string().contains(peer.endpoint()));
    let status = tracker_api.get("/status");
    assert_eq!(
        (&status["role"], &status["files"], &status["peers"]),
        (&json!("tracker"), &json!(5), &json!(1))
    );
    assert!(
        status["storage"].as_array().unwrap().iter().any(|operation| operation["count"].as_u64() > Some(0))
    );
    let status = peer_api.get("/status");
    assert_eq!((&status["role"], &status["files"]), (&json!("peer"), &json!(5)));
    assert_eq!(peer_api.get("/trackers")["trackers"], status["trackers"]);
}

#[test]
fn library_is_managed_by_requests() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let mut peer = world.running_peer_with("peer", &[&tracker], &[HTTP]);
    let api = Api::of(&mut peer);
    let (file, id) = world.file("film.bin", 3 * MIB);
    let request = json!({ "paths": [file], "name": "film", "store": true });
    assert_eq!(api.ok("POST", "/library", Some(&request))["published"][0]["id"], id);
    let library = api.get("/library");
    assert_eq!((&library["files"][0]["name"], &library["files"][0]["id"]), (&json!("film"), &json!(id)));
    let verified = api.ok("POST", "/library/film/verify", None);
    assert_eq!((&verified["results"][0]["bad"], &verified["results"][0]["missing"]), (&json!(0), &json!(0)));
    let output = world.path("out.bin");
    let request = json!({ "output": output });
    assert_eq!(api.ok("POST", "/library/film/export", Some(&request))["bytes"], 3 * MIB);
    assert_eq!(hash_of(&output), id);
    fs::write(&output, "mine").unwrap();
    api.fails("POST", "/library/film/export", Some(&request), 409);
    assert_eq!(fs::read(&output).unwrap(), b"mine");
    api.ok("POST", "/library/film/export", Some(&json!({ "output": output, "force": true })));

    let missing = world.path("missing");
    api.fails("POST", "/library", Some(&json!({ "paths": [missing] })), 400);
    let partial = api.ok("POST", "/library", Some(&json!({ "paths": [missing, file] })));
    assert_eq!(
        (&partial["published"][0]["name"], partial["warnings"].as_array().unwrap().len()),
        (&json!("film.bin"), 1)
    );
    for (path, body) in [
        ("/library", json!({ "paths": ["film.bin"] })),
        ("/library", json!({ "paths": [] })),
        ("/library", json!({ "paths": [file], "unknown": 1 })),
        ("/library/film/export", json!({ "output": "relative" })),
    ] {
        api.fails("POST", path, Some(&body), 400);
    }
    assert_eq!(api.get("/library")["files"][0]["names"], json!(["film.bin", "film"]));
    assert_eq!(api.ok("DELETE", "/library/film", None)["left"], "film.bin");
    assert_eq!(api.ok("DELETE", "/library/film.bin", None)["id"], id);
    api.fails("DELETE", "/library/film.bin", None, 404);
    assert_eq!(api.get("/library"), json!({ "files": [] }));
}

#[test]
fn replicas_are_pinned_by_requests() {
    let world = World::default();
    let mut tracker = world.tracker_with("tracker", &[HTTP, "tracker.store.enabled=true"]);
    let mut peer = world.running_peer_with("peer", &[&tracker], &[HTTP]);
    let (peer_api, tracker_api) = (Api::of(&mut peer), Api::of(&mut tracker));
    let id = peer_api.publish(&world.file("film.bin", MIB).0)["id"].clone();
    let query = json!({ "query": "film.bin" });
    wait_until("a complete replica", TIMEOUT, || {
        let replica = peer_api.ok("POST", "/pins", Some(&query));
        assert_eq!(replica["id"], id);
        (replica["complete"] == true).then_some(())
    });
    for api in [&peer_api, &tracker_api] {
        let pins = api.get("/pins")["pins"].clone();
        assert_eq!((&pins[0]["name"], &pins[0]["id"]), (&json!("film.bin"), &id));
    }
    assert_eq!(tracker_api.get("/status")["pins"]["count"], 1);
    tracker_api.ok("DELETE", "/pins/film.bin", None);
    tracker_api.fails("DELETE", "/pins/film.bin", None, 404);
    assert_eq!(peer_api.get("/pins")["pins"], json!([]));
}

#[test]
fn swarm_is_administered_by_requests() {
    let world = World::over(Wire::Secure);
    let mut tracker = world.tracker_with("tracker", &[HTTP, "swarm.admission=\"invite\""]);
    let api = Api::of(&mut tracker);
    assert_eq!(api.get("/status")["admission"], "invite");
    let request = json!({ "uses": 2, "lifetime_ms": 3_600_000 });
    let response = api.send("POST", "/invitations", Some(&request));
    assert_eq!(response.status, 201);
    let created: Value = serde_json::from_str(response.text()).unwrap();
    assert!(created["warnings"][0].as_str().unwrap().contains("this machine only"));
    let (member, id) = world.joined("member", created["invitation"].as_str().unwrap());
    let invitation = api.get("/invitations")["invitations"][0].clone();
    assert_eq!((&invitation["id"], &invitation["uses"]), (&created["id"], &json!(1)));
    assert_eq!(api.get("/members")["members"][0]["peer"], id);

    let reservation = json!({ "peer": &id[..8] });
    assert_eq!(api.ok("PUT", "/reservations/film", Some(&reservation))["peer"], id);
    api.ok("DELETE", "/reservations/film", None);
    api.fails("DELETE", "/reservations/film", None, 404);
    api.fails("PUT", "/reservations/film", Some(&json!({ "peer": "abcdef12" })), 404);
    api.fails("PUT", "/reservations/a%2Fb", Some(&reservation), 400);

    let revoked = api.ok("DELETE", &format!("/members/{}", &id[..8]), None);
    assert_eq!((&revoked["peer"], &revoked["new"]), (&json!(id), &json!(true)));
    assert_eq!(revoked["cancelled"][0]["id"], created["id"]);
    member.run(["list"]).expect_status(1);
    let created = api.ok("POST", "/invitations", Some(&request));
    let path = format!("/invitations/{}", created["id"].as_str().unwrap());
    api.ok("DELETE", &path, None);
    api.fails("DELETE", &path, None, 404);
    assert_eq!(api.get("/invitations")["invitations"], json!([]));
    for body in [json!({ "uses": 0, "lifetime_ms": 1 }), json!({ "uses": 1, "lifetime_ms": 0 }), json!({})] {
        api.fails("POST", "/invitations", Some(&body), 400);
    }

    let mut open = world.tracker_with("open", &[HTTP]);
    assert_eq!(Api::of(&mut open).fails("GET", "/members", None, 409)["code"], "unsupported");
}

#[test]
fn settings_limits_and_log_are_reported_and_changed() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let mut peer = world.running_peer_with("peer", &[&tracker], &[HTTP, "limits.upload=\"1MB/s\""]);
    let api = Api::of(&mut peer);
    assert_eq!(api.get("/config")["settings"]["limits.upload"], "1MB/s");
    assert_eq!(api.get("/limits"), json!({ "upload_rate": 1_000_000, "download_rate": null }));
    let limits = json!({ "upload_rate": null, "download_rate": 5_000_000 });
    assert_eq!(api.ok("PUT", "/limits", Some(&limits)), limits);
    assert_eq!(api.get("/limits"), limits);
    assert_eq!(api.ok("PUT", "/log/level", Some(&json!({ "level": "debug" })))["level"], "debug");
    assert_eq!(api.get("/log/level")["level"], "debug");
    api.fails("PUT", "/log/level", Some(&json!({ "level": "loud" })), 400);
    let lines = api.get("/log?limit=3")["lines"].clone();
    let last = lines.as_array().unwrap().last().unwrap();
    assert!(last["time_ms"].is_u64() && last["level"].is_string() && last["target"].is_string());
    let text = api.get("/log?limit=1000").to_string();
    assert!(text.contains("log level changed"), "{text}");
}

#[test]
fn token_never_appears_in_the_log() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let mut peer = world.running_peer_with("peer", &[&tracker], &[HTTP, "log.level=\"trace\""]);
    let api = Api::of(&mut peer);
    let token = fs::read_to_string(peer.folder().join("data/http-token")).unwrap();
    let token = token.trim();
    let bearer = format!("Authorization: Bearer {token}");
    assert_eq!(http::get(&api.0, "/api/v1/status", &[&bearer]).status, 200);
    assert_eq!(http::get(&api.0, "/api/v1/status", &["Authorization: Bearer wrong-token"]).status, 401);
    let log = api.get("/log?limit=1000").to_string() + &api.get("/config").to_string() + &peer.stderr_text();
    assert!(!log.contains(token) && !log.contains("wrong-token"));
}

/// Waits for an event with this name. Returns its id.
fn wait_event(lines: &mut impl Iterator<Item = String>, name: &str) -> String {
    let wanted = format!("event: {name}");
    lines.find(|line| *line == wanted).expect("the events do not end");
    lines.find_map(|line| Some(line.strip_prefix("id: ")?.to_owned())).expect("an event has an id")
}

#[test]
fn events_tell_changes_and_continue_after_a_reconnection() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let mut peer = world.running_peer_with("peer", &[&tracker], &[HTTP]);
    let api = Api::of(&mut peer);
    let mut events = begin(&api.0, "GET", "/api/v1/events", &[]).lines();
    wait_event(&mut events, "status");
    api.publish(&world.file("a.bin", 1).0);
    let id = wait_event(&mut events, "library");
    drop(events);
    let name = |id: &str| {
        let mut events = begin(&api.0, "GET", "/api/v1/events", &[&format!("Last-Event-ID: {id}")]).lines();
        events.find(|line| line.starts_with("event: ")).unwrap()
    };
    assert_ne!(name(&id), "event: reset");
    assert_eq!(name("1-1"), "event: reset", "an id of an earlier process");
}
