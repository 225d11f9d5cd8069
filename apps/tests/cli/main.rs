//! Exit statuses and error messages of the program, without other processes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod missing_data;

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

struct Run {
    status: i32,
    stdout: String,
    stderr: String,
}

/// Runs the program in a directory, without the configuration of the user.
fn run_in(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_enjambre"));
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("ENJAMBRE") {
            command.env_remove(variable);
        }
    }
    command.args(arguments).current_dir(folder).env("XDG_CONFIG_HOME", folder.join("none"));
    // An error is one line even if backtraces are enabled.
    command.env("RUST_BACKTRACE", "1");
    command.envs(variables.iter().copied()).stdin(Stdio::null());
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { status: status.code().unwrap(), stdout: text(stdout), stderr: text(stderr) }
}

fn run(arguments: &[&str]) -> Run {
    let folder = TempDir::new().unwrap();
    run_in(folder.path(), arguments, &[])
}

/// Asserts that stderr is a single line that starts with `error: ` and contains `parts`.
fn assert_error(run: &Run, status: i32, parts: &[&str]) {
    assert_eq!(run.status, status, "{}", run.stderr);
    let lines: Vec<_> = run.stderr.lines().collect();
    let [line] = lines.as_slice() else { panic!("expected one line: {}", run.stderr) };
    assert!(line.starts_with("error: "), "{line}");
    for part in parts {
        assert!(line.contains(part), "{part:?} is missing in {line}");
    }
}

#[test]
fn invalid_command_line_exits_with_2() {
    for arguments in
        [&["nonsense"][..], &["get"], &["publish"], &["export", "x"], &["list", "--nonsense"], &[]]
    {
        assert_eq!(run(arguments).status, 2, "{arguments:?}");
    }
    assert_error(&run(&["publish", "a", "b", "--name", "c"]), 2, &["--name"]);
    for name in ["deadbeef", "a/b"] {
        assert_error(&run(&["publish", "a", "--name", name]), 2, &[name]);
    }
    for (arguments, range) in [
        (&["invite", "--uses", "x"][..], "from 1 to 4294967295"),
        (&["storage", "bench", "--seconds", "31"], "from 1 to 30"),
        (&["downloads", "move", "name", "1.5"], "of at least 0"),
    ] {
        let run = run(arguments);
        let is_named = run.stderr.contains(&format!("expected a whole number {range}"));
        assert!(run.status == 2 && is_named, "{}", run.stderr);
    }
    let help = run(&["--help"]);
    assert_eq!(help.status, 0);
    for command in
        ["tracker", "peer", "publish", "get", "library", "export", "remove", "verify", "status", "demo"]
    {
        assert!(help.stdout.contains(command), "{command}");
    }
}

#[test]
fn open_files_are_refused_as_paths() {
    // A running peer, which has other files open, would read or write those.
    for path in ["/dev/fd/999", "/dev/fd/999/file", "/proc/self/fd/999"] {
        assert_error(&run(&["get", "x", "-o", path]), 2, &[path, "`-o -`"]);
        assert_error(&run(&["export", "x", "-o", path]), 2, &["`enjambre get NAME -o -`"]);
        assert_error(&run(&["publish", "file", path]), 2, &[path, "`publish - --name NAME`"]);
    }
    assert_error(&run(&["export", "x", "-o", "/dev/stderr"]), 2, &["`enjambre get NAME -o -`"]);
}

