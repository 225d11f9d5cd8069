//! The modes of the load test.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use bytes::{BufMut, BytesMut};
use enjambre_core::protocol::codec;
use enjambre_core::protocol::message::Reply;
use enjambre_core::transport::Connection;
use enjambre_tests::process_stats;
use serde_json::json;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::load::{DEADLINE, Load, open_session};
use crate::requests::{Kind, put_id};

/// One of this many replies is decoded. The others are only searched for the expected bytes.
const DECODE_INTERVAL: u64 = 64;

/// The state of the tracker process at the start of a mode.
struct Measurement {
    started: Instant,
    cpu: f64,
    rss: u64,
}

impl Measurement {
    fn start(load: &Load) -> Self {
        let (cpu, rss) = usage(load);
        Self { started: Instant::now(), cpu, rss }
    }

    fn report(&self, load: &Load, mode: &str, counts: &[(&str, u64)]) {
        let seconds = self.started.elapsed().as_secs_f64();
        let (cpu, rss) = usage(load);
        let settings = &load.settings;
        let mut line = json!({
            "mode": mode, "scheme": settings.scheme, "connections": settings.connections, "seconds": seconds,
            "cpu_s": cpu - self.cpu, "rss_kib": rss, "rss_before_kib": self.rss,
        });
        for (name, count) in counts {
            line[*name] = json!(count);
            line[format!("{name}_per_s")] = json!((*count as f64 / seconds).round());
        }
        println!("{line}");
    }
}

fn usage(load: &Load) -> (f64, u64) {
    let pid = load.pid.unwrap_or_default();
    let cpu = process_stats::usage(pid).map_or(0.0, |usage| usage.cpu_seconds);
    (cpu, process_stats::memory(pid, "VmRSS").unwrap_or_default())
}

pub(crate) async fn announce_new(load: &Arc<Load>) -> Result<()> {
    let measurement = Measurement::start(load);
    let sent = Arc::new(AtomicU64::new(0));
    announce_until(load, load.settings.deadline(), &sent).await?;
    measurement.report(load, "announce-new", &[("entries", sent.load(Ordering::Relaxed))]);
    Ok(())
}

