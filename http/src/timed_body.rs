//! Bodies of requests whose clients stop sending.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};

/// Time after which a client that sends or receives nothing is disconnected.
pub(crate) const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// The client sent nothing for [`STALL_TIMEOUT`].
#[derive(Debug, thiserror::Error)]
#[error("the client sends nothing")]
pub(crate) struct Stalled;

/// A body that fails with [`Stalled`]. Unlike the one of `tower-http`, it returns content that has arrived also after a time
/// in which nobody read it.
pub(crate) struct TimedBody {
    body: Body,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl TimedBody {
    pub(crate) fn wrap(body: Body) -> Body {
        Body::new(Self { body, stalled: None })
    }
}

impl HttpBody for TimedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.stalled = None;
            return Poll::Ready(frame);
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(STALL_TIMEOUT)));
        stalled.as_mut().poll(context).map(|()| Some(Err(axum::Error::new(Stalled))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn content_that_waits_for_its_reader_is_not_late() {
        let (sender, mut content) = mpsc::channel(1);
        let parts = futures::stream::poll_fn(move |context| content.poll_recv(context));
        let mut body = TimedBody::wrap(Body::from_stream(parts)).into_data_stream();
        // The reader looks ahead, and then does something else.
        assert!(futures::poll!(body.next()).is_pending());
        sender.send(Ok::<_, axum::Error>(Bytes::from_static(b"a"))).await.unwrap();
        sleep(STALL_TIMEOUT * 2).await;
        assert_eq!(body.next().await.unwrap().unwrap(), "a");
        assert!(body.next().await.unwrap().is_err(), "the client sends nothing");
    }
}
