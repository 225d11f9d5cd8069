//! Programs that read from the gateway while the content arrives.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use enjambre_tests::content::MIB;
use enjambre_tests::node::{Peer, Tracker, World};
use enjambre_tests::process::Process;
use enjambre_tests::skip::installed;
use enjambre_tests::wait::TIMEOUT;

use crate::http::swarm;

/// The files of the published directory.
const FILES: [&str; 2] = ["film.bin", "süß & <b>/50%.txt"];

/// A program, and a gateway of a peer that has none of the published files.
struct Reading {
    program: PathBuf,
    /// The address of the published names.
    url: String,
    // Ends before its directory is removed.
    _nodes: (Tracker, Peer, Peer),
    world: World,
}

impl Reading {
    /// Publishes a file, and a directory with it. Returns `None` if the program is not installed.
    fn new(test: &str, program: &str) -> Option<Self> {
        let program = installed(test, program)?;
        let world = World::default();
        // The content arrives for more than a second.
        let (tracker, source, gateway, address) = swarm(&world, &["limits.download=\"10MB/s\""]);
        let folder = world.path("films");
        fs::create_dir_all(folder.join(FILES[1]).parent().unwrap()).unwrap();
        fs::write(folder.join(FILES[1]), "text").unwrap();
        let (film, _) = world.file("films/film.bin", 16 * MIB + 3);
        source.publish(&film, &[]);
        source.publish(&folder, &[]);
        let url = format!("http://{address}/files/");
        Some(Self { program, url, _nodes: (tracker, source, gateway), world })
    }

    /// Runs the program in the directory of the world.
    #[track_caller]
    fn run(&self, args: &[&str]) {
        let mut command = Command::new(&self.program);
        command.args(args).current_dir(self.world.path("")).env("no_proxy", "127.0.0.1");
        Process::start_command(&self.world.path(""), command).wait(TIMEOUT).ok();
    }

    fn published(&self, file: &str) -> Vec<u8> {
        fs::read(self.world.path("films").join(file)).unwrap()
    }

    fn received(&self, path: &str) -> Vec<u8> {
        fs::read(self.world.path(path)).unwrap()
    }
}

#[test]
fn curl_reads_a_range_and_resumes() {
    let Some(curl) = Reading::new("curl_reads_a_range_and_resumes", "curl") else { return };
    let url = format!("{}film.bin", curl.url);
    curl.run(&["-sSf", "-r", "9000001-12000000", "-o", "range", &url]);
    assert!(curl.received("range") == curl.published(FILES[0])[9_000_001..=12_000_000]);
    fs::write(curl.world.path("whole"), &curl.published(FILES[0])[..5_000_000]).unwrap();
    curl.run(&["-sSf", "-C", "-", "-o", "whole", &url]);
    assert!(curl.received("whole") == curl.published(FILES[0]));
}

#[test]
fn wget_reads_a_directory_and_resumes() {
    let Some(wget) = Reading::new("wget_reads_a_directory_and_resumes", "wget") else { return };
    fs::write(wget.world.path("film.bin"), &wget.published(FILES[0])[..5_000_000]).unwrap();
    wget.run(&["-nv", "-c", &format!("{}film.bin", wget.url)]);
    assert!(wget.received("film.bin") == wget.published(FILES[0]));
    wget.run(&[
        "-nv",
        "--restrict-file-names=nocontrol",
        "-r",
        "-np",
        "-nH",
        "--cut-dirs=2",
        "-P",
        "received",
        &format!("{}films/", wget.url),
    ]);
    for file in FILES {
        assert!(wget.received(&format!("received/{file}")) == wget.published(file), "{file}");
    }
}

#[test]
fn aria2_reads_over_eight_connections() {
    let Some(aria2) = Reading::new("aria2_reads_over_eight_connections", "aria2c") else { return };
    aria2.run(&["--no-conf", "-x8", "-s8", "-k1M", "-o", "whole", &format!("{}film.bin", aria2.url)]);
    assert!(aria2.received("whole") == aria2.published(FILES[0]));
}

#[test]
fn rclone_copies_a_directory() {
    let Some(rclone) = Reading::new("rclone_copies_a_directory", "rclone") else { return };
    let url = format!("{}films/", rclone.url);
    let streams = ["--multi-thread-cutoff", "1M", "--multi-thread-streams", "4"];
    let copy = ["copy", "--config", "none.conf", "--http-url", &url, ":http:", "received"];
    rclone.run(&[&copy[..], &streams].concat());
    for file in FILES {
        assert!(rclone.received(&format!("received/{file}")) == rclone.published(file), "{file}");
    }
}
