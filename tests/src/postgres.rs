//! PostgreSQL servers for tests: each in a temporary directory, on a free loopback port, stopped at the end of the test.
//!
//! The server programs are those installed on the system, or those in the directory [`OVERRIDE`]. PostgreSQL refuses to
//! run as root, so root runs it as the user `postgres`. If the programs are not installed, [`Server::start`] prints that
//! the test is skipped and returns `None`.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::process::{Signal, geteuid};
use tempfile::TempDir;

use crate::server::{self, Running, free_ports};
use crate::skip::print_skipped;
use crate::wait::{TIMEOUT, wait_until};

/// The environment variable with the directory of the server programs.
pub const OVERRIDE: &str = "ENJAMBRE_POSTGRES_BIN";
/// The superuser, without a password.
pub const USER: &str = "enjambre";
/// A user with the password [`PASSWORD`].
pub const USER_WITH_PASSWORD: &str = "guarded";
/// The password of [`USER_WITH_PASSWORD`].
pub const PASSWORD: &str = "correct horse battery staple";
/// The system user that runs servers if the test runs as root.
const SYSTEM_USER: &str = "postgres";

/// Shutdown modes of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Ends all sessions and writes all data.
    Fast,
    /// Exits without a checkpoint, as in a crash.
    Immediate,
}

impl Stop {
    const fn signal(self) -> Signal {
        match self {
            Self::Fast => Signal::INT,
            Self::Immediate => Signal::QUIT,
        }
    }
}

/// A server with its own directory. Dropping it stops the server and removes the data.
#[derive(Debug)]
pub struct Server {
    programs: PathBuf,
    /// Additional lines for `postgresql.conf`.
    settings: String,
    running: Mutex<Option<Running>>,
    port: u16,
    folder: TempDir,
}

/// Returns the directory of the server programs, or `None` if PostgreSQL is not installed.
fn programs() -> Option<PathBuf> {
    let has = |folder: &PathBuf| folder.join("initdb").is_file() && folder.join("postgres").is_file();
    if let Some(folder) = std::env::var_os(OVERRIDE) {
        return Some(folder.into());
    }
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<(u32, PathBuf)> = debian
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, folder)| has(folder))
        .collect();
    versions.sort();
    let installed = versions.pop().map(|(_, folder)| folder);
    installed.or_else(|| std::env::split_paths(&std::env::var_os("PATH")?).find(has))
}

/// Returns the command for a server program, as a user other than root.
fn command(programs: &Path, program: &str) -> Command {
    let user = ["--reuid", SYSTEM_USER, "--regid", SYSTEM_USER, "--clear-groups"];
    let options = if geteuid().is_root() { &user[..] } else { &[] };
    let mut command = server::command(&programs.join(program), "QUIT", options);
    command.env_remove("PGDATA").env("LC_ALL", "C").current_dir("/");
    command
}

