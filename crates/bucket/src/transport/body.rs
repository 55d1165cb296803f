//! Bodies of requests: pieces that lie in memory, sent as they are and as fast as the limits allow.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::limit::Pace;

/// Bytes handed over at once. Small enough that the count of what was sent shows whether the connection
/// moves; pieces are never copied, only referred to.
const SLICE: usize = 64 * 1024;

/// The body of a request. Cloning costs a reference per piece.
#[derive(Debug, Default)]
pub(crate) struct RequestBody {
    pieces: Vec<Bytes>,
    /// Index of the piece that goes next.
    at: usize,
    left: u64,
    progress: Option<Arc<Progress>>,
    pace: Option<Arc<Pace>>,
    pause: Option<Pin<Box<Sleep>>>,
}

/// How far a body got.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    sent: AtomicU64,
    /// Until when our own limits held, or hold, the body back.
    paused: Mutex<Option<Instant>>,
}

impl Progress {
    /// Bytes that were handed to the connection.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// Whether our own limits held the body back at that time or later.
    pub(crate) fn was_paused_since(&self, began: Instant) -> bool {
        let paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        paused.is_some_and(|until| until > began)
    }
}

impl RequestBody {
    /// A body made of `pieces`; what was handed to the connection is counted.
    pub(crate) fn new(pieces: &[Bytes], pace: Option<Arc<Pace>>) -> Self {
        let left = pieces.iter().map(|p| p.len() as u64).sum();
        if left == 0 {
            return RequestBody::default();
        }
        RequestBody {
            pieces: pieces.to_vec(),
            left,
            progress: Some(Arc::default()),
            pace,
            ..RequestBody::default()
        }
    }

    /// Shows how far the body got; `None` for an empty one.
    pub(crate) fn progress(&self) -> Option<Arc<Progress>> {
        self.progress.clone()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        if let Some(pause) = &mut this.pause {
            ready!(pause.as_mut().poll(cx));
            this.pause = None;
        }
        while this.pieces.get(this.at).is_some_and(Bytes::is_empty) {
            this.at += 1;
        }
        let Some(piece) = this.pieces.get_mut(this.at) else { return Poll::Ready(None) };
        let slice = piece.split_to(piece.len().min(SLICE));
        let length = slice.len() as u64;
        this.left -= length;
        let progress = this.progress.get_or_insert_default();
        progress.sent.fetch_add(length, Relaxed);
        if let Some(pace) = &this.pace {
            let until = pace.book(length);
            *progress.paused.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
            this.pause = Some(Box::pin(tokio::time::sleep_until(until)));
        }
        Poll::Ready(Some(Ok(Frame::data(slice))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn pieces_arrive_in_order_and_are_counted() {
        let pieces = [
            Bytes::from_static(b"ab"),
            Bytes::new(),
            Bytes::from(vec![7; SLICE + 1]),
            Bytes::from_static(b"c"),
        ];
        let body = RequestBody::new(&pieces, None);
        let progress = body.progress().unwrap();
        assert_eq!(body.size_hint().exact(), Some(SLICE as u64 + 4));
        let all = body.collect().await.unwrap().to_bytes();
        assert_eq!(all, pieces.concat());
        assert_eq!(progress.sent(), SLICE as u64 + 4);
        assert!(RequestBody::new(&[Bytes::new()], None).is_end_stream());
    }
}
