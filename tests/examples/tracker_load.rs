//! How much a tracker bears: announcements and look-ups from many peers over many connections, each reply checked.
//!
//!     cargo run --release -p enjambre-tests --example tracker_load -- [MODE...] [--KEY VALUE...]
//!
//! MODE is `announce-new` (entries that the tracker does not have), `announce-known` (peers that come back with a new
//! session and announce what they had announced before), `find` (by name and by id in turn), `providers`, `mixed` (half of
//! the connections announce, half look up) or `start` (how long the start takes, with a fresh data folder and with what
//! the modes before it left); all but the last unless given. Each prints one line of JSON.
//!
//! | key | default | |
//! | --- | --- | --- |
//! | `--endpoint` | | a tracker that runs already, in place of one that is started; then `--pid` names its process |
//! | `--scheme` | `zmq` | the transport of the tracker that is started |
//! | `--backend` | `sqlite` | its storage |
//! | `--connections` | 8 | |
//! | `--depth` | 32 | requests under way on each connection |
//! | `--seconds` | 5 | per mode |
//! | `--entries` | | ends `announce-new` after so many, whatever the time |
//! | `--peers` | 1000 | |
//! | `--files` | 4000 | files in the catalogue |
//! | `--offers` | 800 | offers in a message |
//! | `--scatter` | 0 | 1: a peer's files were not published one after another |
//!
//! `cpu_s` and `rss_kib` are the tracker's, out of `/proc`, so this is for Linux.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::model::id::FileId;
use enjambre_core::model::identity::KeyPair;
use enjambre_core::model::record::{FileKind, Offer};
use enjambre_core::protocol::client::ask;
use enjambre_core::protocol::codec;
use enjambre_core::protocol::message::{HelloProof, Reply, Request, SessionId};
use enjambre_core::transport::envelope::RequestId;
use enjambre_core::transport::{Connection, Deadline, Transport};
use enjambre_tests::figures;
use enjambre_tests::node::endpoint_in;
use enjambre_tests::process::Process;
use enjambre_transport::settings::TransportSettings;
use parking_lot::Mutex;
use serde_json::json;
use tokio::task::JoinSet;

const DEADLINE: Deadline = Deadline::Total(Duration::from_secs(60));
const PATIENCE: Duration = Duration::from_secs(60);
/// The size that every file is said to have.
const SIZE: u64 = 3 << 20;
/// One reply of so many is decoded as a whole; of the others the decisive bytes are looked at.
const DECODED: u64 = 64;

#[derive(Debug)]
struct Settings {
    modes: Vec<String>,
    endpoint: Option<Endpoint>,
    pid: Option<u32>,
    scheme: String,
    backend: String,
    connections: usize,
    depth: usize,
    time: Duration,
    entries: Option<u64>,
    peers: usize,
    files: usize,
    offers: usize,
    scatter: bool,
}

impl Settings {
    fn read() -> Result<Self> {
        let (mut modes, mut values) = (Vec::new(), BTreeMap::new());
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.strip_prefix("--") {
                Some(key) => {
                    let value = args.next().with_context(|| format!("--{key} has a value"))?;
                    values.insert(key.to_owned(), value);
                }
                None => modes.push(arg),
            }
        }
        let mut take = |key: &str, default: &str| values.remove(key).unwrap_or_else(|| default.to_owned());
        let optional = |text: String| if text.is_empty() { None } else { Some(text) };
        let endpoint = optional(take("endpoint", "")).map(|text| text.parse()).transpose()?;
        let pid = optional(take("pid", "")).map(|text| text.parse()).transpose()?;
        let entries = optional(take("entries", "")).map(|text| text.parse()).transpose()?;
        if modes.is_empty() {
            modes =
                ["announce-new", "announce-known", "find", "providers", "mixed"].map(str::to_owned).to_vec();
        }
        let settings = Self {
            modes,
            endpoint,
            pid,
            entries,
            scheme: take("scheme", "zmq"),
            backend: take("backend", "sqlite"),
            connections: take("connections", "8").parse()?,
            depth: take("depth", "32").parse()?,
            time: Duration::from_secs_f64(take("seconds", "5").parse()?),
            peers: take("peers", "1000").parse()?,
            files: take("files", "4000").parse()?,
            offers: take("offers", "800").parse()?,
            scatter: take("scatter", "0") == "1",
        };
        ensure!(values.is_empty(), "these keys are not known: {:?}", values.keys());
        ensure!(settings.files >= settings.offers && settings.connections > 0, "more files than offers");
        Ok(settings)
    }
}