#[test]
fn invalid_configuration_exits_with_2() {
    assert_error(
        &run(&["--set", "peer.trakers=[]", "library"]),
        2,
        &["peer.trakers", "peer.trackers", "--set"],
    );
    let sqlite = run(&["library", "--set", "storage.sqlite.pth=x"]);
    assert_error(&sqlite, 2, &["storage.sqlite.pth", "\"x\"", "path"]);
    let backend = run(&["library", "--set", "storage.backend=postgrs"]);
    assert_error(&backend, 2, &["storage.backend", "postgrs", "memory, postgres, sled, sqlite"]);
    let scheme = run(&["list", "--set", "peer.trackers=[\"gopher://h:1\"]"]);
    assert_error(&scheme, 2, &["peer.trackers", "gopher://h:1", "zmq://"]);
    assert_error(&run(&["library", "--set", "foo=1"]), 2, &["`foo`", "enjambre config show"]);
    assert_error(&run(&["peer", "--set", "limits.upload=-1"]), 2, &["limits.upload", "-1", "50MB/s"]);
    let cache = run(&["library", "--set", "storage.sqlite.cache_mib=-1"]);
    assert_error(&cache, 2, &["storage.sqlite.cache_mib", "-1", "a whole number from 0 to 4294967295"]);
    let endpoint = run(&["list", "--set", "peer.trackers=[\"tcp:/h:1\"]"]);
    assert_error(&endpoint, 2, &["peer.trackers", "missing \"://\""]);
    let limit = run(&["peer", "--set", "transport.limits.payload=1KiB"]);
    assert_error(&limit, 2, &["transport.limits.payload", "1KiB"]);
    assert_error(&run(&["list", "--config", "missing.toml"]), 2, &["missing.toml"]);
    let folder = TempDir::new().unwrap();
    let variable = [("ENJAMBRE__DOWNLOAD__PROVIDER_TIMEOUT", "soon")];
    let soon = run_in(folder.path(), &["library"], &variable);
    assert_error(&soon, 2, &["download.provider_timeout", "soon", "ENJAMBRE__DOWNLOAD__PROVIDER_TIMEOUT"]);
}

#[test]
fn configuration_of_other_node_is_refused() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("tracker.toml"), "[tracker]\n").unwrap();
    std::fs::write(folder.path().join("peer.toml"), "[peer]\n").unwrap();
    std::fs::write(folder.path().join("both.toml"), "[tracker]\n[peer]\n").unwrap();
    let run =
        |file: &str, command: &[&str]| run_in(folder.path(), &[command, &["--config", file]].concat(), &[]);
    for command in [&["library"][..], &["get", "x"], &["peer"]] {
        assert_error(&run("tracker.toml", command), 2, &["tracker.toml configures a tracker"]);
    }
    for command in [&["invite"][..], &["peers"], &["revoke", "abcd"], &["tracker"]] {
        assert_error(&run("peer.toml", command), 2, &["peer.toml configures a peer", "tracker's machine"]);
    }
    assert!(!folder.path().join("data").exists());
    assert_eq!(run("both.toml", &["library"]).status, 0);
    let added = run("tracker.toml", &["library", "--set", "peer.data_dir=other"]);
    assert_eq!(added.status, 0, "{}", added.stderr);
}

#[test]
fn exposed_plaintext_endpoint_requires_a_setting() {
    let listen = "transport.listen=[\"zmq://0.0.0.0:0\"]";
    for command in ["tracker", "peer"] {
        let refused = run(&[command, "--set", listen]);
        assert_error(
            &refused,
            2,
            &["transport.listen", "zmq://0.0.0.0:0", "transport.allow_plaintext = true", "127.0.0.1"],
        );
    }
    let open = run(&["config", "check", "--set", listen, "--set", "transport.allow_plaintext=true"]);
    assert_eq!(open.status, 0, "{}", open.stderr);
}

