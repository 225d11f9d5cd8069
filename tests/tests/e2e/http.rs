//! The HTTP gateway and the health checks.

use std::fs;

use enjambre_tests::content::MIB;
use enjambre_tests::http::{get, request};
use enjambre_tests::node::{Peer, Tracker, World};
use enjambre_tests::wait::{TIMEOUT, wait_for};
use serde_json::Value;

const HTTP: &str = "http.listen=[\"127.0.0.1:0\"]";

/// A swarm with a peer that publishes and one with a gateway, and the address of the gateway.
pub(crate) fn swarm(world: &World, settings: &[&str]) -> (Tracker, Peer, Peer, String) {
    let tracker = world.tracker("tracker");
    let source = world.running_peer("source", &[&tracker]);
    let mut gateway = world.running_peer_with("gateway", &[&tracker], &[&[HTTP], settings].concat());
    let address = gateway.http_address();
    (tracker, source, gateway, address)
}

fn range(from: u64, to: u64) -> String {
    format!("Range: bytes={from}-{to}")
}

#[test]
fn requested_range_arrives_before_the_rest_of_an_absent_file() {
    let world = World::default();
    let size = 64 * MIB;
    let (file, _) = world.file("film.bin", size);
    // At this rate, the whole file takes more than a minute.
    let (_tracker, source, gateway, address) = swarm(&world, &["limits.download=\"1MB/s\""]);
    source.publish(&file, &[]);
    let content = fs::read(&file).unwrap();
    let middle = 40 * MIB + 17;
    let response = get(&address, "/files/film.bin", &[&range(middle, middle + 99)]);
    assert_eq!(response.status, 206);
    assert_eq!(response.headers["content-range"], format!("bytes {middle}-{}/{size}", middle + 99));
    assert_eq!(response.body, content[middle as usize..][..100]);
    let entry = gateway.in_library("film.bin").unwrap();
    assert!(
        entry["available_pieces"].as_u64() < entry["pieces"].as_u64().map(|pieces| pieces / 3),
        "the whole file was downloaded before: {entry}"
    );
}

#[test]
fn absent_file_is_sent_while_it_is_downloaded_and_can_be_resumed() {
    let world = World::default();
    let (file, id) = world.file("film.bin", 20 * MIB + 3);
    let (_tracker, source, _gateway, address) = swarm(&world, &[]);
    source.publish(&file, &[]);
    let content = fs::read(&file).unwrap();
    let rest = get(&address, "/files/film.bin", &["Range: bytes=5000001-"]);
    assert_eq!((rest.status, rest.body == content[5_000_001..]), (206, true));
    let whole = get(&address, &format!("/files/{id}"), &[]);
    assert_eq!((whole.status, whole.body == content), (200, true));
    assert_eq!(whole.headers["etag"], format!("\"{id}\""));
    assert!(whole.headers["cache-control"].contains("immutable"), "an id never has other content");
}

