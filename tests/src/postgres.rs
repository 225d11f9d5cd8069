//! A private PostgreSQL server for tests: made in a temporary folder, listening on a free port of this machine, and
//! gone with the test.
//!
//! The server's programs are those of the system ([`OVERRIDE`] names others). A server refuses to run as root; then it
//! runs as the user `postgres`. Where there are no programs, [`Server::start`] says so past the test harness and gives
//! nothing, and the test passes without having tested.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Weak};
use std::thread;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

use crate::wait::{LONG, wait_until};

/// The environment variable that names the folder of the server's programs.
pub const OVERRIDE: &str = "ENJAMBRE_POSTGRES_BIN";
/// The superuser, who needs no password.
pub const USER: &str = "enjambre";
/// A user who needs [`PASSWORD`].
pub const USER_WITH_PASSWORD: &str = "guarded";
/// The password of [`USER_WITH_PASSWORD`].
pub const PASSWORD: &str = "correct horse battery staple";
/// The user that servers run as where this is root.
const SYSTEM_USER: &str = "postgres";

/// How a server is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Sessions are ended, and everything is written.
    Fast,
    /// As in a crash: nothing is written any more.
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

/// A server that runs.
#[derive(Debug)]
struct Running {
    pid: Pid,
    ended: Receiver<()>,
}

/// A server with a folder of its own. It is ended, and its data removed, when this is dropped.
#[derive(Debug)]
pub struct Server {
    programs: PathBuf,
    /// More lines for `postgresql.conf`.
    settings: String,
    running: Mutex<Option<Running>>,
    port: u16,
    folder: TempDir,
}

/// Where the server's programs are; none where it is not installed.
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

/// Runs a program of the server, as the user that it may run as.
fn command(programs: &Path, program: &str) -> Command {
    let path = programs.join(program);
    let mut command = if cfg!(target_os = "linux") {
        let mut command = Command::new("setpriv");
        // Ended as well when this process is killed. The signal comes when the thread ends that started it.
        command.args(["--pdeathsig", "QUIT"]);
        if geteuid().is_root() {
            command.args(["--reuid", SYSTEM_USER, "--regid", SYSTEM_USER, "--clear-groups"]);
        }
        command.arg(path);
        command
    } else {
        Command::new(path)
    };
    command.env_remove("PGDATA").env("LC_ALL", "C").current_dir("/");
    command
}