fn run(mut command: Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Changes the owner of a path to the user that runs servers.
fn change_owner(path: &Path) {
    if geteuid().is_root() {
        let id = |flag: &str| {
            let mut command = Command::new("id");
            command.args([flag, SYSTEM_USER]);
            run(command).trim().parse::<u32>().expect("`id` prints a number")
        };
        chown(path, Some(id("-u")), Some(id("-g"))).expect("cannot change the owner");
    }
}

impl Server {
    /// Returns the server that concurrent tests of this process share; each test uses its own schema. Returns `None`, and
    /// prints that the test is skipped, if PostgreSQL is not installed.
    ///
    /// # Panics
    /// Panics if the server does not start.
    pub fn shared(test: &str) -> Option<Arc<Self>> {
        static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock();
        if let Some(server) = shared.upgrade() {
            return Some(server);
        }
        let server = Arc::new(Self::start(test, "")?);
        *shared = Arc::downgrade(&server);
        Some(server)
    }

    /// Starts a server for one test, with additional lines for `postgresql.conf`. Returns `None`, and prints that the test
    /// is skipped, if PostgreSQL is not installed.
    ///
    /// # Panics
    /// Panics if the server does not start.
    pub fn start(test: &str, settings: &str) -> Option<Self> {
        let Some(programs) = programs() else {
            print_skipped(test, "PostgreSQL is not installed (Debian: apt-get install postgresql)");
            return None;
        };
        let folder = Self::folder();
        let server = Self {
            programs,
            settings: settings.to_owned(),
            running: Mutex::default(),
            port: free_ports::<1>()[0],
            folder,
        };
        let mut init = command(&server.programs, "initdb");
        init.args([
            "--no-sync",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--username",
            USER,
            "--pgdata",
        ]);
        init.arg(server.data());
        run(init);
        server.configure();
        server.start_again();
        server.sql(&format!("CREATE USER {USER_WITH_PASSWORD} PASSWORD '{PASSWORD}'"));
        server.sql(&format!("GRANT CREATE ON DATABASE postgres TO {USER_WITH_PASSWORD}"));
        Some(server)
    }

    /// Starts a streaming replica of this server, read-only until [`Server::promote`].
    ///
    /// # Panics
    /// Panics if the replica does not start.
    pub fn replica(&self, name: &str) -> Self {
        let folder = Self::folder();
        let replica = Self {
            programs: self.programs.clone(),
            settings: self.settings.clone(),
            running: Mutex::default(),
            port: free_ports::<1>()[0],
            folder,
        };
        let mut copy = command(&replica.programs, "pg_basebackup");
        copy.args([
            "--no-sync",
            "--checkpoint=fast",
            "--wal-method=stream",
            "--write-recovery-conf",
            "--dbname",
        ]);
        copy.arg(format!("host=127.0.0.1 port={} user={USER} application_name={name}", self.port));
        copy.arg("--pgdata").arg(replica.data());
        run(copy);
        replica.configure();
        replica.start_again();
        replica
    }

    fn folder() -> TempDir {
        let folder = TempDir::new().expect("cannot create a temporary directory");
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("cannot set permissions");
        let data = folder.path().join("data");
        fs::create_dir(&data).expect("cannot create the data directory");
        fs::set_permissions(&data, Permissions::from_mode(0o700)).expect("cannot set permissions");
        change_owner(&data);
        folder
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Writes the configuration. The server crashes but the machine does not, so commits survive without `fsync`, which
    /// would dominate the duration of the tests.
    fn configure(&self) {
        let added = format!(
            "\nlisten_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = ''\nshared_buffers = '32MB'\n\
             fsync = off\nmax_connections = 200\ntimezone = 'UTC'\n{}\n",
            self.port, self.settings
        );
        let path = self.data().join("postgresql.conf");
        let default = fs::read_to_string(&path).expect("cannot read the configuration");
        fs::write(&path, default + &added).expect("cannot write the configuration");
        let rules = format!(
            "host all {USER_WITH_PASSWORD} 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n\
             host replication all 127.0.0.1/32 trust\nlocal all all trust\n"
        );
        fs::write(self.data().join("pg_hba.conf"), rules).expect("cannot write pg_hba.conf");
    }

    /// Writes a file that only the server can read into the data directory, such as a TLS key.
    ///
    /// # Panics
    /// Panics if the file cannot be written.
    pub fn put_file(&self, name: &str, content: &str) {
        let path = self.data().join(name);
        fs::write(&path, content).expect("cannot write the file");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("cannot set permissions");
        change_owner(&path);
    }

    /// Appends lines to `postgresql.conf`, effective after the next start.
    ///
    /// # Panics
    /// Panics if the file cannot be written.
    pub fn set(&self, settings: &str) {
        let path = self.data().join("postgresql.conf");
        let before = fs::read_to_string(&path).expect("cannot read the configuration");
        fs::write(&path, format!("{before}\n{settings}\n")).expect("cannot write the configuration");
    }

    /// Starts the server with its existing data and waits until it is ready.
    ///
    /// # Panics
    /// Panics if the server is already running or does not start.
    pub fn start_again(&self) {
        let mut running = self.running.lock();
        assert!(running.is_none(), "the server is already running");
        let log = self.log_path();
        let mut postgres = command(&self.programs, "postgres");
        postgres.arg("-D").arg(self.data());
        postgres.stderr(File::options().append(true).create(true).open(&log).expect("cannot open the log"));
        let server = Running::start(postgres);
        let pid = server.pid().as_raw_nonzero().to_string();
        let pid_file = self.data().join("postmaster.pid");
        wait_until("the database server is ready", TIMEOUT, || {
            assert!(
                !server.has_exited(),
                "the server exited: {}",
                fs::read_to_string(&log).unwrap_or_default()
            );
            let text = fs::read_to_string(&pid_file).ok()?;
            let mut lines = text.lines();
            let is_own = lines.next()? == pid;
            (is_own && lines.nth(6)?.trim() == "ready").then_some(())
        });
        *running = Some(server);
    }

    /// Stops the server and waits for its exit. Does nothing if the server is not running.
    ///
    /// # Panics
    /// Panics if the server does not exit.
    pub fn stop(&self, mode: Stop) {
        let Some(server) = self.running.lock().take() else { return };
        assert!(server.stop(mode.signal()), "the database server does not exit");
    }

    /// Promotes a replica to a primary server.
    ///
    /// # Panics
    /// Panics if the promotion fails.
    pub fn promote(&self) {
        self.sql("SELECT pg_promote()");
    }

    /// Executes a statement as the superuser and returns the output of `psql`.
    ///
    /// # Panics
    /// Panics if the statement fails.
    pub fn sql(&self, statement: &str) -> String {
        let mut psql = command(&self.programs, "psql");
        psql.args([
            "--no-psqlrc",
            "--quiet",
            "--tuples-only",
            "--no-align",
            "--host=127.0.0.1",
            "--dbname=postgres",
        ]);
        psql.args(["--set=ON_ERROR_STOP=1", "--username", USER, "--command", statement]);
        psql.arg(format!("--port={}", self.port));
        run(psql)
    }

    /// Returns the server log.
    ///
    /// # Panics
    /// Panics if the log cannot be read.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).expect("cannot read the log")
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Returns the port at 127.0.0.1.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Returns the URL for [`USER`].
    pub fn url(&self) -> String {
        self.url_for(USER)
    }

    /// Returns the URL for a user.
    pub fn url_for(&self, user: impl AsRef<OsStr>) -> String {
        format!("postgresql://{}@127.0.0.1:{}/postgres", user.as_ref().to_string_lossy(), self.port)
    }
}

/// Returns a unique schema name.
pub fn fresh_schema() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("test_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(server) = self.running.get_mut().take() {
            server.stop(Signal::QUIT);
        }
    }
}