fn main() -> Result<()> {
    let settings = Arc::new(Settings::read()?);
    let folder = tempfile::Builder::new().prefix("enj-load-").tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut started = None;
    let (endpoint, pid) = match &settings.endpoint {
        Some(endpoint) => (endpoint.clone(), settings.pid),
        None => {
            let (process, endpoint, _) = start(&settings, folder.path(), "data")?;
            let pid = process.pid();
            started = Some(process);
            (endpoint, Some(pid))
        }
    };
    let needed = settings.modes.iter().any(|mode| mode != "start");
    let load = if needed {
        Some(Arc::new(runtime.block_on(Load::prepare(&settings, &endpoint, pid))?))
    } else {
        None
    };
    for mode in &settings.modes {
        match (mode.as_str(), &load) {
            ("announce-new", Some(load)) => runtime.block_on(announce_new(load))?,
            ("announce-known", Some(load)) => runtime.block_on(announce_known(load))?,
            ("find", Some(load)) => runtime.block_on(look_up(load, Kind::Find))?,
            ("providers", Some(load)) => runtime.block_on(look_up(load, Kind::Providers))?,
            ("mixed", Some(load)) => runtime.block_on(mixed(load))?,
            ("start", _) => {
                if let Some(process) = started.take() {
                    end(process)?;
                }
                measure_start(&settings, folder.path())?;
            }
            _ => bail!("{mode:?} is not a mode"),
        }
    }
    Ok(())
}

/// Starts a tracker; returns it, where it listens, and how long it took until it said so.
fn start(settings: &Settings, folder: &Path, data: &str) -> Result<(Process, Endpoint, Duration)> {
    let config: PathBuf = folder.join("enjambre.toml");
    fs::write(
        &config,
        format!(
            "[tracker]\ndata_dir = \"{data}\"\nlease = \"600s\"\n[transport]\nlisten = [\"{}://127.0.0.1:0\"]\n\
             [transport.limits]\nconnections_per_address = 1000\n[storage]\nbackend = \"{}\"\n",
            settings.scheme, settings.backend
        ),
    )?;
    // Building it, where that is necessary, does not count.
    enjambre_tests::binary::enjambre();
    let begun = Instant::now();
    let args = ["tracker".as_ref(), "--config".as_ref(), config.as_os_str()];
    let mut process = Process::start(folder, args);
    let endpoint = process.wait_line(PATIENCE, endpoint_in);
    Ok((process, endpoint.parse()?, begun.elapsed()))
}

fn end(mut process: Process) -> Result<()> {
    process.signal(rustix::process::Signal::TERM);
    let output = process.wait(PATIENCE);
    ensure!(output.status == Some(0), "the tracker ended with {:?}\n{}", output.status, output.stderr);
    Ok(())
}

/// Starts a tracker several times on each data folder.
fn measure_start(settings: &Settings, folder: &Path) -> Result<()> {
    for existing in [false, true] {
        let (mut times, mut rss) = (Vec::new(), 0);
        for round in 0..7 {
            let data = if existing { "data".to_owned() } else { format!("fresh-{round}") };
            let (process, _, time) = start(settings, folder, &data)?;
            // What it does behind its start is done after a while.
            std::thread::sleep(Duration::from_millis(500));
            rss = rss_kib(process.pid()).unwrap_or_default();
            end(process)?;
            times.push(time.as_secs_f64() * 1000.0);
        }
        times.sort_by(f64::total_cmp);
        let result = json!({
            "mode": "start", "existing": existing, "ready_ms": times[times.len() / 2], "ready_ms_best": times[0],
            "idle_rss_kib": rss,
        });
        println!("{result}");
    }
    Ok(())
}

/// The memory of a process that is resident now.
fn rss_kib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

struct Peer {
    key: KeyPair,
    session: Mutex<SessionId>,
}

/// A catalogue full of files, peers with sessions, and connections.
struct Load {
    settings: Arc<Settings>,
    pid: Option<u32>,
    connections: Vec<Arc<dyn Connection>>,
    peers: Vec<Peer>,
    ids: Vec<FileId>,
    /// The requests that look each of the files up, from behind their ids on: encoding them anew would cost processor time
    /// that the tracker could have.
    questions: Vec<Questions>,
    /// The encoded offers of each message that a peer may send.
    chunks: Vec<Bytes>,
    /// How many messages of new entries were sent, of `peers * chunks`.
    next_new: AtomicUsize,
}

