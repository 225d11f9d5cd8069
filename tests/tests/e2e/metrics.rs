//! Metrics, alerts and the dashboard.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use enjambre_tests::content::MIB;
use enjambre_tests::http::{Response, get};
use enjambre_tests::mount::Mount;
use enjambre_tests::node::World;
use enjambre_tests::prometheus::{Server, promtool};
use enjambre_tests::setup::Setup;
use enjambre_tests::wait::{TIMEOUT, wait_for};
use serde_json::Value;

const HTTP: &str = "http.listen=[\"127.0.0.1:0\"]";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// The samples of a node by name and labels.
struct Samples(BTreeMap<String, f64>);

impl Samples {
    fn of(address: &str) -> Self {
        Self::parse(&get(address, "/metrics", &[]))
    }

    fn parse(response: &Response) -> Self {
        assert_eq!(response.status, 200);
        let samples = response.text().lines().filter(|line| !line.starts_with('#'));
        let parse = |line: &str| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        };
        Self(samples.map(parse).collect())
    }

    /// Returns the sum of the samples with this name and these labels.
    fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let is_meant = |sample: &str| {
            let (found, rest) = sample.split_at(sample.find('{').unwrap_or(sample.len()));
            found == name && labels.iter().all(|label| rest.contains(label))
        };
        self.0.iter().filter(|(sample, _)| is_meant(sample)).map(|(_, value)| value).sum()
    }

    fn names(&self) -> impl Iterator<Item = String> {
        self.0.keys().map(|sample| sample.split('{').next().unwrap().to_owned())
    }
}

/// Waits until a peer is connected to its tracker. It listens before.
fn wait_connected(peer: &str) {
    wait_for("a connection to the tracker", TIMEOUT, || {
        Samples::of(peer).sum("enjambre_peer_trackers", &["state=\"connected\""]) == 1.0
    });
}

#[test]
fn metrics_show_a_publication_and_a_download() {
    let world = World::default();
    let size = 5 * MIB + 7;
    let (file, _) = world.file("film.bin", size);
    let mut tracker = world.tracker_with("tracker", &[HTTP]);
    let mut source = world.running_peer_with("source", &[&tracker], &[HTTP]);
    let mut sink = world.running_peer_with("sink", &[&tracker], &[HTTP]);
    source.publish(&file, &[]);
    sink.get_to("film.bin", &world.path("copy"));
    let addresses = [tracker.http_address(), source.http_address(), sink.http_address()];
    assert_eq!(get(&addresses[2], "/files/film.bin", &[]).body.len() as u64, size);
    wait_connected(&addresses[2]);
    let [tracker, source, sink] = addresses.map(|address| Samples::of(&address));
    let bytes = size as f64;

    assert_eq!(sink.sum("enjambre_content_bytes_total", &["direction=\"received\""]), bytes);
    assert!(sink.sum("enjambre_transport_bytes_total", &["direction=\"received\""]) >= bytes);
    let http = |metric, direction| {
        sink.sum(&format!("enjambre_transport_{metric}"), &["transport=\"http\"", direction])
    };
    assert!(http("bytes_total", "direction=\"sent\"") >= bytes);
    assert!((1.0..bytes).contains(&http("bytes_total", "direction=\"received\"")));
    assert!(http("connections", "direction=\"inbound\"") >= 1.0, "this one");
    let pieces = sink.sum("enjambre_pieces_total", &["result=\"verified\""]);
    assert!(pieces > 1.0);
    assert_eq!(sink.sum("enjambre_pieces_total", &["result=\"invalid\""]), 0.0);
    assert!(
        sink.sum("enjambre_piece_duration_seconds_count", &[]) >= pieces - 1.0,
        "the last one is a proof"
    );
    assert_eq!(sink.sum("enjambre_get_duration_seconds_count", &[]), 1.0);
    assert_eq!(sink.sum("enjambre_get_duration_seconds_bucket", &["le=\"+Inf\""]), 1.0);
    assert_eq!(sink.sum("enjambre_downloads", &[]), 0.0);
    assert_eq!(sink.sum("enjambre_library_bytes", &[]), bytes);
    assert_eq!(sink.sum("enjambre_peer_trackers", &["state=\"connected\""]), 1.0);
    assert!(sink.sum("enjambre_transport_connections", &["direction=\"outbound\""]) >= 2.0);

    assert!(source.sum("enjambre_content_bytes_total", &["direction=\"sent\""]) >= bytes);
    assert!(
        source.sum("enjambre_transport_bytes_total", &["transport=\"tcp\"", "direction=\"sent\""]) >= bytes
    );
    assert!(
        source.sum("enjambre_transport_connections", &["transport=\"tcp\"", "direction=\"inbound\""]) >= 1.0
    );
    assert_eq!(source.sum("enjambre_library_files", &["state=\"complete\""]), 1.0);

    assert_eq!(tracker.sum("enjambre_tracker_files", &[]), 1.0);
    assert_eq!(tracker.sum("enjambre_tracker_peers", &[]), 2.0);
    let lookups = ["enjambre_tracker_cached_lookups_total", "enjambre_tracker_lookup_duration_seconds_count"];
    assert!(lookups.iter().map(|name| tracker.sum(name, &[])).sum::<f64>() >= 2.0);
    let commits = ["storage=\"catalogue\"", "operation=\"durable_commit\""];
    assert!(tracker.sum("enjambre_storage_operation_duration_seconds_count", &commits) >= 1.0);
    assert!(tracker.sum("enjambre_storage_operation_duration_seconds_sum", &commits) > 0.0);
    for node in [&tracker, &source, &sink] {
        assert_eq!(node.sum("enjambre_storage_errors_total", &[]), 0.0);
        assert_eq!(node.sum("enjambre_build_info", &["version=\""]), 1.0);
        let [free, size] =
            ["enjambre_disk_free_bytes", "enjambre_disk_size_bytes"].map(|name| node.sum(name, &[]));
        assert!(0.0 < free && free <= size);
    }
}

