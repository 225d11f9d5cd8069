//! `/metrics`: the metrics of a node for Prometheus, in the format of OpenMetrics if the client accepts it.
//!
//! The other crates count with plain atomics ([`enjambre_core::metrics`] tells why), and have what remains anyway: sizes, queues
//! and states. A scrape reads all of it; between scrapes nothing runs. Labels have few values, which the program determines:
//! never names, ids or addresses.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use enjambre_core::metrics::Durations;
use enjambre_core::storage::database_file::DiskSpace;
use enjambre_core::storage::metrics::{Operation, StorageMetrics};
use enjambre_core::transport::metrics::{EndReason, TransportMetrics};
use enjambre_core::{Dialer, Storage, runtime};
use enjambre_swarm::download::downloader::Downloader;
use enjambre_swarm::download::queue::{DownloadQueue, Stage};
use enjambre_swarm::download::request::Phase;
use enjambre_swarm::seeder::Seeder;
use enjambre_swarm::tracker::replicas::ReplicaStore;
use enjambre_swarm::tracker::service::TrackerService;
use enjambre_swarm::tracker_client::presence::Presence;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::problem::Problem;

/// The media type of OpenMetrics, which Prometheus asks for.
const OPEN_METRICS: &str = "application/openmetrics-text";

/// No labels.
const PLAIN: [(&str, &str); 0] = [];
/// The buckets of a histogram: powers of 4, the exponents of 2 in microseconds.
type Buckets = RangeInclusive<u32>;
/// From 64 microseconds to 17 seconds.
const CALLS: Buckets = 6..=24;
/// From 1 millisecond to 67 seconds.
const PIECES: Buckets = 10..=26;
/// From 66 milliseconds to 19 hours.
const GETS: Buckets = 16..=36;

/// The parts of a node that are measured.
pub struct Sources {
    /// `tracker` or `peer`.
    pub role: &'static str,
    /// A path on the disk of the node.
    pub data_dir: PathBuf,
    /// The transports.
    pub dialer: Arc<Dialer>,
    /// The HTTP listener.
    pub http: Arc<TransportMetrics>,
    /// The databases, with their names.
    pub storages: Vec<(&'static str, Arc<dyn Storage>)>,
    /// The downloads and the library of a node that stores files.
    pub files: Option<(Arc<Downloader>, Arc<Seeder>)>,
    /// The download queue of a peer.
    pub queue: Option<DownloadQueue>,
    /// The tracker connections of a peer.
    pub presence: Option<Arc<Presence>>,
    /// The catalogue of a tracker.
    pub tracker: Option<Arc<TrackerService>>,
    /// The replicas of a tracker.
    pub replicas: Option<Arc<ReplicaStore>>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("role", &self.role).finish_non_exhaustive()
    }
}

/// The route `/metrics`.
pub fn routes(sources: Sources) -> Router {
    let mut registry = Registry::with_prefix("enjambre");
    registry.register_collector(Box::new(sources));
    let registry = Arc::new(tokio::sync::Mutex::new(registry));
    Router::new().route("/metrics", get(move |headers| scrape(Arc::clone(&registry), headers)))
}

async fn scrape(registry: Arc<tokio::sync::Mutex<Registry>>, headers: HeaderMap) -> Response {
    let accepted =
        headers.get(header::ACCEPT).and_then(|accepted| accepted.to_str().ok()).unwrap_or_default();
    let is_open = accepted.contains(OPEN_METRICS);
    // One scrape at a time.
    let registry = registry.lock_owned().await;
    // Counting a large library and the space of a disk can block.
    let encoded = runtime::spawn_blocking(move || {
        let mut body = String::new();
        let encode = if is_open { text::encode } else { prometheus_text::encode };
        encode(&mut body, &registry).map(|()| body)
    });
    match encoded.await {
        Ok(Ok(body)) => {
            let kind = match is_open {
                true => format!("{OPEN_METRICS}; version=1.0.0; charset=utf-8"),
                false => prometheus_text::CONTENT_TYPE.to_owned(),
            };
            ([(header::CONTENT_TYPE, kind)], body).into_response()
        }
        _ => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "encoding the metrics failed").into_response(),
    }
}

impl Collector for Sources {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut Families(encoder);
        self.node(out)?;
        self.transports(out)?;
        self.databases(out)?;
        if let Some((downloader, seeder)) = &self.files {
            self.downloads(out, downloader)?;
            transfers(out, downloader)?;
            content(out, downloader, seeder)?;
        }
        self.trackers(out)?;
        if let Some(service) = &self.tracker {
            tracker(out, service)?;
        }
        if let Some(replicas) = &self.replicas {
            let incomplete = replicas.incomplete_pins() as u64;
            let help = "Pins whose replica is not complete.";
            out.gauge("tracker_incomplete_pins", None, help, incomplete)?;
        }
        Ok(())
    }
}