impl Load {
    async fn prepare(settings: &Arc<Settings>, endpoint: &Endpoint, pid: Option<u32>) -> Result<Self> {
        let transport = transport(endpoint.scheme())?;
        let mut connections = Vec::new();
        for _ in 0..settings.connections {
            connections.push(transport.connect(endpoint).await?);
        }
        // Another set of files in each run, so that a tracker that runs already has none of them.
        let run: [u8; 16] = rand::random();
        let id =
            |n: usize| FileId::from_bytes(*blake3::hash(&[&run[..], &n.to_be_bytes()].concat()).as_bytes());
        let ids: Vec<FileId> = (0..settings.files).map(id).collect();
        let mut order: Vec<FileId> = ids.clone();
        if settings.scatter {
            order.sort_unstable();
        }
        let chunks = order
            .chunks_exact(settings.offers)
            .map(|ids| {
                let offers: Vec<Offer> =
                    ids.iter().map(|id| Offer { id: *id, size: SIZE, complete: true }).collect();
                encoded_offers(&offers)
            })
            .collect();
        let peer = |_| Peer { key: KeyPair::generate(), session: Mutex::new(SessionId([0; 16])) };
        let load = Self {
            settings: Arc::clone(settings),
            pid,
            connections,
            peers: (0..settings.peers).map(peer).collect(),
            questions: ids.iter().map(Questions::new).collect(),
            ids,
            chunks,
            next_new: AtomicUsize::new(0),
        };
        let load = Arc::new(load);
        load.greet().await?;
        let next = AtomicUsize::new(0);
        load.in_parallel(usize::MAX, next, |load, at, connection| async move {
            let Some(id) = load.ids.get(at) else { return Ok(false) };
            let session = *load.peers[at % load.peers.len()].session.lock();
            let name = name_of(id).parse()?;
            let publish = Request::Publish { session, name, id: *id, size: SIZE, kind: FileKind::File };
            match ask(&*connection, &publish, DEADLINE).await?.0 {
                Reply::Published { version: 1, new: true } => Ok(true),
                other => bail!("publish was answered by {other:?}"),
            }
        })
        .await?;
        // That may have taken longer than a lease, where publications wait for a busy server.
        load.greet().await?;
        Arc::try_unwrap(load).map_err(|_| anyhow::anyhow!("a task is left"))
    }

    /// Begins the sessions of all peers.
    async fn greet(self: &Arc<Self>) -> Result<()> {
        self.in_parallel(usize::MAX, AtomicUsize::new(0), |load, at, connection| async move {
            match load.peers.get(at) {
                Some(peer) => hello(&*connection, peer, at).await.map(|()| true),
                None => Ok(false),
            }
        })
        .await
    }

    /// Runs `work` with the numbers from `next` on, on all connections at once, until it says that there is no more.
    async fn in_parallel<F, Fut>(self: &Arc<Self>, limit: usize, next: AtomicUsize, work: F) -> Result<()>
    where
        F: Fn(Arc<Self>, usize, Arc<dyn Connection>) -> Fut + Copy + Send + Sync + 'static,
        Fut: Future<Output = Result<bool>> + Send,
    {
        let next = Arc::new(next);
        let mut tasks = JoinSet::new();
        for connection in &self.connections {
            for _ in 0..self.settings.depth {
                let (load, next, connection) = (Arc::clone(self), Arc::clone(&next), Arc::clone(connection));
                tasks.spawn(async move {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        if at >= limit || !work(Arc::clone(&load), at, Arc::clone(&connection)).await? {
                            return anyhow::Ok(());
                        }
                    }
                });
            }
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        Ok(())
    }

    async fn announce(&self, connection: &dyn Connection, peer: usize, chunk: usize) -> Result<()> {
        let id = connection.next_id();
        let session = *self.peers[peer].session.lock();
        let header = announce_header(id, session, &self.chunks[chunk]);
        let reply = connection.call(id, header, DEADLINE).await?;
        match codec::decode_reply(&reply.header) {
            Some(Ok(Reply::Announced { unknown })) if unknown.is_empty() => Ok(()),
            other => bail!("an announcement was answered by {other:?}"),
        }
    }

    /// Announces entries that the tracker does not have; false once there are none.
    async fn announce_next(&self, connection: &dyn Connection) -> Result<bool> {
        let at = self.next_new.fetch_add(1, Ordering::Relaxed);
        let (peer, chunk) = (at % self.peers.len(), at / self.peers.len());
        if chunk >= self.chunks.len() {
            self.next_new.fetch_sub(1, Ordering::Relaxed);
            return Ok(false);
        }
        self.announce(connection, peer, chunk).await?;
        Ok(true)
    }
}

fn transport(scheme: &str) -> Result<Arc<dyn Transport>> {
    let settings = TransportSettings::default();
    match scheme {
        "zmq" => Ok(enjambre_transport::zmq(settings)?),
        "tcp" => Ok(enjambre_transport::tcp(settings)?),
        _ => bail!("there is no transport for {scheme}://"),
    }
}