#[test]
fn metrics_have_the_accepted_format() {
    let world = World::default();
    let mut tracker = world.tracker_with("tracker", &[HTTP]);
    let address = tracker.http_address();
    let plain = get(&address, "/metrics", &[]);
    assert_eq!(plain.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let accept =
        "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let open = get(&address, "/metrics", &[accept]);
    assert_eq!(open.headers["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(open.text().ends_with("# EOF\n"));
    let names = |response| BTreeSet::from_iter(Samples::parse(response).names());
    assert_eq!(names(&plain), names(&open));
    promtool("metrics_have_the_accepted_format", &["check", "metrics"], plain.text());
}

/// Returns a section of the manual.
fn section(title: &str) -> String {
    let manual = read("docs/OPERATE.md");
    let (_, rest) = manual.split_once(&format!("\n## {title}\n")).unwrap();
    rest.split("\n## ").next().unwrap().to_owned()
}

/// Returns the names of metrics in a text.
fn names_in(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.split(|c| !is_part(c)).filter(|word| word.starts_with("enjambre_")).map(str::to_owned).collect()
}

#[test]
fn dashboard_alerts_and_documentation_name_the_metrics_of_nodes() {
    let world = World::default();
    let mut tracker = world.tracker_with("tracker", &[HTTP, "tracker.store.enabled=true"]);
    let mut peer = world.running_peer_with("peer", &[&tracker], &[HTTP]);
    let (tracker, peer) = (tracker.http_address(), peer.http_address());
    // The number of online peers is known after the first sweep.
    wait_for("a sweep", TIMEOUT, || {
        Samples::of(&tracker).names().any(|name| name == "enjambre_tracker_online_peers")
    });
    let names: BTreeSet<String> =
        [tracker, peer].iter().flat_map(|node| Samples::of(node).names().collect::<Vec<_>>()).collect();
    let suffixes = ["_bucket", "_count", "_sum"];
    let family = |name: &String| {
        suffixes.iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name).to_owned()
    };
    let families: BTreeSet<String> = names.iter().map(family).collect();
    for path in ["config/grafana-dashboard.json", "config/prometheus-alerts.yml"] {
        let unknown: Vec<_> =
            names_in(&read(path)).into_iter().filter(|name| !names.contains(name)).collect();
        assert!(unknown.is_empty(), "{path}: {unknown:?}");
    }
    assert_eq!(names_in(&section("Metrics")), families);
}

#[test]
fn alerts_are_valid_and_documented() {
    let (test, alerts) = ("alerts_are_valid_and_documented", read("config/prometheus-alerts.yml"));
    let named: Vec<_> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let manual = section("Alerts");
    let described: Vec<_> = manual.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert_eq!(named, described);
    for name in named {
        assert!(alerts.contains(&format!("runbook: docs/OPERATE.md#{}", name.to_lowercase())), "{name}");
    }
    let path = |path: &str| root().join(path).display().to_string();
    promtool(test, &["check", "config", &path("config/prometheus.yml")], "");
    promtool(test, &["test", "rules", &path("tests/prometheus/alerts.yml")], "");
}

#[test]
fn dashboard_can_be_imported() {
    let dashboard: Value = serde_json::from_str(&read("config/grafana-dashboard.json")).unwrap();
    assert!(
        dashboard["uid"].is_string() && dashboard["schemaVersion"].is_u64() && dashboard.get("id").is_none()
    );
    let (mut ids, mut taken, mut rules) =
        (BTreeSet::new(), BTreeSet::new(), String::from("groups:\n- name: x\n  rules:\n"));
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
        assert!(x + w <= 24, "{panel}");
        assert!((x..x + w).all(|x| (y..y + h).all(|y| taken.insert((x, y)))), "panels overlap: {panel}");
        for target in panel["targets"].as_array().into_iter().flatten() {
            assert_eq!(target["datasource"]["uid"], "${datasource}");
            let expression = target["expr"].as_str().unwrap().replace("$instance", ".*");
            let expression = expression.replace("$__rate_interval", "1m");
            assert!(!expression.contains('$'), "unknown variable: {expression}");
            let number = rules.lines().count();
            rules += &format!("  - {{ record: x:{number}, expr: {} }}\n", Value::from(expression));
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rules.yml");
    fs::write(&path, rules).unwrap();
    promtool("dashboard_can_be_imported", &["check", "rules", path.to_str().unwrap()], "");
}

#[test]
fn alerts_fire_for_killed_tracker_full_disk_and_missing_replica() {
    let test = "alerts_fire_for_killed_tracker_full_disk_and_missing_replica";
    let Some(disk) = Mount::in_memory(test, 200 << 20) else { return };
    let small = World::new_in(disk.path(), Setup::default());
    let world = World::default();
    let (file, _) = world.file("film.bin", 20 * MIB);
    let mut tracker = world.tracker_with("tracker", &[HTTP, "tracker.store.enabled=true"]);
    let mut source = world.running_peer_with("source", &[&tracker], &[HTTP, "limits.upload=\"100kB/s\""]);
    let mut full = small.running_peer_with("full", &[&tracker], &[HTTP]);
    let nodes = [tracker.http_address(), source.http_address(), full.http_address()];
    nodes[1..].iter().for_each(|peer| wait_connected(peer));
    // Without the time for which a condition must hold.
    let rules = read("config/prometheus-alerts.yml");
    let rules: String =
        rules.lines().filter(|line| !line.contains("for: ")).map(|line| line.to_owned() + "\n").collect();
    let Some(prometheus) = Server::start(test, &nodes.each_ref().map(String::as_str), &rules) else { return };
    wait_for("the first scrapes", TIMEOUT, || prometheus.value("count(up == 1)") == Some(3.0));
    // The disk of the machine may be nearly full.
    let unexpected = prometheus.value("count(ALERTS{alertname!=\"EnjambreDiskNearlyFull\"})");
    assert_eq!(unexpected, None, "nothing is wrong yet");

    let publishing = source.spawn(["publish", file.to_str().unwrap(), "--pin"]);
    prometheus.wait_alert("EnjambreReplicaMissing", &nodes[0]);
    let ballast = disk.fill(10 << 20);
    prometheus.wait_alert("EnjambreDiskNearlyFull", &nodes[2]);
    prometheus.wait_alert("EnjambreDiskFull", &nodes[2]);
    drop(ballast);
    tracker.kill();
    prometheus.wait_alert("EnjambreNodeDown", &nodes[0]);
    prometheus.wait_alert("EnjambreTrackerUnreachable", &nodes[1]);
    wait_for("the end of the alert", TIMEOUT, || {
        prometheus.value("count(ALERTS{alertname=\"EnjambreDiskFull\"})").is_none()
    });
    drop(publishing);
}
