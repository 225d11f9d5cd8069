//! A proxy that interrupts commits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use enjambre_tests::postgres::USER;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// A fault during a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The server commits. The connection closes before the answer.
    AnswerLost,
    /// The connection closes before the commit reaches the server.
    CommitLost,
    /// The connection stays open, but forwards nothing any more.
    Stall,
}

/// A TCP proxy between client and server.
pub(crate) struct Proxy {
    port: u16,
    /// The fault of the next commit.
    pub(crate) next_fault: Arc<Mutex<Option<Fault>>>,
    /// Notified when a fault occurs.
    pub(crate) fault_occurred: Arc<Notify>,
    /// Whether new connections are refused.
    refuses: Arc<AtomicBool>,
}

impl Proxy {
    pub(crate) async fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            port: listener.local_addr().unwrap().port(),
            next_fault: Arc::default(),
            fault_occurred: Arc::default(),
            refuses: Arc::default(),
        };
        let (next_fault, fault_occurred, refuses) =
            (proxy.next_fault.clone(), proxy.fault_occurred.clone(), proxy.refuses.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if refuses.load(Ordering::Relaxed) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { continue };
                tokio::spawn(forward(client, server, next_fault.clone(), fault_occurred.clone()));
            }
        });
        proxy
    }

    pub(crate) fn url(&self) -> String {
        format!("postgresql://{USER}@127.0.0.1:{}/postgres", self.port)
    }

    /// Causes a fault at the next commit and refuses new connections, so that its outcome cannot be looked up.
    pub(crate) fn disconnect_at_commit(&self, fault: Fault) {
        *self.next_fault.lock() = Some(fault);
        self.refuses.store(true, Ordering::Relaxed);
    }

    pub(crate) fn accept_again(&self) {
        self.refuses.store(false, Ordering::Relaxed);
    }
}

async fn forward(
    mut client: TcpStream,
    mut server: TcpStream,
    next_fault: Arc<Mutex<Option<Fault>>>,
    fault_occurred: Arc<Notify>,
) -> Option<()> {
    let (mut up, mut down) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let bytes = &up[..read.ok().filter(|&read| read > 0)?];
                // The end of a commit. It is smaller than a segment, so it is not split.
                let is_commit = bytes.windows(7).any(|word| word == b"COMMIT\0");
                let fault = if is_commit { next_fault.lock().take() } else { None };
                if matches!(fault, None | Some(Fault::AnswerLost)) {
                    server.write_all(bytes).await.ok()?;
                }
                if let Some(fault) = fault {
                    if fault == Fault::AnswerLost {
                        // Waits for the answer, which contains the name of the command.
                        let mut answer = Vec::new();
                        while !answer.windows(7).any(|word| word == b"COMMIT\0") {
                            let read = server.read(&mut down).await.ok().filter(|&read| read > 0)?;
                            answer.extend_from_slice(&down[..read]);
                        }
                    }
                    fault_occurred.notify_one();
                    if fault == Fault::Stall {
                        std::future::pending::<()>().await;
                    }
                    return None;
                }
            }
            read = server.read(&mut down) => {
                let read = read.ok().filter(|&read| read > 0)?;
                client.write_all(&down[..read]).await.ok()?;
            }
        }
    }
}
