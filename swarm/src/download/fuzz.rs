//! Fuzz target: replies of a provider.

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use parking_lot::Mutex;

use super::provider;
use enjambre_core::protocol::codec;
use enjambre_core::protocol::message::Reply;
use enjambre_core::{
    Connection, Deadline, Endpoint, FileId, Message, PieceLayout, RequestId, TransportError,
};

/// A connection that returns the same reply a number of times and is then lost.
#[derive(Debug)]
struct Scripted {
    endpoint: Endpoint,
    reply: Message,
    remaining: AtomicU64,
    requests: Mutex<Vec<RequestId>>,
}

#[async_trait]
impl Connection for Scripted {
    fn next_id(&self) -> RequestId {
        RequestId(1)
    }

    async fn call(&self, id: RequestId, _: Bytes, _: Deadline) -> Result<Message, TransportError> {
        self.requests.lock().push(id);
        let left =
            self.remaining.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        left.map(|_| self.reply.clone()).map_err(|_| TransportError::Lost { endpoint: self.endpoint.clone() })
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    async fn close(&self) {}
}

/// The input is the length of the reply header as two bytes, the header, and the payload.
pub(crate) fn provider(data: &[u8]) {
    let [high, low, rest @ ..] = data else { return };
    let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
    let (header, payload) = rest.split_at(length);
    let claimed = match codec::decode_reply(header) {
        Some(Ok(Reply::Have { size, .. } | Reply::Manifest { size })) => size,
        _ => payload.len() as u64,
    };
    let connection = Scripted {
        endpoint: "tcp://127.0.0.1:1".parse().expect("valid endpoint"),
        reply: Message { header: Bytes::copy_from_slice(header), payload: Bytes::copy_from_slice(payload) },
        remaining: AtomicU64::new(4),
        requests: Mutex::default(),
    };
    let limit = Deadline::Total(std::time::Duration::from_secs(1));
    let id = FileId::from_bytes([1; 32]);
    let requests = async {
        if let Ok((layout, have)) = provider::have(&connection, id, None, limit).await {
            assert!(have.count() <= layout.count());
            assert_eq!(have.is_full(), have.count() == layout.count());
        }
        let ids = vec![id; 3];
        if let Ok((sizes, content)) = provider::files(&connection, ids, limit).await {
            assert!((1..=3).contains(&sizes.len()));
            assert_eq!(sizes.iter().flatten().sum::<u64>(), content.len() as u64);
        }
        if let Ok(layout) = PieceLayout::new(claimed)
            && let Ok(manifest) = provider::manifest(&connection, id, layout, limit).await
        {
            assert_eq!((manifest.id(), manifest.hashes().len()), (id, layout.count() as usize));
        }
    };
    requests.now_or_never().expect("all replies are available");
    assert!(connection.requests.lock().len() <= 2 + 5);
}