async fn announce_until(load: &Arc<Load>, end: Instant, sent: &Arc<AtomicU64>) -> Result<()> {
    let mut tasks = JoinSet::new();
    for connection in &load.connections {
        // Few concurrent requests, because each is large and a peer sends them one after another.
        for _ in 0..load.settings.depth.min(4) {
            let (load, connection, sent) = (Arc::clone(load), Arc::clone(connection), Arc::clone(sent));
            tasks.spawn(async move {
                let max_entries = load.settings.entries.unwrap_or(u64::MAX);
                let in_time = || load.settings.entries.is_some() || Instant::now() < end;
                while in_time() && sent.load(Ordering::Relaxed) < max_entries {
                    if !load.announce_next(&*connection).await? {
                        break;
                    }
                    sent.fetch_add(load.settings.offers as u64, Ordering::Relaxed);
                }
                anyhow::Ok(())
            });
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// Peers reconnect: each opens a new session and announces its entries again.
pub(crate) async fn announce_known(load: &Arc<Load>) -> Result<()> {
    // The numbers of peers and of announcements per peer in announce-new.
    let messages = load.next_new.load(Ordering::Relaxed);
    let (peers, chunks) = (messages.min(load.peers.len()), (messages / load.peers.len()).max(1));
    ensure!(peers > 0, "announce-known requires announce-new before it");
    let measurement = Measurement::start(load);
    let end = load.settings.deadline();
    let (sent, next) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut tasks = JoinSet::new();
    for connection in &load.connections {
        // As in `Load::open_sessions`.
        let opening = Arc::new(Mutex::new(()));
        for _ in 0..load.settings.depth.min(4) {
            let (load, connection, opening) =
                (Arc::clone(load), Arc::clone(connection), Arc::clone(&opening));
            let (sent, next) = (Arc::clone(&sent), Arc::clone(&next));
            tasks.spawn(async move {
                while Instant::now() < end {
                    let peer = next.fetch_add(1, Ordering::Relaxed) % peers;
                    {
                        let _turn = opening.lock().await;
                        open_session(&*connection, &load.peers[peer], peer).await?;
                    }
                    for chunk in 0..chunks {
                        load.announce(&*connection, peer, chunk).await?;
                        sent.fetch_add(load.settings.offers as u64, Ordering::Relaxed);
                    }
                }
                anyhow::Ok(())
            });
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let sessions = next.load(Ordering::Relaxed) as u64;
    measurement.report(
        load,
        "announce-known",
        &[("entries", sent.load(Ordering::Relaxed)), ("sessions", sessions)],
    );
    Ok(())
}

pub(crate) async fn look_up(load: &Arc<Load>, kind: Kind) -> Result<()> {
    let measurement = Measurement::start(load);
    let end = load.settings.deadline();
    let count = look_up_until(load, kind, &load.connections, end).await?;
    measurement.report(load, &format!("{kind:?}").to_lowercase(), &[("lookups", count)]);
    Ok(())
}

async fn look_up_until(
    load: &Arc<Load>,
    kind: Kind,
    connections: &[Arc<dyn Connection>],
    end: Instant,
) -> Result<u64> {
    let mut tasks = JoinSet::new();
    for (number, connection) in connections.iter().enumerate() {
        for task in 0..load.settings.depth {
            let (load, connection) = (Arc::clone(load), Arc::clone(connection));
            tasks.spawn(async move {
                let mut count = 0;
                let mut at = (number * 7919 + task * 104_729) as u64;
                while Instant::now() < end {
                    at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let file = (at >> 33) as usize % load.ids.len();
                    look_up_once(&load, &*connection, kind, file, count).await?;
                    count += 1;
                }
                anyhow::Ok(count)
            });
        }
    }
    let mut total = 0;
    while let Some(ended) = tasks.join_next().await {
        total += ended??;
    }
    Ok(total)
}

pub(crate) async fn mixed(load: &Arc<Load>) -> Result<()> {
    let measurement = Measurement::start(load);
    let end = load.settings.deadline();
    let sent = Arc::new(AtomicU64::new(0));
    let half = load.connections.len() / 2;
    let (announced, finds, providers) = tokio::join!(
        announce_until(load, end, &sent),
        look_up_until(load, Kind::Find, &load.connections[..half], end),
        look_up_until(load, Kind::Providers, &load.connections[half..], end),
    );
    announced?;
    let counts = [("entries", sent.load(Ordering::Relaxed)), ("lookups", finds? + providers?)];
    measurement.report(load, "mixed", &counts);
    Ok(())
}

async fn look_up_once(
    load: &Load,
    connection: &dyn Connection,
    kind: Kind,
    file: usize,
    count: u64,
) -> Result<()> {
    let (id, request) = (load.ids[file], load.requests[file].get(kind, count));
    let request_id = connection.next_id();
    let mut header = BytesMut::with_capacity(request.len() + 18);
    put_id(&mut header, request_id);
    header.put_slice(request);
    let reply = connection.call(request_id, header.freeze(), DEADLINE).await?.header;
    if count.is_multiple_of(DECODE_INTERVAL) {
        match (kind, codec::decode_reply(&reply)) {
            (Kind::Find, Some(Ok(Reply::Find { file }))) if file.id == id && file.providers > 0 => {}
            (Kind::Providers, Some(Ok(Reply::Providers { providers }))) if !providers.is_empty() => {}
            (_, other) => bail!("unexpected reply to {kind:?}: {other:?}"),
        }
        return Ok(());
    }
    let expected: &[u8] = match kind {
        Kind::Find => id.as_bytes(),
        Kind::Providers => b"\x69endpoints",
    };
    ensure!(
        reply.windows(expected.len()).any(|window| window == expected),
        "unexpected reply to {kind:?}: {reply:?}"
    );
    Ok(())
}