#[test]
fn config_show_prints_values_and_origins() {
    let folder = TempDir::new().unwrap();
    let file = "[peer]\ndata_dir = \"here\"\n[limits]\nupload = \"1MB/s\"\n[log]\nlevel = \"info\"\n";
    std::fs::write(folder.path().join("enjambre.toml"), file).unwrap();
    let variables = [("ENJAMBRE__LIMITS__UPLOAD", "5MB/s"), ("ENJAMBRE__LOG__LEVEL", "error")];
    let shown =
        run_in(folder.path(), &["config", "show", "enjambre.toml", "--set", "log.level=warn"], &variables);
    assert_eq!(shown.status, 0, "{}", shown.stderr);
    let origin = |value: &str| {
        let line =
            shown.stdout.lines().find(|line| line.starts_with(value)).unwrap_or_else(|| panic!("{value}"));
        line.split_once("# ").unwrap().1.to_owned()
    };
    assert_eq!(origin("data_dir = \"here\""), "enjambre.toml");
    assert_eq!(origin("upload = \"5MB/s\""), "environment variable ENJAMBRE__LIMITS__UPLOAD");
    assert_eq!(origin("level = \"warn\""), "--set log.level");
    assert_eq!(origin("download = \"unlimited\""), "default");
}

#[test]
fn log_level_of_file_applies_to_daemons_only() {
    let folder = TempDir::new().unwrap();
    let file = "[peer]\ndata_dir = \"here\"\n[log]\nlevel = \"error\"\n";
    std::fs::write(folder.path().join("enjambre.toml"), file).unwrap();
    let data_dir = folder.path().join("here");
    std::fs::create_dir(&data_dir).unwrap();
    let remove = |options: &[&str]| {
        // Causes a warning.
        std::fs::set_permissions(&data_dir, Permissions::from_mode(0o755)).unwrap();
        let arguments = [&["remove", "nothing", "--config", "enjambre.toml"], options].concat();
        run_in(folder.path(), &arguments, &[])
    };
    let warned = remove(&[]).stderr;
    assert!(warned.contains("permissions corrected"), "{warned}");
    assert_error(&remove(&["--set", "log.level=error"]), 3, &["nothing"]);
}

#[test]
fn configuration_of_the_current_directory_is_not_read() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("enjambre.toml"), "[peer]\ndata_dir = \"stolen\"\n").unwrap();
    let shown = run_in(folder.path(), &["config", "show"], &[]);
    assert!(shown.status == 0 && !shown.stdout.contains("stolen"), "{}", shown.stdout);
    let user = folder.path().join("none/enjambre");
    std::fs::create_dir_all(&user).unwrap();
    std::fs::write(user.join("enjambre.toml"), "[peer]\ndata_dir = \"own\"\n").unwrap();
    let shown = run_in(folder.path(), &["config", "show"], &[]);
    assert!(shown.stdout.contains("data_dir = \"own\""), "{}", shown.stdout);
}

#[test]
fn configuration_that_others_can_write_is_rejected() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("x.toml");
    std::fs::write(&path, "[peer]\n").unwrap();
    for (mode, status) in [(0o666, 2), (0o602, 2), (0o644, 0), (0o600, 0)] {
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let run = run_in(folder.path(), &["config", "check", "x.toml"], &[]);
        assert_eq!(run.status, status, "{mode:o}: {}", run.stderr);
        assert_eq!(run.stderr.contains("other users can write"), status == 2, "{}", run.stderr);
    }
    // Only root can give files away.
    if std::os::unix::fs::chown(&path, Some(12345), None).is_ok() {
        assert_error(&run_in(folder.path(), &["library", "--config", "x.toml"], &[]), 2, &["12345"]);
    }
    assert_eq!(run(&["config", "check", "/dev/null"]).status, 0);
}

/// Returns the paths below a directory that other users can read.
fn readable_by_others(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        if metadata.mode() & 0o077 != 0 {
            found.push(path.clone());
        }
        if metadata.is_dir() {
            found.extend(readable_by_others(&path));
        }
    }
    found
}