fn name_of(id: &FileId) -> String {
    format!("file-{id}.bin")
}

async fn hello(connection: &dyn Connection, peer: &Peer, at: usize) -> Result<()> {
    let Reply::Hello { catalogue, nonce, .. } =
        ask(connection, &Request::Hello { proof: None }, DEADLINE).await?.0
    else {
        bail!("hello was not answered")
    };
    let endpoints = vec![format!("zmq://127.0.0.1:{}", 10_000 + at % 50_000).parse()?];
    let signature = peer.key.sign(&HelloProof::signed_bytes(catalogue, nonce, &endpoints));
    let proof = HelloProof { key: peer.key.public(), nonce, signature, endpoints };
    match ask(connection, &Request::Hello { proof: Some(proof) }, DEADLINE).await?.0 {
        Reply::Hello { welcome: Some(welcome), .. } => {
            *peer.session.lock() = welcome.session;
            Ok(())
        }
        other => bail!("hello was answered by {other:?}"),
    }
}

/// The CBOR of a list of offers, to be sent by many peers.
fn encoded_offers(offers: &[Offer]) -> Bytes {
    let request = Request::Announce { session: SessionId([0; 16]), offers: offers.to_vec() };
    let whole = codec::encode_request(RequestId(0), &request);
    let key = b"foffers";
    let at = whole.windows(key.len()).position(|window| window == key).expect("offers are announced");
    whole.slice(at + key.len()..)
}

/// `{"v": 1, "id": ..`
fn begin(header: &mut BytesMut, id: RequestId) {
    header.put_slice(b"\xa3\x61v\x01\x62id\x1b");
    header.put_u64(id.0);
}

/// `"ask": {..`
fn put_kind(header: &mut BytesMut, kind: &str, fields: u8) {
    header.put_slice(b"\x63ask\xa1");
    put_text(header, kind);
    header.put_u8(0xa0 | fields);
}

fn put_text(header: &mut BytesMut, text: &str) {
    match text.len() {
        length @ 0..24 => header.put_u8(0x60 | length as u8),
        length => header.put_slice(&[0x78, length as u8]),
    }
    header.put_slice(text.as_bytes());
}

fn announce_header(id: RequestId, session: SessionId, offers: &Bytes) -> Bytes {
    let mut header = BytesMut::with_capacity(offers.len() + 80);
    begin(&mut header, id);
    put_kind(&mut header, "announce", 2);
    put_text(&mut header, "session");
    header.put_u8(0x50);
    header.put_slice(&session.0);
    put_text(&mut header, "offers");
    header.put_slice(offers);
    header.freeze()
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Find,
    Providers,
}

/// What may be asked about a file.
#[derive(Debug)]
struct Questions {
    by_name: Bytes,
    by_id: Bytes,
    providers: Bytes,
}

impl Questions {
    fn new(id: &FileId) -> Self {
        let find = |query: &str| {
            let mut rest = BytesMut::new();
            put_kind(&mut rest, "find", 1);
            put_text(&mut rest, "query");
            put_text(&mut rest, query);
            rest.freeze()
        };
        let mut providers = BytesMut::new();
        put_kind(&mut providers, "providers", 1);
        put_text(&mut providers, "id");
        providers.put_slice(&[0x58, 32]);
        providers.put_slice(id.as_bytes());
        Self { by_name: find(&name_of(id)), by_id: find(&id.to_string()), providers: providers.freeze() }
    }
}

async fn ask_once(
    load: &Load,
    connection: &dyn Connection,
    kind: Kind,
    file: usize,
    count: u64,
) -> Result<()> {
    let (id, questions) = (load.ids[file], &load.questions[file]);
    let question = match kind {
        Kind::Find if count.is_multiple_of(2) => &questions.by_name,
        Kind::Find => &questions.by_id,
        Kind::Providers => &questions.providers,
    };
    let request_id = connection.next_id();
    let mut header = BytesMut::with_capacity(question.len() + 18);
    begin(&mut header, request_id);
    header.put_slice(question);
    let reply = connection.call(request_id, header.freeze(), DEADLINE).await?.header;
    if count.is_multiple_of(DECODED) {
        match (kind, codec::decode_reply(&reply)) {
            (Kind::Find, Some(Ok(Reply::Find { file }))) if file.id == id && file.providers > 0 => {}
            (Kind::Providers, Some(Ok(Reply::Providers { providers }))) if !providers.is_empty() => {}
            (_, other) => bail!("{kind:?} was answered by {other:?}"),
        }
        return Ok(());
    }
    let wanted: &[u8] = match kind {
        Kind::Find => id.as_bytes(),
        Kind::Providers => b"\x69endpoints",
    };
    ensure!(reply.windows(wanted.len()).any(|window| window == wanted), "{kind:?} was answered by {reply:?}");
    Ok(())
}

