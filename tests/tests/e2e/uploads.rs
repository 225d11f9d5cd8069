//! Uploads to the HTTP listener.

use std::fs;
use std::path::PathBuf;

use enjambre_tests::content::MIB;
use enjambre_tests::http::{Response, begin, get, request, send};
use enjambre_tests::mount::Mount;
use enjambre_tests::node::{Peer, Tracker, World};
use enjambre_tests::process_stats;
use enjambre_tests::setup::Setup;
use enjambre_tests::wait::{TIMEOUT, wait_for};
use serde_json::Value;

const HTTP: &str = "http.listen=[\"127.0.0.1:0\"]";

/// A swarm with a peer that receives uploads, and the address of its listener.
fn swarm(world: &World) -> (Tracker, Peer, String) {
    let tracker = world.tracker("tracker");
    let mut peer = world.running_peer_with("peer", &[&tracker], &[HTTP]);
    let address = peer.http_address();
    (tracker, peer, address)
}

/// The directory with the content that a peer receives.
fn spool(peer: &Peer) -> PathBuf {
    peer.folder().join("data/spool")
}

fn spooled(peer: &Peer) -> usize {
    fs::read_dir(spool(peer)).into_iter().flatten().count()
}

fn json(response: &Response) -> Value {
    serde_json::from_slice(&response.body).unwrap_or_else(|error| panic!("{error}: {response:?}"))
}

#[test]
fn uploaded_file_is_downloaded_by_another_peer() {
    for setup in ["sqlite", "sqlite+files"] {
        let world = World::new(setup.parse::<Setup>().unwrap());
        let (file, id) = world.file("original", 3 * MIB + 17);
        let content = fs::read(&file).unwrap();
        let (tracker, peer, address) = swarm(&world);
        let other = world.running_peer("other", &[&tracker]);
        let created = send(&address, "PUT", "/files/%C3%BC%20%26.bin", &[], &content);
        assert_eq!(created.status, 201, "{created:?}");
        assert_eq!(created.headers["location"], "/files/%C3%BC%20%26.bin");
        assert_eq!(created.headers["etag"], format!("\"{id}\""));
        let expected = serde_json::json!({
            "name": "ü &.bin", "id": id, "size": content.len(), "kind": "file", "version": 1, "new": true
        });
        assert_eq!(json(&created), expected);
        other.get_to("ü &.bin", &world.path("copy"));
        assert!(fs::read(world.path("copy")).unwrap() == content, "the copy differs");
        assert!(get(&address, &created.headers["location"], &[]).body == content, "the gateway sends it");
        let again = send(&address, "PUT", "/files/%C3%BC%20%26.bin", &[], &content);
        assert_eq!((again.status, &json(&again)["new"]), (201, &Value::Bool(false)));
        let empty = send(&address, "PUT", "/files/empty", &[], b"");
        assert_eq!((empty.status, &json(&empty)["size"]), (201, &0.into()));
        assert_eq!(spooled(&peer), 0);
    }
}

#[test]
fn chunked_upload_of_unknown_size_is_published() {
    let world = World::default();
    let (_tracker, _peer, address) = swarm(&world);
    let mut upload = begin(&address, "PUT", "/files/notes", &["Transfer-Encoding: chunked"]);
    for part in ["7\r\ncontent\r\n", "2\r\n s\r\n", "0\r\n\r\n"] {
        upload.send(part.as_bytes());
    }
    let created = upload.response();
    assert_eq!((created.status, &json(&created)["size"]), (201, &9.into()));
    assert_eq!(get(&address, "/files/notes", &[]).text(), "content s");
}

#[test]
fn files_of_a_form_are_published() {
    let world = World::default();
    let (_tracker, _peer, address) = swarm(&world);
    let form = |parts: &[(&str, &str)]| {
        let part = |(header, body): &(&str, &str)| {
            format!("--x\r\nContent-Disposition: form-data; {header}\r\n\r\n{body}\r\n")
        };
        parts.iter().map(part).collect::<String>() + "--x--\r\n"
    };
    let post = |body: &str| {
        send(&address, "POST", "/files", &["Content-Type: multipart/form-data; boundary=x"], body.as_bytes())
    };
    let long = "long ".repeat(100_000);
    let created = post(&form(&[
        ("name=\"files\"; filename=\"a.txt\"", "first"),
        ("name=\"name\"", "b renamed.txt"),
        ("name=\"files\"; filename=\"b.txt\"", &long),
        ("name=\"comment\"", "ignored"),
        ("name=\"files\"; filename=\"ü.txt\"", ""),
    ]));
    assert_eq!(created.status, 201, "{}", created.text());
    let published = &json(&created)["published"];
    let names: Vec<_> = published.as_array().unwrap().iter().map(|file| &file["name"]).collect();
    assert_eq!(names, ["a.txt", "b renamed.txt", "ü.txt"]);
    assert_eq!(get(&address, "/files/a.txt", &[]).text(), "first");
    assert_eq!(get(&address, "/files/b%20renamed.txt", &[]).text(), long);

    let partial = post(&form(&[("name=\"f\"; filename=\"c\"", "c"), ("name=\"f\"; filename=\"../d\"", "d")]));
    assert_eq!(partial.status, 400);
    assert!(partial.text().contains("a path; published before: c"), "{}", partial.text());
    for invalid in
        [form(&[("name=\"name\"", "x")]), form(&[("name=\"comment\"", &long)]), "garbage".to_owned()]
    {
        assert_eq!(post(&invalid).status, 400, "{invalid:.80}");
    }
    assert_eq!(send(&address, "POST", "/files", &[], b"content").status, 400, "not a form");
}