#[test]
fn ranges_and_conditions_follow_the_standard() {
    let world = World::default();
    let (file, id) = world.file("film.mp4", MIB);
    let (_tracker, source, _gateway, address) = swarm(&world, &[]);
    source.publish(&file, &[]);
    let content = fs::read(&file).unwrap();
    let fetch = |headers: &[&str]| get(&address, "/files/film.mp4", headers);
    let etag = format!("\"{id}\"");

    let head = request(&address, "HEAD", "/files/film.mp4", &[]);
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.headers["content-length"], MIB.to_string());
    assert_eq!(head.headers["content-type"], "video/mp4");
    assert_eq!(head.headers["accept-ranges"], "bytes");
    assert!(
        !head.headers["content-security-policy"].contains("sandbox"),
        "a player fetches the content again"
    );

    let several = fetch(&["Range: bytes=0-3,1000-1003"]);
    assert_eq!((several.status, several.is_complete()), (206, true));
    let kind = &several.headers["content-type"];
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap();
    let mut expected = Vec::new();
    for start in [0, 1000] {
        let head = format!(
            "\r\n--{boundary}\r\nContent-Type: video/mp4\r\nContent-Range: bytes {start}-{}/{MIB}\r\n\r\n",
            start + 3
        );
        expected.extend_from_slice(head.as_bytes());
        expected.extend_from_slice(&content[start..][..4]);
    }
    expected.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    assert_eq!(several.body, expected);

    let beyond = fetch(&[&range(MIB, MIB)]);
    assert_eq!((beyond.status, beyond.headers["content-range"].as_str()), (416, "bytes */1048576"));
    assert_eq!(beyond.headers["content-type"], "application/problem+json");
    assert_eq!(fetch(&[&format!("If-None-Match: {etag}")]).status, 304);
    assert_eq!(fetch(&["If-None-Match: \"other\""]).status, 200);
    assert_eq!(fetch(&["If-Match: \"other\""]).status, 412);
    assert_eq!(fetch(&["Range: bytes=0-3", &format!("If-Range: {etag}")]).status, 206);
    assert_eq!(fetch(&["Range: bytes=0-3", "If-Range: \"other\""]).status, 200);
    let post = request(&address, "POST", "/files/film.mp4", &["Content-Length: 0"]);
    assert_eq!((post.status, post.headers["content-type"].as_str()), (405, "application/problem+json"));
    assert!(post.headers["allow"].contains("PUT"), "{:?}", post.headers);
}

#[test]
fn directory_is_listed_and_its_files_are_sent() {
    let world = World::default();
    let folder = world.path("photos");
    fs::create_dir_all(folder.join("2024/<b>")).unwrap();
    fs::write(folder.join("index.txt"), "index").unwrap();
    fs::write(folder.join("2024/<b>/ü&.txt"), "umlaut").unwrap();
    let (_tracker, source, _gateway, address) = swarm(&world, &[]);
    source.publish(&folder, &[]);
    let fetch = |path: &str| get(&address, path, &[]);

    assert_eq!(fetch("/files/photos").headers["location"], "/files/photos/");
    assert_eq!(fetch("/files/photos/2024?x=1").headers["location"], "/files/photos/2024/?x=1");
    let page = fetch("/files/photos/2024/");
    assert_eq!(page.status, 200);
    assert!(page.text().contains("<a href=\"./%3Cb%3E/\"><bdi>&lt;b&gt;</bdi>/</a>"), "{}", page.text());
    let list = get(&address, "/files/photos/", &["Accept: application/json"]);
    let list: Value = serde_json::from_slice(&list.body).unwrap();
    let names: Vec<_> = list["entries"].as_array().unwrap().iter().map(|entry| &entry["name"]).collect();
    assert_eq!(names, ["2024", "index.txt"]);
    assert_eq!(list["entries"][0]["kind"], "directory");
    assert_eq!(list["entries"][1]["size"], 5);

    assert!(fetch("/files/photos/index.txt").headers["content-security-policy"].starts_with("sandbox;"));
    let file = fetch("/files/photos/2024/%3Cb%3E/%C3%BC%26.txt");
    assert_eq!((file.status, file.text()), (200, "umlaut"));
    assert_eq!(file.headers["content-disposition"], "inline; filename*=UTF-8''%C3%BC%26.txt");
    for path in
        ["missing", "../source/data/key", "%2e%2e/%2e%2e/key", "index.txt/", "2024/%00", "//index.txt"]
    {
        assert_eq!(fetch(&format!("/files/photos/{path}")).status, 404, "{path}");
    }
    assert_eq!(fetch("/files/unknown").status, 404);
}

