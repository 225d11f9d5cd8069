//! Fuzz target: what a provider answers.

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use parking_lot::Mutex;

use super::source;
use crate::model::endpoint::Endpoint;
use crate::model::id::FileId;
use crate::model::layout::PieceLayout;
use crate::protocol::codec;
use crate::protocol::message::Reply;
use crate::transport::envelope::RequestId;
use crate::transport::error::TransportError;
use crate::transport::{Connection, Deadline, Message};

/// Gives the same reply to everything, as often as it is told to, and is lost then.
#[derive(Debug)]
struct Scripted {
    endpoint: Endpoint,
    reply: Message,
    times: AtomicU64,
    asked: Mutex<Vec<RequestId>>,
}

#[async_trait]
impl Connection for Scripted {
    fn next_id(&self) -> RequestId {
        RequestId(1)
    }

    async fn call(&self, id: RequestId, _: Bytes, _: Deadline) -> Result<Message, TransportError> {
        self.asked.lock().push(id);
        let left = self.times.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        left.map(|_| self.reply.clone()).map_err(|_| TransportError::Lost { endpoint: self.endpoint.clone() })
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    async fn close(&self) {}
}

/// Two bytes of the length of a reply's header, the header, and its payload.
pub(crate) fn provider(data: &[u8]) {
    let [high, low, rest @ ..] = data else { return };
    let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
    let (header, payload) = rest.split_at(length);
    let claimed = match codec::decode_reply(header) {
        Some(Ok(Reply::Have { size, .. } | Reply::Manifest { size })) => size,
        _ => payload.len() as u64,
    };
    let connection = Scripted {
        endpoint: "tcp://127.0.0.1:1".parse().expect("an endpoint"),
        reply: Message { header: Bytes::copy_from_slice(header), payload: Bytes::copy_from_slice(payload) },
        times: AtomicU64::new(4),
        asked: Mutex::default(),
    };
    let limit = Deadline::Total(std::time::Duration::from_secs(1));
    let id = FileId::from_bytes([1; 32]);
    let asked = async {
        if let Ok((layout, have)) = source::have(&connection, id, None, limit).await {
            assert!(have.count() <= layout.count());
            assert_eq!(have.is_full(), have.count() == layout.count());
        }
        let ids = vec![id; 3];
        if let Ok((sizes, content)) = source::files(&connection, ids, limit).await {
            assert!((1..=3).contains(&sizes.len()));
            assert_eq!(sizes.iter().flatten().sum::<u64>(), content.len() as u64);
        }
        if let Ok(layout) = PieceLayout::new(claimed)
            && let Ok(manifest) = source::manifest(&connection, id, layout, limit).await
        {
            assert_eq!((manifest.id(), manifest.hashes().len()), (id, layout.count() as usize));
        }
    };
    asked.now_or_never().expect("all answers are there");
    assert!(connection.asked.lock().len() <= 2 + 5);
}