impl Sources {
    fn node(&self, out: &mut Families<'_>) -> fmt::Result {
        let labels = [("version", env!("CARGO_PKG_VERSION")), ("role", self.role)];
        let mut build = out.0.encode_descriptor("build", "The program.", None, MetricType::Info)?;
        build.encode_info(&labels)?;
        let Some(DiskSpace { free, size }) = DiskSpace::of(&self.data_dir) else { return Ok(()) };
        out.gauge("disk_free", Some(&Unit::Bytes), "Free space of the disk of the data directory.", free)?;
        out.gauge("disk_size", Some(&Unit::Bytes), "Size of the disk of the data directory.", size)
    }

    fn transports(&self, out: &mut Families<'_>) -> fmt::Result {
        let transports = self.dialer.transports().iter();
        let known: Vec<(&str, &TransportMetrics)> = transports
            .filter_map(|transport| Some((transport.scheme(), transport.metrics()?)))
            .chain([("http", &*self.http)])
            .collect();
        out.counters(
            "transport",
            Some(&Unit::Bytes),
            "Bytes of messages, without encryption.",
            known.iter().flat_map(|(name, metrics)| {
                [("received", &metrics.received), ("sent", &metrics.sent)]
                    .map(|(direction, bytes)| ([("transport", *name), ("direction", direction)], bytes.get()))
            }),
        )?;
        out.gauges(
            "transport_connections",
            None,
            "Open connections.",
            known.iter().flat_map(|(name, metrics)| {
                [("inbound", &metrics.inbound), ("outbound", &metrics.outbound)]
                    .map(|(direction, open)| ([("transport", *name), ("direction", direction)], open.get()))
            }),
        )?;
        out.counters(
            "transport_disconnects",
            None,
            "Connections that ended or were not established, by reason.",
            known.iter().flat_map(|(name, metrics)| {
                EndReason::ALL
                    .map(|reason| ([("transport", *name), ("reason", reason.name())], metrics.ended(reason)))
            }),
        )
    }

    fn databases(&self, out: &mut Families<'_>) -> fmt::Result {
        let storages = self.storages.iter();
        let known: Vec<(&str, &StorageMetrics)> =
            storages.filter_map(|(name, storage)| Some((*name, storage.metrics()?))).collect();
        out.histograms(
            "storage_operation_duration",
            "Durations of calls of the database, including retries.",
            CALLS,
            known.iter().flat_map(|(name, metrics)| {
                Operation::ALL.map(|operation| {
                    let labels = [("storage", *name), ("operation", operation.name())];
                    (labels, metrics.latencies(operation))
                })
            }),
        )?;
        out.counters(
            "storage_errors",
            None,
            "Failed calls of the database, by kind of the failure.",
            known.iter().flat_map(|(name, metrics)| {
                metrics.failures().map(move |(kind, count)| ([("storage", *name), ("error", kind)], count))
            }),
        )?;
        out.counters(
            "storage_conflicts",
            None,
            "Commits that were not applied because their entries had changed.",
            known.iter().map(|(name, metrics)| ([("storage", *name)], metrics.conflicts())),
        )?;
        out.gauges(
            "storage_pending_operations",
            None,
            "Calls of the database in progress, most of which wait in its queue.",
            known.iter().map(|(name, metrics)| ([("storage", *name)], metrics.pending())),
        )
    }

    fn downloads(&self, out: &mut Families<'_>, downloader: &Downloader) -> fmt::Result {
        let stages: Vec<Stage> = match &self.queue {
            Some(queue) => queue.list().iter().map(|download| download.stage).collect(),
            None => downloader.active().iter().map(|download| stage(download.progress.phase)).collect(),
        };
        let count = |stage| stages.iter().filter(|found| **found == stage).count() as u64;
        out.gauges(
            "downloads",
            None,
            "Downloads of files and directories that are not complete.",
            [
                ("queued", Stage::Queued),
                ("searching", Stage::Searching),
                ("active", Stage::Active),
                ("paused", Stage::Paused),
                ("disk_full", Stage::DiskFull),
                ("failed", Stage::Failed),
            ]
            .map(|(state, stage)| ([("state", state)], count(stage))),
        )
    }

    fn trackers(&self, out: &mut Families<'_>) -> fmt::Result {
        let Some(presence) = &self.presence else { return Ok(()) };
        let states = presence.status();
        let count = |connected| states.iter().filter(|state| state.connected == connected).count() as u64;
        out.gauges(
            "peer_trackers",
            None,
            "Configured trackers.",
            [("connected", true), ("disconnected", false)]
                .map(|(state, connected)| ([("state", state)], count(connected))),
        )
    }
}

/// The stage of a download that is not in a queue.
const fn stage(phase: Phase) -> Stage {
    match phase {
        Phase::Searching => Stage::Searching,
        Phase::Fetching => Stage::Active,
        Phase::DiskFull => Stage::DiskFull,
    }
}