#[test]
fn interrupted_upload_leaves_nothing_behind() {
    let world = World::default();
    let (_tracker, mut peer, mut address) = swarm(&world);
    for killed in [false, true] {
        let mut upload = begin(&address, "PUT", "/files/film.bin", &["Content-Length: 9000000"]);
        upload.send(&vec![1; 1_000_000]);
        wait_for("the content in the data directory", TIMEOUT, || spooled(&peer) == 1);
        if killed {
            peer.kill();
            assert_eq!(spooled(&peer), 1);
            peer.start();
            address = peer.http_address();
        }
        drop(upload);
        wait_for("the deletion of the content", TIMEOUT, || spooled(&peer) == 0);
        assert!(peer.in_library("film.bin").is_none());
        assert_eq!(get(&address, "/files/film.bin", &[]).status, 404);
    }
}

#[test]
fn upload_without_space_is_refused_before_its_content() {
    let world = World::default();
    let (_tracker, peer, address) = swarm(&world);
    // The largest file, and a larger one. A client that asks first sends nothing.
    for (size, status) in [(4_u64 << 40, 507), ((4 << 40) + 1, 413)] {
        let length = format!("Content-Length: {size}");
        let refused = request(&address, "PUT", "/files/large", &[&length, "Expect: 100-continue"]);
        assert_eq!(
            (refused.status, refused.headers["content-type"].as_str()),
            (status, "application/problem+json")
        );
        assert_eq!(json(&refused)["status"], status);
    }
    assert_eq!(spooled(&peer), 0);
    let mut upload = begin(&address, "PUT", "/files/small", &["Content-Length: 5", "Expect: 100-continue"]);
    upload.send(b"small");
    assert_eq!(upload.response().status, 100, "the client may send");
}

#[test]
fn upload_without_space_for_its_copy_is_refused_before_its_content() {
    let test = "upload_without_space_for_its_copy_is_refused_before_its_content";
    let mount = |size| Mount::in_memory(test, size * MIB);
    let (Some(data), Some(database)) = (mount(400), mount(200)) else { return };
    // 64 MiB remain free.
    for (setup, database, size, status) in [
        ("sqlite", data.path(), 100, 100),
        ("sqlite", data.path(), 250, 507),
        ("sqlite", database.path(), 100, 100),
        ("sqlite", database.path(), 250, 507),
        ("sqlite+files", data.path(), 250, 100),
        ("sqlite+files", data.path(), 350, 507),
    ] {
        let world = World::new_in(data.path(), setup.parse::<Setup>().unwrap());
        let tracker = world.tracker("tracker");
        let folder = tempfile::tempdir_in(database).unwrap();
        let path = format!("storage.sqlite.path={:?}", folder.path().join("library.db"));
        let mut peer = world.running_peer_with("peer", &[&tracker], &[HTTP, &path]);
        let length = format!("Content-Length: {}", size * MIB);
        let headers = [&*length, "Expect: 100-continue"];
        let mut reply = begin(&peer.http_address(), "PUT", "/files/large", &headers).lines();
        let status_line = reply.next().unwrap();
        let case = format!("{setup} {size} {}: {status_line}", database.display());
        assert!(status_line.starts_with(&format!("HTTP/1.1 {status}")), "{case}");
    }
}

