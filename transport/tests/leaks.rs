//! Connections that come and go leave nothing behind. Alone in its process, for it counts open files.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "all of this is a test")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use enjambre_core::transport::{Deadline, Message, envelope};
use enjambre_transport::GuardedTransport;
use enjambre_transport::settings::TransportSettings;

const PATIENCE: Duration = Duration::from_secs(30);

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_come_and_go_leave_nothing_open() {
    // One behind the other, for they count the files of the whole process.
    come_and_go(enjambre_transport::tcp(TransportSettings::default()).unwrap()).await;
    come_and_go(enjambre_transport::zmq(TransportSettings::default()).unwrap()).await;
}

async fn come_and_go(transport: Arc<dyn GuardedTransport>) {
    let endpoint = format!("{}://127.0.0.1:0", transport.scheme()).parse().unwrap();
    let listener = transport.bind(&endpoint).await.unwrap();
    let endpoint = listener.local_endpoint().clone();
    let service = tokio::spawn(async move {
        while let Ok(incoming) = listener.accept().await {
            let reply = Message { header: incoming.header, payload: Bytes::from(vec![1; 100_000]) };
            // Some are gone before they get it.
            let _ = incoming.reply.send(reply).await;
        }
    });
    let mut at_first = 0;
    for round in 0..200 {
        if round == 1 {
            // What the transport keeps is open by now; the listener and the first connection are to be closed.
            at_first = open_files() - 1;
        }
        let connection = transport.connect(&endpoint).await.unwrap();
        let id = connection.next_id();
        let call = connection.call(id, envelope::malformed_reply(Some(id), ""), Deadline::Total(PATIENCE));
        match round % 3 {
            0 => assert!(call.await.is_ok()),
            // Dropped while it dials, or while the reply is on its way.
            1 => drop(tokio::time::timeout(Duration::ZERO, call).await),
            _ => drop(tokio::time::timeout(Duration::from_millis(2), call).await),
        }
    }
    service.abort();
    let _ = service.await;
    let all_closed = async {
        while open_files() > at_first || transport.connections() > 0 || transport.queued_reply_bytes() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, all_closed).await.is_err() {
        panic!("{} files open, {at_first} at first", open_files());
    }
}