#[test]
fn files_in_an_existing_data_directory_are_private() {
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data");
    std::fs::write(folder.path().join("file"), "content").unwrap();
    for settings in [
        &["storage.backend=sqlite", "library.content=database"][..],
        &["storage.backend=sqlite", "library.content=files"],
    ] {
        std::fs::create_dir(&data).unwrap();
        std::fs::set_permissions(&data, Permissions::from_mode(0o755)).unwrap();
        let common = ["peer.data_dir=data", "transport.listen=[]", "peer.trackers=[\"zmq://127.0.0.1:1\"]"];
        let set = common.iter().chain(settings).flat_map(|setting| ["--set", *setting]);
        let published = run_in(
            folder.path(),
            &[&["publish", "--copy", "file"][..], &set.collect::<Vec<_>>()].concat(),
            &[],
        );
        assert_eq!(published.status, 4, "{}", published.stderr);
        assert!(data.join("key").exists() && data.join("library.db").exists());
        assert_eq!(readable_by_others(folder.path()), [folder.path().join("file")], "{settings:?}");
        std::fs::remove_dir_all(&data).unwrap();
    }
}

#[test]
fn data_directory_of_another_user_is_left_unchanged() {
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    // Only root can give directories away.
    if std::os::unix::fs::chown(&data, Some(12345), None).is_err() {
        return;
    }
    for command in
        [&["library"][..], &["publish", "x"], &["peer"], &["storage", "stats"], &["storage", "check"]]
    {
        let run = run_in(folder.path(), &[command, &["--set", "peer.data_dir=data"]].concat(), &[]);
        assert_error(&run, 1, &["data", "user number 12345", "as that user"]);
    }
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0);
}

#[test]
fn memory_backend_starts_empty_every_time() {
    let folder = TempDir::new().unwrap();
    for _ in 0..2 {
        let set = ["--set", "peer.data_dir=data", "--set", "storage.backend=memory"];
        assert_eq!(run_in(folder.path(), &[&["library"][..], &set].concat(), &[]).status, 0);
    }
}

#[test]
fn config_check_validates_the_file() {
    let folder = TempDir::new().unwrap();
    for (text, words) in [
        (&b"[tracker]\nleese = \"1s\"\n"[..], &["tracker.leese", "tracker.lease"][..]),
        (b"[librery]\ncontent = \"files\"\n", &["librery", "library"]),
        (b"[tracker\n", &["x.toml:1", "invalid TOML"]),
        (b"[tracker]\ndata_dir = \"\xff\"\n", &["UTF-8"]),
    ] {
        std::fs::write(folder.path().join("x.toml"), text).unwrap();
        let wrong = run_in(folder.path(), &["config", "check", "x.toml"], &[]);
        assert_error(&wrong, 2, &[&["x.toml"], words].concat());
    }
    assert_error(&run_in(folder.path(), &["config", "check", "."], &[]), 2, &["cannot read"]);
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config");
    for name in ["tracker.toml", "peer.toml"] {
        let path = shipped.join(name);
        let right = run_in(folder.path(), &["config", "check", path.to_str().unwrap()], &[]);
        assert_eq!(right.status, 0, "{}", right.stderr);
    }
}

