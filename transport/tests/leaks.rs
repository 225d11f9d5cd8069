//! Connections that come and go leave nothing behind, and those that stay keep little. One test at a time, for they look
//! at the whole process.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "all of this is a test")]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use enjambre_core::model::identity::KeyPair;
use enjambre_core::transport::{Deadline, Message, envelope};
use enjambre_transport::settings::TransportSettings;
use enjambre_transport::{GuardedTransport, Shared};
use tokio::runtime::Builder;

const PATIENCE: Duration = Duration::from_secs(30);
static ALONE: Mutex<()> = Mutex::new(());

/// Runs a test while no other one has so much as a runtime, which has open files too.
fn alone(test: impl Future<Output = ()>) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test);
}

/// One of each scheme. None shares its limits with another, so what one counts is its own.
fn transports() -> [Arc<dyn GuardedTransport>; 4] {
    let shared = || Shared::new(TransportSettings::default()).unwrap();
    let [tcps, _] = shared().secure(&KeyPair::generate());
    let [_, zmqs] = shared().secure(&KeyPair::generate());
    [shared().tcp(), shared().zmq(), tcps, zmqs]
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn connections_that_come_and_go_leave_nothing_open() {
    alone(async {
        for transport in transports() {
            come_and_go(transport).await;
        }
    });
}

/// Bytes of memory that this process has at the moment.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[test]
fn a_connection_that_carried_large_payloads_keeps_no_buffers_of_their_size() {
    alone(async {
        for transport in transports() {
            carry_much(transport).await;
        }
    });
}

async fn carry_much(transport: Arc<dyn GuardedTransport>) {
    const CONNECTIONS: usize = 48;
    const PAYLOAD: usize = 4 << 20;
    let endpoint = format!("{}://127.0.0.1:0", transport.scheme()).parse().unwrap();
    let listener = transport.bind(&endpoint).await.unwrap();
    let endpoint = listener.local_endpoint().clone();
    let payload = Bytes::from(vec![1; PAYLOAD]);
    let before = resident();
    let service = tokio::spawn(async move {
        while let Ok(incoming) = listener.accept().await {
            let reply = Message { header: incoming.header, payload: payload.clone() };
            incoming.reply.send(reply).await.unwrap();
        }
    });
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS {
        let connection = transport.connect(&endpoint).await.unwrap();
        let id = connection.next_id();
        let header = envelope::malformed_reply(Some(id), "");
        let reply = connection.call(id, header, Deadline::Total(PATIENCE)).await.unwrap();
        assert_eq!(reply.payload.len(), PAYLOAD);
        idle.push(connection);
    }
    assert_eq!(transport.connections(), CONNECTIONS);
    let more = resident().saturating_sub(before);
    assert!(more < CONNECTIONS * PAYLOAD / 2, "{}: {more} bytes", transport.scheme());
    drop(idle);
    service.abort();
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