/// What is counted during a mode.
struct Watch {
    begun: Instant,
    cpu: f64,
    rss: u64,
}

impl Watch {
    fn begin(load: &Load) -> Self {
        let (cpu, rss) = now(load);
        Self { begun: Instant::now(), cpu, rss }
    }

    fn report(&self, load: &Load, mode: &str, counts: &[(&str, u64)]) {
        let seconds = self.begun.elapsed().as_secs_f64();
        let (cpu, rss) = now(load);
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

fn now(load: &Load) -> (f64, u64) {
    let pid = load.pid.unwrap_or_default();
    let cpu = figures::of(pid).map_or(0.0, |figures| figures.cpu_seconds);
    (cpu, rss_kib(pid).unwrap_or_default())
}

async fn announce_new(load: &Arc<Load>) -> Result<()> {
    let watch = Watch::begin(load);
    let sent = Arc::new(AtomicU64::new(0));
    announce_until(load, Instant::now() + load.settings.time, &sent).await?;
    watch.report(load, "announce-new", &[("entries", sent.load(Ordering::Relaxed))]);
    Ok(())
}

async fn announce_until(load: &Arc<Load>, end: Instant, sent: &Arc<AtomicU64>) -> Result<()> {
    let mut tasks = JoinSet::new();
    for connection in &load.connections {
        // Few at once: each message is large, and a peer does not send the next one before the last is answered.
        for _ in 0..load.settings.depth.min(4) {
            let (load, connection, sent) = (Arc::clone(load), Arc::clone(connection), Arc::clone(sent));
            tasks.spawn(async move {
                let most = load.settings.entries.unwrap_or(u64::MAX);
                let in_time = || load.settings.entries.is_some() || Instant::now() < end;
                while in_time() && sent.load(Ordering::Relaxed) < most {
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

/// Peers come back: each says hello and announces again what it had announced.
async fn announce_known(load: &Arc<Load>) -> Result<()> {
    // So many peers have announced so many messages.
    let messages = load.next_new.load(Ordering::Relaxed);
    let (peers, chunks) = (messages.min(load.peers.len()), (messages / load.peers.len()).max(1));
    ensure!(peers > 0, "announce-new comes before announce-known");
    let watch = Watch::begin(load);
    let end = Instant::now() + load.settings.time;
    let (sent, next) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut tasks = JoinSet::new();
    for connection in &load.connections {
        for _ in 0..load.settings.depth.min(4) {
            let (load, connection) = (Arc::clone(load), Arc::clone(connection));
            let (sent, next) = (Arc::clone(&sent), Arc::clone(&next));
            tasks.spawn(async move {
                while Instant::now() < end {
                    let peer = next.fetch_add(1, Ordering::Relaxed) % peers;
                    hello(&*connection, &load.peers[peer], peer).await?;
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
    let hellos = next.load(Ordering::Relaxed) as u64;
    watch.report(load, "announce-known", &[("entries", sent.load(Ordering::Relaxed)), ("hellos", hellos)]);
    Ok(())
}

async fn look_up(load: &Arc<Load>, kind: Kind) -> Result<()> {
    let watch = Watch::begin(load);
    let end = Instant::now() + load.settings.time;
    let count = look_up_until(load, kind, &load.connections, end).await?;
    watch.report(load, &format!("{kind:?}").to_lowercase(), &[("lookups", count)]);
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
                    ask_once(&load, &*connection, kind, file, count).await?;
                    count += 1;
                }
                anyhow::Ok(count)
            });
        }
    }
    let mut all = 0;
    while let Some(ended) = tasks.join_next().await {
        all += ended??;
    }
    Ok(all)
}

async fn mixed(load: &Arc<Load>) -> Result<()> {
    let watch = Watch::begin(load);
    let end = Instant::now() + load.settings.time;
    let sent = Arc::new(AtomicU64::new(0));
    let half = load.connections.len() / 2;
    let (announced, found, named) = tokio::join!(
        announce_until(load, end, &sent),
        look_up_until(load, Kind::Find, &load.connections[..half], end),
        look_up_until(load, Kind::Providers, &load.connections[half..], end),
    );
    announced?;
    let counts = [("entries", sent.load(Ordering::Relaxed)), ("lookups", found? + named?)];
    watch.report(load, "mixed", &counts);
    Ok(())
}