#[test]
fn config_check_reads_the_files_that_the_start_reads() {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, text: &str, mode| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    };
    let own = rcgen::generate_simple_self_signed(["peer.example".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["peer.example".to_owned()]).unwrap();
    write("cert", &own.cert.pem(), 0o644);
    write("key", &own.signing_key.serialize_pem(), 0o600);
    write("public-key", &own.signing_key.serialize_pem(), 0o644);
    write("other-key", &other.signing_key.serialize_pem(), 0o600);
    write("empty", "", 0o600);
    write("token", "secret", 0o600);
    write("public-token", "secret", 0o644);
    let run = |command: &[&str], cert: &str, key: &str, token: &str| {
        let text = format!(
            "[http]\nlisten = [\"127.0.0.1:0\"]\ntoken_file = \"{token}\"\n\
             tls = {{ cert = \"{cert}\", key = \"{key}\" }}\n[transport]\nlisten = [\"tcp://127.0.0.1:0\"]\n"
        );
        write("x.toml", &text, 0o600);
        run_in(folder.path(), &[command, &["--config", "x.toml"]].concat(), &[])
    };
    let valid = run(&["config", "check"], "cert", "key", "token");
    assert_eq!((valid.status, valid.stderr.as_str()), (0, ""));
    // As on a read-only mount of a container.
    let public = run(&["config", "check"], "cert", "public-key", "public-token");
    let is_warned = ["http.tls.key", "http.token_file", "chmod 600"].map(|word| public.stderr.contains(word));
    assert_eq!((public.status, is_warned), (0, [true; 3]), "{}", public.stderr);
    for (cert, key, token, words) in [
        ("missing", "key", "token", ["`http.tls.cert`", "\"missing\""]),
        ("empty", "key", "token", ["`http.tls.cert`", "contains no certificate"]),
        ("cert", "missing", "token", ["`http.tls.key`", "\"missing\""]),
        ("cert", "empty", "token", ["`http.tls.key`", "\"empty\""]),
        ("cert", "other-key", "token", ["`http.tls.key`", "does not belong to the certificate"]),
        ("cert", "key", "empty", ["`http.token_file`", "contains no HTTP token"]),
    ] {
        assert_error(&run(&["config", "check"], cert, key, token), 2, &words);
        let start = run(&["peer", "-q"], cert, key, token);
        assert_eq!(start.status, 2, "{}", start.stderr);
        assert!(start.stderr.contains(words[0]), "{}", start.stderr);
    }
    let text = "[tracker]\n[storage]\nbackend = \"postgres\"\n[storage.postgres]\nca = \"missing.pem\"\n";
    write("x.toml", text, 0o600);
    assert_error(
        &run_in(folder.path(), &["config", "check", "x.toml"], &[]),
        2,
        &["[storage.postgres]", "ca ", "missing.pem"],
    );
    assert!(!folder.path().join("data/tracker").exists());
    let words = ["[storage.postgres]", "ca ", "missing.pem"];
    for command in [&["tracker"][..], &["storage", "check"], &["storage", "bench"]] {
        assert_error(&run_in(folder.path(), &[command, &["--config", "x.toml"]].concat(), &[]), 2, &words);
    }
}

#[test]
fn config_show_contains_the_settings_of_the_backend() {
    for (backend, line) in [("sqlite", "cache_mib = 8"), ("sled", "cache_mib = 16")] {
        let shown = run(&["config", "show", "--set", &format!("storage.backend={backend}")]).stdout;
        let (_, section) = shown.split_once(&format!("[storage.{backend}]\n")).expect(&shown);
        assert!(section.starts_with(line) && section.contains("# default"), "{section}");
    }
    let shown = run(&["config", "show", "--set", "storage.sqlite.cache_mib=3"]).stdout;
    assert!(shown.contains("cache_mib = 3") && !shown.contains("cache_mib = 8"), "{shown}");
}

#[test]
fn unreachable_tracker_exits_with_4() {
    // Nothing listens at port 1 of loopback.
    let tracker = "peer.trackers=[\"zmq://127.0.0.1:1\"]";
    let refused =
        "error: cannot reach tracker zmq://127.0.0.1:1: connection refused; check that it is running";
    assert_error(&run(&["list", "--set", tracker]), 4, &[refused]);
    let alone = "transport.listen=[\"zmq://127.0.0.1:0\"]";
    let json = run(&["get", "x", "--json", "--set", tracker, "--set", alone]);
    assert_error(&json, 4, &["zmq://127.0.0.1:1"]);
    assert!(json.stdout.starts_with("{\"event\":\"error\",\"message\":"), "{}", json.stdout);
}

#[test]
fn unknown_file_exits_with_3() {
    let nothing = run(&["library", "--json"]);
    assert_eq!((nothing.status, nothing.stdout.as_str()), (0, ""), "{}", nothing.stderr);
    assert_error(&run(&["remove", "nothing"]), 3, &["no node was ever started"]);
    assert_error(&run(&["demo", "nothing"]), 1, &["cannot publish nothing"]);
    assert_error(&run(&["demo", "--config", "x.toml"]), 2, &["--config"]);
}