#[test]
fn client_of_a_refused_upload_gets_the_response() {
    let world = World::default();
    let (_tracker, _peer, address) = swarm(&world);
    let content = vec![7; 16 * MIB as usize];
    for (path, headers, status) in [
        ("/files/%2e%2e", &[][..], 400),
        ("/files/a%2Fb", &[], 400),
        ("/files/deadbeef", &[], 400),
        ("/files/a", &["Content-Range: bytes 5-9/10"], 400),
        ("/files/a", &["If-Match: *"], 412),
    ] {
        // The client sends everything before it reads.
        let refused = send(&address, "PUT", path, headers, &content);
        assert_eq!(refused.status, status, "{path} {headers:?}");
    }
}

#[test]
fn name_of_another_publisher_is_kept() {
    let world = World::default();
    let (tracker, _peer, address) = swarm(&world);
    let other = world.running_peer("other", &[&tracker]);
    let (file, id) = world.file("film.bin", 1000);
    other.publish(&file, &[]);
    let put = |name: &str, headers: &[&str]| send(&address, "PUT", name, headers, b"content");
    assert_eq!(put("/files/film.bin", &["If-None-Match: *"]).status, 412);
    assert_eq!(put("/files/film.bin", &["If-Match: \"other\""]).status, 412);
    assert_eq!(put("/files/new.bin", &["If-None-Match: *"]).status, 201);
    let replaced = put("/files/film.bin", &[&format!("If-Match: \"{id}\"")]);
    assert_eq!((replaced.status, &json(&replaced)["version"]), (201, &2.into()));

    let publisher = other.run(["status", "--json"]).ok().json()[0]["peer"].as_str().unwrap().to_owned();
    tracker.run(["reserve", "reserved.bin", &publisher]).ok();
    let refused = put("/files/reserved.bin", &[]);
    assert_eq!(refused.status, 403);
    assert!(refused.text().contains("reserved for the peer"), "{}", refused.text());
}

#[test]
fn upload_from_a_page_of_another_origin_is_refused() {
    let world = World::default();
    let (_tracker, peer, address) = swarm(&world);
    let form = "multipart/form-data; boundary=x";
    let body = b"--x\r\nContent-Disposition: form-data; name=\"f\"; filename=\"a\"\r\n\r\nx\r\n--x--\r\n";
    for (method, path) in [("PUT", "/files/a"), ("POST", "/files")] {
        for origin in ["Origin: http://attacker.example", "Origin: null", "Sec-Fetch-Site: cross-site"] {
            let refused = send(&address, method, path, &[origin, &format!("Content-Type: {form}")], body);
            assert_eq!(refused.status, 403, "{method} {origin}");
        }
    }
    let preflight = ["Origin: http://attacker.example", "Access-Control-Request-Method: PUT"];
    assert_eq!(request(&address, "OPTIONS", "/files/a", &preflight).status, 403);
    assert!(peer.in_library("a").is_none());
}

#[test]
fn number_of_concurrent_uploads_is_limited() {
    let world = World::default();
    let (_tracker, peer, address) = swarm(&world);
    let mut uploads = Vec::new();
    for number in 0..16 {
        let path = format!("/files/{number}");
        uploads.push(begin(&address, "PUT", &path, &["Content-Length: 2"]));
        wait_for("the upload", TIMEOUT, || spooled(&peer) == number + 1);
    }
    assert_eq!(send(&address, "PUT", "/files/more", &[], b"no").status, 503);
    let mut first = uploads.pop().unwrap();
    first.send(b"ok");
    assert_eq!(first.response().status, 201);
    assert_eq!(send(&address, "PUT", "/files/more", &[], b"ok").status, 201);
}

#[test]
fn large_upload_needs_constant_memory() {
    let world = World::default();
    let (_tracker, mut peer, address) = swarm(&world);
    let put = |name: &str, mib: u64| {
        let length = format!("Content-Length: {}", mib * MIB);
        let mut upload = begin(&address, "PUT", &format!("/files/{name}"), &[&length]);
        let part: Vec<u8> = (0..MIB).map(|at| (at % 251) as u8).collect();
        (0..mib).for_each(|_| upload.send(&part));
        assert_eq!(upload.response().status, 201);
    };
    put("small", 16);
    let peak = |peer: &mut Peer| process_stats::usage(peer.pid()).map_or(0, |usage| usage.peak_kib);
    let before = peak(&mut peer);
    put("large", 192);
    let growth = peak(&mut peer) - before;
    assert!(growth < 48 * 1024, "the memory grew by {growth} KiB");
}

#[test]
fn tracker_publishes_no_uploads() {
    let world = World::default();
    let mut tracker = world.tracker_with("tracker", &[HTTP, "tracker.store.enabled=true"]);
    let refused = send(&tracker.http_address(), "PUT", "/files/a", &[], b"content");
    assert_eq!(refused.status, 403);
    assert!(refused.text().contains("upload to a peer"), "{}", refused.text());
}