fn transfers(out: &mut Families<'_>, downloader: &Downloader) -> fmt::Result {
    let buffered = downloader.buffered_bytes();
    let help = "Content that is requested or received and not written yet.";
    out.gauge("download_buffered", Some(&Unit::Bytes), help, buffered)?;
    let metrics = downloader.metrics();
    let help = "Durations of complete downloads of files and directories.";
    out.histograms("get_duration", help, GETS, [(PLAIN, metrics.gets.read())])?;
    let help = "Attempts to download a file or directory that failed, including repeated ones.";
    out.counter("get_failures", None, help, metrics.failed_gets.get())?;
    out.counters(
        "pieces",
        None,
        "Requested pieces, by result.",
        [
            ("verified", &metrics.verified),
            ("invalid", &metrics.invalid),
            ("failed", &metrics.failed),
            ("cancelled", &metrics.cancelled),
        ]
        .map(|(result, count)| ([("result", result)], count.get())),
    )?;
    let help = "Durations of requests for pieces.";
    out.histograms("piece_duration", help, PIECES, [(PLAIN, metrics.pieces.read())])
}

fn content(out: &mut Families<'_>, downloader: &Downloader, seeder: &Seeder) -> fmt::Result {
    out.counters(
        "content",
        Some(&Unit::Bytes),
        "Content of files: received and verified, or sent.",
        [("received", downloader.metrics().received.get()), ("sent", seeder.sent_bytes())]
            .map(|(direction, bytes)| ([("direction", direction)], bytes)),
    )?;
    let help = "Requests of other peers for content that are not answered yet.";
    out.gauge("seeder_pending_requests", None, help, seeder.pending_requests())?;
    let totals = downloader.library().totals();
    out.gauges(
        "library_files",
        None,
        "Files of the library.",
        [("complete", totals.complete), ("incomplete", totals.incomplete), ("withdrawn", totals.withdrawn)]
            .map(|(state, count)| ([("state", state)], count)),
    )?;
    out.gauge("library", Some(&Unit::Bytes), "Stored content of the library.", totals.bytes)
}

fn tracker(out: &mut Families<'_>, service: &TrackerService) -> fmt::Result {
    let (catalogue, metrics) = (service.catalogue(), service.metrics());
    out.gauge("tracker_files", None, "Versions of names in the catalogue.", catalogue.versions())?;
    let help = "Peers in the catalogue, including peers that are away.";
    out.gauge("tracker_peers", None, help, catalogue.peers())?;
    // Absent before the first sweep.
    let online = metrics.online_peers().map(|peers| (PLAIN, peers));
    out.gauges("tracker_online_peers", None, "Online peers, as of the last sweep of this tracker.", online)?;
    let help = "Acknowledged renewals of leases.";
    out.counter("tracker_lease_renewals", None, help, metrics.renewals.get())?;
    let help = "Failed writes of renewals, which are retried.";
    out.counter("tracker_failed_flushes", None, help, metrics.failed_flushes.get())?;
    out.counters(
        "tracker_lease_sweeps",
        None,
        "Searches for peers with expired leases.",
        [("completed", &metrics.sweeps), ("failed", &metrics.failed_sweeps)]
            .map(|(result, count)| ([("result", result)], count.get())),
    )?;
    let help = "Peers that were removed because they stayed away.";
    out.counter("tracker_removed_peers", None, help, metrics.removed_peers.get())?;
    let help = "Files that were removed because they had no providers.";
    out.counter("tracker_expired_files", None, help, metrics.expired_files.get())?;
    let help = "Lookups of files and providers that were answered from memory.";
    out.counter("tracker_cached_lookups", None, help, metrics.cached_lookups.get())?;
    let help = "Durations of lookups of files and providers that were not answered from memory.";
    out.histograms("tracker_lookup_duration", help, CALLS, [(PLAIN, metrics.lookups.read())])
}

/// Encodes metrics.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn counter(&mut self, name: &str, unit: Option<&Unit>, help: &str, value: u64) -> fmt::Result {
        self.counters(name, unit, help, [(PLAIN, value)])
    }

    fn gauge(&mut self, name: &str, unit: Option<&Unit>, help: &str, value: u64) -> fmt::Result {
        self.gauges(name, unit, help, [(PLAIN, value)])
    }

    fn counters<S: EncodeLabelSet>(
        &mut self,
        name: &str,
        unit: Option<&Unit>,
        help: &str,
        values: impl IntoIterator<Item = (S, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Counter)?;
        for (labels, value) in values {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }

    fn gauges<S: EncodeLabelSet>(
        &mut self,
        name: &str,
        unit: Option<&Unit>,
        help: &str,
        values: impl IntoIterator<Item = (S, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (labels, value) in values {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn histograms<S: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        exponents: Buckets,
        values: impl IntoIterator<Item = (S, Durations)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (labels, durations) in values {
            let (mut buckets, mut before) = (Vec::new(), 0);
            for exponent in exponents.clone().step_by(2) {
                let count = durations.count_up_to(exponent);
                buckets.push(((1_u64 << exponent) as f64 / 1e6, count - before));
                before = count;
            }
            let count = durations.count();
            buckets.push((f64::INFINITY, count - before));
            let sum = durations.sum.as_secs_f64();
            family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }
}
