//! Closed connections leave no open files behind, and idle connections keep little memory. The tests run one at a time in
//! their own process, because they measure the whole process.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "all of this is a test")]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use enjambre_core::transport::envelope;
use enjambre_core::{Deadline, Incoming, KeyPair, Message};
use enjambre_transport::settings::TransportSettings;
use enjambre_transport::{GuardedTransport, Shared};
use tokio::runtime::Builder;

const TIMEOUT: Duration = Duration::from_secs(30);
static LOCK: Mutex<()> = Mutex::new(());

/// Runs a test while no other test has a runtime, which has open files, too.
fn run_alone(test: impl Future<Output = ()>) {
    let _guard = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test);
}

/// A transport of each scheme, with separate limits and counters.
fn transports() -> [Arc<dyn GuardedTransport>; 4] {
    let shared = || Shared::new(TransportSettings::default()).unwrap();
    let [tcps, _] = shared().secure(&KeyPair::generate());
    let [_, zmqs] = shared().secure(&KeyPair::generate());
    [shared().tcp(), shared().zmq(), tcps, zmqs]
}

fn done(incoming: &Incoming) -> Bytes {
    envelope::encode_reply(Some(incoming.request.id()), &"done")
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn closed_connections_leave_no_open_files() {
    run_alone(async {
        for transport in transports() {
            open_and_close(transport).await;
        }
    });
}

/// The resident memory of this process in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[test]
fn idle_connection_keeps_no_large_buffers() {
    run_alone(async {
        for transport in transports() {
            transfer_large_payloads(transport).await;
        }
    });
}

async fn transfer_large_payloads(transport: Arc<dyn GuardedTransport>) {
    const CONNECTIONS: usize = 48;
    const PAYLOAD: usize = 4 << 20;
    let endpoint = format!("{}://127.0.0.1:0", transport.scheme()).parse().unwrap();
    let listener = transport.bind(&endpoint).await.unwrap();
    let endpoint = listener.local_endpoint().clone();
    let payload = Bytes::from(vec![1; PAYLOAD]);
    let before = resident();
    let service = tokio::spawn(async move {
        while let Ok(incoming) = listener.accept().await {
            let reply = Message { header: done(&incoming), payload: payload.clone() };
            incoming.reply.send(reply).await.unwrap();
        }
    });
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS {
        let connection = transport.connect(&endpoint).await.unwrap();
        let id = connection.next_id();
        let header = envelope::encode_request(id, &"status");
        let reply = connection.call(id, header, Deadline::Total(TIMEOUT)).await.unwrap();
        assert_eq!(reply.payload.len(), PAYLOAD);
        idle.push(connection);
    }
    assert_eq!(transport.connections(), CONNECTIONS);
    let more = resident().saturating_sub(before);
    assert!(more < CONNECTIONS * PAYLOAD / 2, "{}: {more} bytes", transport.scheme());
    drop(idle);
    service.abort();
}

async fn open_and_close(transport: Arc<dyn GuardedTransport>) {
    let endpoint = format!("{}://127.0.0.1:0", transport.scheme()).parse().unwrap();
    let listener = transport.bind(&endpoint).await.unwrap();
    let endpoint = listener.local_endpoint().clone();
    let service = tokio::spawn(async move {
        while let Ok(incoming) = listener.accept().await {
            let reply = Message { header: done(&incoming), payload: Bytes::from(vec![1; 100_000]) };
            // Fails if the requester has closed the connection.
            let _ = incoming.reply.send(reply).await;
        }
    });
    let mut expected = 0;
    for round in 0..200 {
        if round == 1 {
            // Includes the files that the transport keeps. The listener and the first connection will be closed.
            expected = open_files() - 1;
        }
        let connection = transport.connect(&endpoint).await.unwrap();
        let id = connection.next_id();
        let call = connection.call(id, envelope::encode_request(id, &"status"), Deadline::Total(TIMEOUT));
        match round % 3 {
            0 => assert!(call.await.is_ok()),
            // Abandoned while connecting, or while the reply is being sent.
            1 => drop(tokio::time::timeout(Duration::ZERO, call).await),
            _ => drop(tokio::time::timeout(Duration::from_millis(2), call).await),
        }
    }
    service.abort();
    let _ = service.await;
    let all_closed = async {
        while open_files() > expected || transport.connections() > 0 || transport.queued_reply_bytes() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(TIMEOUT, all_closed).await.is_err() {
        panic!("{} files open, {expected} expected", open_files());
    }
}
