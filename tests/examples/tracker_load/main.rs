//! Load test of a tracker: announcements and lookups from many peers over many connections, with checked replies.
//!
//!     cargo run --release -p enjambre-tests --example tracker_load -- [MODE...] [--KEY VALUE...]
//!
//! | mode | load |
//! | --- | --- |
//! | `announce-new` | announcements of entries that the tracker does not have |
//! | `announce-known` | peers that open a new session and announce the same entries again |
//! | `find` | lookups, alternately by name and by id |
//! | `providers` | lookups of providers |
//! | `mixed` | announcements on all connections, with `find` on one half and `providers` on the other |
//! | `start` | startup time with a new data directory and with that of the previous modes |
//!
//! Without a mode, all except `start` run. Each mode prints one line of JSON. `cpu_s` and `rss_kib` belong to the tracker and
//! are read from `/proc` (Linux only). `--help` lists the options.

mod load;
mod modes;
mod requests;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::Parser;
use enjambre_core::model::endpoint::Endpoint;
use enjambre_tests::node::endpoint_in;
use enjambre_tests::process::Process;
use enjambre_tests::process_stats;
use enjambre_tests::wait::TIMEOUT;
use serde_json::json;

use load::Load;
use modes::{announce_known, announce_new, look_up, mixed};
use requests::Kind;

const DEFAULT_MODES: [&str; 5] = ["announce-new", "announce-known", "find", "providers", "mixed"];

#[derive(Debug, Parser)]
struct Settings {
    /// announce-new, announce-known, find, providers, mixed or start
    #[arg(value_name = "MODE", default_values_t = DEFAULT_MODES.map(str::to_owned))]
    modes: Vec<String>,
    /// Endpoint of a running tracker to use instead of starting one
    #[arg(long)]
    endpoint: Option<Endpoint>,
    /// Process id of the running tracker
    #[arg(long)]
    pid: Option<u32>,
    /// Transport of the started tracker
    #[arg(long, default_value = "zmq")]
    scheme: String,
    /// Storage backend of the started tracker
    #[arg(long, default_value = "sqlite")]
    backend: String,
    /// Number of connections
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// Number of concurrent requests per connection
    #[arg(long, default_value_t = 32)]
    depth: usize,
    /// Duration of each mode
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// End announce-new after this number of entries instead of the duration
    #[arg(long)]
    entries: Option<u64>,
    /// Number of peers
    #[arg(long, default_value_t = 1000)]
    peers: usize,
    /// Number of files in the catalogue
    #[arg(long, default_value_t = 4000)]
    files: usize,
    /// Number of offers per message
    #[arg(long, default_value_t = 800)]
    offers: usize,
    /// 1: a peer announces files that were not published consecutively
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=1))]
    scatter: u8,
}

impl Settings {
    fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_secs_f64(self.seconds)
    }
}

fn main() -> Result<()> {
    let settings = Arc::new(Settings::parse());
    ensure!(settings.files >= settings.offers, "--files must be at least --offers");
    ensure!(settings.connections > 0, "--connections must be at least 1");
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
    let needs_load = settings.modes.iter().any(|mode| mode != "start");
    let load = if needs_load {
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
                    stop(process)?;
                }
                measure_start(&settings, folder.path())?;
            }
            _ => bail!("unknown mode {mode:?}"),
        }
    }
    Ok(())
}

/// Starts a tracker. Returns the process, its endpoint and the time until it was ready.
fn start(settings: &Settings, folder: &Path, data: &str) -> Result<(Process, Endpoint, Duration)> {
    let config = folder.join("enjambre.toml");
    fs::write(
        &config,
        format!(
            "[tracker]\ndata_dir = \"{data}\"\nlease = \"600s\"\nsessions_per_address = 4000000000\n[transport]\nlisten = [\"{}://127.0.0.1:0\"]\n\
             [transport.limits]\nconnections_per_address = 1000\n[storage]\nbackend = \"{}\"\n",
            settings.scheme, settings.backend
        ),
    )?;
    let started = Instant::now();
    let args = ["tracker".as_ref(), "--config".as_ref(), config.as_os_str()];
    let mut process = Process::start(folder, args);
    let endpoint = process.wait_line(TIMEOUT, endpoint_in);
    Ok((process, endpoint.parse()?, started.elapsed()))
}

fn stop(mut process: Process) -> Result<()> {
    process.signal(rustix::process::Signal::TERM);
    let output = process.wait(TIMEOUT);
    ensure!(
        output.status == Some(0),
        "the tracker exited with status {:?}\n{}",
        output.status,
        output.stderr
    );
    Ok(())
}

/// Measures the startup with new data directories and with an existing one.
fn measure_start(settings: &Settings, folder: &Path) -> Result<()> {
    for existing in [false, true] {
        let (mut times, mut rss) = (Vec::new(), 0);
        for round in 0..7 {
            let data = if existing { "data".to_owned() } else { format!("fresh-{round}") };
            let (process, _, time) = start(settings, folder, &data)?;
            // Until background work after the startup is done.
            std::thread::sleep(Duration::from_millis(500));
            rss = process_stats::memory(process.pid(), "VmRSS").unwrap_or_default();
            stop(process)?;
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
