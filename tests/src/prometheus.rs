//! The programs of Prometheus: `promtool`, and servers that scrape nodes and evaluate alerts.
//!
//! If the programs are not installed, functions print that the test is skipped and return `None`.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::http;
use crate::skip::installed;
use crate::wait::{TIMEOUT, wait_until};

/// Runs `promtool` with this input, and returns its output.
///
/// # Panics
/// Panics if the program reports a problem.
#[track_caller]
pub fn promtool(test: &str, args: &[&str], input: &str) -> Option<String> {
    let mut command = Command::new(installed(test, "promtool")?);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    child
        .stdin
        .take()
        .expect("the input is a pipe")
        .write_all(input.as_bytes())
        .expect("cannot send the input");
    let output = child.wait_with_output().expect("cannot wait for promtool");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "promtool {args:?}: {text}");
    Some(text)
}

/// A running server. Dropping it ends the process.
#[derive(Debug)]
pub struct Server {
    address: String,
    process: Child,
    _folder: TempDir,
}

impl Server {
    /// Starts a server that scrapes these addresses and evaluates these rules twice a second.
    ///
    /// # Panics
    /// Panics if the server does not start.
    #[track_caller]
    pub fn start(test: &str, targets: &[&str], rules: &str) -> Option<Self> {
        let program = installed(test, "prometheus")?;
        let folder = tempfile::tempdir().expect("cannot create a temporary directory");
        let path = |name: &str| folder.path().join(name);
        let config = format!(
            "global: {{ scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms }}\n\
             rule_files: [rules.yml]\n\
             scrape_configs: [{{ job_name: enjambre, static_configs: [{{ targets: {targets:?} }}] }}]\n"
        );
        fs::write(path("config.yml"), config).expect("cannot write the configuration");
        fs::write(path("rules.yml"), rules).expect("cannot write the rules");
        let log = File::create(path("log")).expect("cannot create the log");
        let mut command = Command::new(program);
        command.arg("--config.file").arg(path("config.yml")).arg("--storage.tsdb.path").arg(path("data"));
        command.args(["--web.listen-address", "127.0.0.1:0"]).stdin(Stdio::null()).stdout(Stdio::null());
        let process = command.stderr(log).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut server = Self { address: String::new(), process, _folder: folder };
        let log = server._folder.path().join("log");
        server.address = wait_until("the address of Prometheus", TIMEOUT, || address_in(&log));
        Some(server)
    }

    /// Returns the value of an expression that has at most one.
    ///
    /// # Panics
    /// Panics if the server does not reply.
    #[track_caller]
    pub fn value(&self, expression: &str) -> Option<f64> {
        let escaped: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let response = http::get(&self.address, &format!("/api/v1/query?query={escaped}"), &[]);
        // The server starts to serve queries a moment after it listens.
        let body: Value = serde_json::from_slice(&response.body).ok().filter(|_| response.status == 200)?;
        body["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    }

    /// Waits until an alert fires for a node.
    ///
    /// # Panics
    /// Panics if it does not.
    #[track_caller]
    pub fn wait_alert(&self, name: &str, instance: &str) {
        let firing =
            format!("ALERTS{{alertname=\"{name}\", instance=\"{instance}\", alertstate=\"firing\"}}");
        wait_until(name, TIMEOUT, || self.value(&format!("count({firing})")));
    }
}

fn address_in(log: &Path) -> Option<String> {
    let text = fs::read_to_string(log).ok()?;
    let line = text.lines().find(|line| line.contains("msg=\"Listening on\""))?;
    Some(line.split_once(" address=")?.1.split_whitespace().next()?.to_owned())
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
