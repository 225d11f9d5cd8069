//! All schemes over loopback, with both sides in one process: small round trips, and bulk transfer with a window of 32
//! requests.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use enjambre_core::transport::envelope;
use enjambre_core::{Connection, Deadline, KeyPair, Listener, Message};
use enjambre_transport::Shared;
use enjambre_transport::settings::TransportSettings;
use futures::stream::{self, StreamExt};
use tokio::runtime::Runtime;

const WINDOW: usize = 32;
const DEADLINE: Deadline = Deadline::Total(Duration::from_secs(60));

fn main() {
    divan::main();
}

struct Pair {
    runtime: Runtime,
    connection: Arc<dyn Connection>,
    _listener: Arc<dyn Listener>,
}

/// A listener that answers all requests with `payload`, and a connection to it.
fn pair(scheme: &str, payload: Bytes) -> Pair {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let shared = Shared::new(TransportSettings::default()).expect("valid settings");
    let secure = shared.secure(&KeyPair::generate());
    let all = secure.into_iter().chain([shared.tcp(), shared.zmq()]);
    let transport = all.into_iter().find(|transport| transport.scheme() == scheme).expect("a scheme");
    let endpoint = format!("{scheme}://127.0.0.1:0").parse().expect("a valid endpoint");
    let (listener, connection) = runtime.block_on(async {
        let listener = transport.bind(&endpoint).await.expect("a free port");
        let connection = transport.connect(listener.local_endpoint()).await.expect("a valid endpoint");
        (listener, connection)
    });
    let serving = Arc::clone(&listener);
    runtime.spawn(async move {
        while let Ok(mut incoming) = serving.accept().await {
            let payload = payload.clone();
            tokio::spawn(async move {
                incoming.reply.reserve(payload.len() + 64).await.expect("the remote is connected");
                let header = envelope::encode_reply(Some(incoming.request.id()), &"done");
                let reply = Message { header, payload };
                incoming.reply.send(reply).await.expect("the remote is connected");
            });
        }
    });
    Pair { runtime, connection, _listener: listener }
}

impl Pair {
    fn run(&self, calls: usize) {
        let connection = &self.connection;
        self.runtime.block_on(async {
            stream::iter(0..calls)
                .map(|_| async move {
                    let id = connection.next_id();
                    connection
                        .call(id, envelope::encode_request(id, &"status"), DEADLINE)
                        .await
                        .expect("a reply")
                })
                .buffer_unordered(WINDOW)
                .for_each(|reply| async { drop(divan::black_box(reply)) })
                .await;
        });
    }
}

const SCHEMES: [&str; 4] = ["zmq", "tcp", "zmqs", "tcps"];
const SIZES: [usize; 3] = [256 * 1024, 1024 * 1024, 4 * 1024 * 1024];

#[divan::bench(args = SCHEMES, sample_count = 10)]
fn small_round_trips(bencher: Bencher<'_, '_>, scheme: &str) {
    const CALLS: usize = 20_000;
    let pair = pair(scheme, Bytes::new());
    bencher.counter(ItemsCount::new(CALLS)).bench_local(|| pair.run(CALLS));
}

#[divan::bench(args = SCHEMES, consts = SIZES, sample_count = 10)]
fn bulk<const SIZE: usize>(bencher: Bencher<'_, '_>, scheme: &str) {
    const BYTES: usize = 1 << 30;
    let pair = pair(scheme, Bytes::from(vec![7; SIZE]));
    bencher.counter(BytesCount::new(BYTES)).bench_local(|| pair.run(BYTES / SIZE));
}