#[test]
fn body_of_failed_download_ends_early() {
    let world = World::default();
    let (file, _) = world.file("film.bin", 32 * MIB);
    let settings = ["limits.download=\"4MB/s\"", "download.provider_timeout=\"1s\""];
    let (_tracker, mut source, gateway, address) = swarm(&world, &settings);
    source.publish(&file, &[]);
    let reading = std::thread::spawn(move || get(&address, "/files/film.bin", &[]));
    let stored = || gateway.in_library("film.bin").and_then(|entry| entry["available_pieces"].as_u64());
    wait_for("the first pieces", TIMEOUT, || stored().is_some_and(|have| have > 2));
    source.kill();
    let response = reading.join().unwrap();
    assert_eq!(response.status, 200);
    assert!(!response.is_complete(), "the client must notice that {} bytes are not all", response.body.len());
    assert!(fs::read(&file).unwrap().starts_with(&response.body), "only verified content is sent");
}

#[test]
fn web_pages_of_other_origins_are_refused() {
    let world = World::default();
    let (_tracker, _source, _gateway, address) = swarm(&world, &["http.allowed_hosts=[\"files.example\"]"]);
    let status = |headers: &[&str]| get(&address, "/healthz", headers).status;
    assert_eq!(status(&["Host: attacker.example"]), 421, "DNS rebinding");
    assert_eq!(status(&["Host: files.example:80"]), 200);
    assert_eq!(status(&["Host: 127.0.0.1"]), 200);
    assert_eq!(status(&["Origin: http://attacker.example"]), 403);
    assert_eq!(status(&["Origin: null"]), 403);
    assert_eq!(status(&["Origin: http://localhost"]), 200);
    assert_eq!(status(&["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"]), 403, "an image in a page");
    let frame = ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"];
    assert_eq!(status(&frame), 403);
    let link = ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"];
    assert_eq!(status(&link), 200);
    assert_eq!(status(&["Authorization: Bearer wrong"]), 401);
}

#[test]
fn token_of_data_directory_is_accepted() {
    let world = World::default();
    let (_tracker, _source, _gateway, address) = swarm(&world, &[]);
    let path = world.path("gateway/data/http-token");
    let token = fs::read_to_string(&path).unwrap();
    assert_eq!(get(&address, "/healthz", &[&format!("Authorization: Bearer {}", token.trim())]).status, 200);
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&path).unwrap());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn peer_without_tracker_is_alive_and_not_ready() {
    let world = World::default();
    let (mut tracker, _source, _gateway, address) = swarm(&world, &[]);
    wait_for("the tracker", TIMEOUT, || get(&address, "/readyz", &[]).status == 200);
    tracker.kill();
    wait_for("the loss of the tracker", TIMEOUT, || {
        let response = get(&address, "/readyz", &[]);
        let report: Value = serde_json::from_slice(&response.body).unwrap();
        let mut checks = report["checks"].as_array().unwrap().iter();
        let has_failed = |check: &Value| check["name"] == "tracker" && !check["problem"].is_null();
        response.status == 503 && checks.any(has_failed)
    });
    assert_eq!(get(&address, "/healthz", &[]).status, 200);
}

#[test]
fn tracker_with_a_store_has_a_gateway() {
    let world = World::default();
    let (file, _) = world.file("film.bin", 3 * MIB);
    let mut tracker = world.tracker_with("tracker", &[HTTP, "tracker.store.enabled=true"]);
    let address = tracker.http_address();
    let source = world.running_peer("source", &[&tracker]);
    source.publish(&file, &[]);
    assert_eq!(get(&address, "/files/film.bin", &[]).status, 404, "it is not pinned");
    source.publish(&file, &["--pin"]);
    let response = get(&address, "/files/film.bin", &[]);
    assert!(response.status == 200 && response.body == fs::read(&file).unwrap());
    wait_for("a tracker that is ready", TIMEOUT, || get(&address, "/readyz", &[]).status == 200);
}

#[test]
fn plaintext_beyond_loopback_needs_permission() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let mut peer = world.peer_with("peer", &[&tracker], &["http.listen=[\"0.0.0.0:0\"]"]);
    let output = peer.try_start().unwrap_err();
    assert!(output.stderr.contains("http.allow_plaintext"), "{}", output.stderr);
    peer.set("http.allow_plaintext=true");
    peer.try_start().unwrap();
}