fn run(mut command: Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Gives a path to the user that servers run as.
fn give(path: &Path) {
    if geteuid().is_root() {
        let id = |flag: &str| {
            let mut command = Command::new("id");
            command.args([flag, SYSTEM_USER]);
            run(command).trim().parse::<u32>().expect("a number")
        };
        chown(path, Some(id("-u")), Some(id("-g"))).expect("root may give files away");
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a free port");
    listener.local_addr().expect("it has an address").port()
}

impl Server {
    /// The server of this process, shared by the tests that run at the same time; each takes a schema of its own.
    /// `None`, said loudly, where there is no server to start.
    ///
    /// # Panics
    /// If it does not start.
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

    /// A server of one's own, for tests that stop it or need other settings, lines of `postgresql.conf`. `None`, said
    /// loudly, where there is no server to start.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(test: &str, settings: &str) -> Option<Self> {
        let Some(programs) = programs() else {
            // Past the test harness, which would keep it to itself.
            let _ = writeln!(
                std::io::stderr().lock(),
                "\n***** {test} WAS LEFT OUT: there is no PostgreSQL server (Debian: apt-get install postgresql) *****"
            );
            return None;
        };
        let folder = Self::folder();
        let server = Self {
            programs,
            settings: settings.to_owned(),
            running: Mutex::default(),
            port: free_port(),
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

    /// A replica of this server that follows it until [`Server::promote`].
    ///
    /// # Panics
    /// If it does not start.
    pub fn replica(&self, name: &str) -> Self {
        let folder = Self::folder();
        let replica = Self {
            programs: self.programs.clone(),
            settings: self.settings.clone(),
            running: Mutex::default(),
            port: free_port(),
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
        let folder = TempDir::new().expect("a temporary folder");
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("the folder is ours");
        let data = folder.path().join("data");
        fs::create_dir(&data).expect("the folder can be written");
        fs::set_permissions(&data, Permissions::from_mode(0o700)).expect("the folder is ours");
        give(&data);
        folder
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn configure(&self) {
        let ours = format!(
            "\nlisten_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = ''\nshared_buffers = '32MB'\n\
             max_connections = 200\ntimezone = 'UTC'\n{}\n",
            self.port, self.settings
        );
        let path = self.data().join("postgresql.conf");
        let default = fs::read_to_string(&path).expect("initdb wrote the configuration");
        fs::write(&path, default + &ours).expect("the configuration can be written");
        let rules = format!(
            "host all {USER_WITH_PASSWORD} 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n\
             host replication all 127.0.0.1/32 trust\nlocal all all trust\n"
        );
        fs::write(self.data().join("pg_hba.conf"), rules).expect("the rules can be written");
    }

    /// Puts a file into the server's data folder, readable for the server alone, for settings that name one.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn put_file(&self, name: &str, content: &str) {
        let path = self.data().join(name);
        fs::write(&path, content).expect("the file can be written");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("the file is ours");
        give(&path);
    }

    /// Adds lines to `postgresql.conf`; they count from the next start on.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn set(&self, settings: &str) {
        let path = self.data().join("postgresql.conf");
        let before = fs::read_to_string(&path).expect("the configuration can be read");
        fs::write(&path, format!("{before}\n{settings}\n")).expect("the configuration can be written");
    }

    /// Starts the server on the data that it has, and waits until it answers.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start_again(&self) {
        let mut running = self.running.lock();
        assert!(running.is_none(), "the server runs already");
        let log = self.log_path();
        let (started, start) = channel();
        let (end, ended) = channel();
        let mut postgres = command(&self.programs, "postgres");
        postgres.arg("-D").arg(self.data()).stdin(Stdio::null()).stdout(Stdio::null());
        postgres
            .stderr(File::options().append(true).create(true).open(&log).expect("the log can be written"));
        // A thread that lives as long as the server, see `command`.
        thread::spawn(move || {
            let mut child: Child = postgres.spawn().unwrap_or_else(|error| panic!("{postgres:?}: {error}"));
            let _ = started.send(child.id());
            let _ = child.wait();
            let _ = end.send(());
        });
        let id = start.recv_timeout(LONG).expect("the server's program can be started");
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw).expect("a process id is positive");
        let note = self.data().join("postmaster.pid");
        wait_until("the database server is ready", LONG, || {
            let over = !matches!(ended.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty));
            assert!(!over, "the server ended: {}", fs::read_to_string(&log).unwrap_or_default());
            let text = fs::read_to_string(&note).ok()?;
            let mut lines = text.lines();
            let ours = lines.next()? == id.to_string();
            (ours && lines.nth(6)?.trim() == "ready").then_some(())
        });
        *running = Some(Running { pid, ended });
    }

    /// Stops the server and waits until it is gone. Nothing happens where it does not run.
    ///
    /// # Panics
    /// If it does not end.
    pub fn stop(&self, how: Stop) {
        let Some(Running { pid, ended }) = self.running.lock().take() else { return };
        if ended.try_recv().is_err() {
            let _ = kill_process(pid, how.signal());
            if ended.recv_timeout(LONG) == Err(RecvTimeoutError::Timeout) {
                let _ = kill_process(pid, Signal::KILL);
                panic!("the database server does not end");
            }
        }
    }

    /// Makes a replica a server that takes writes.
    ///
    /// # Panics
    /// If it does not.
    pub fn promote(&self) {
        self.sql("SELECT pg_promote()");
    }

    /// What a statement gives, as the superuser, in lines.
    ///
    /// # Panics
    /// If it fails.
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

    /// What it has written to its log.
    ///
    /// # Panics
    /// If that cannot be read.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).expect("the log can be read")
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// The port that it listens on, on 127.0.0.1.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Its URL for [`USER`].
    pub fn url(&self) -> String {
        self.url_for(USER)
    }

    /// Its URL for a user.
    pub fn url_for(&self, user: impl AsRef<OsStr>) -> String {
        format!("postgresql://{}@127.0.0.1:{}/postgres", user.as_ref().to_string_lossy(), self.port)
    }
}

/// A name for a schema that no other test has.
pub fn fresh_schema() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("test_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(Running { pid, ended }) = self.running.get_mut().take()
            && ended.try_recv().is_err()
        {
            let _ = kill_process(pid, Signal::QUIT);
            if ended.recv_timeout(LONG).is_err() {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}
