//! What goes wrong between a server and its client: answers, connections, bodies and listings that lie.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use http::header::{CONTENT_TYPE, ETAG, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};

/// Errors of bodies, as hyper takes them.
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of an answer.
pub(super) type AnswerBody = UnsyncBoxBody<Bytes, BoxError>;

/// What goes wrong with a request that reaches the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpFault {
    /// It is refused with this status and S3 error code, and has no effect.
    Answer {
        /// HTTP status.
        status: u16,
        /// S3 error code, as in `SlowDown`.
        code: &'static str,
        /// Seconds that the client is asked to wait.
        retry_after: Option<u32>,
    },
    /// It is refused with this status and nothing else, as a proxy does, and has no effect.
    BareStatus(u16),
    /// It is answered with status 200 and this error in the body, as copies and completed uploads can be, and has no
    /// effect.
    ErrorBehind200(&'static str),
    /// It takes effect, and is then answered with 500.
    Lost,
    /// The connection is reset, and the request has no effect.
    Reset,
    /// It takes effect, and then the connection is reset.
    LostReset,
    /// It is never answered; the connection stays open.
    Stall,
    /// It is answered this much later.
    Delay(Duration),
    /// The headers and so many bytes of the body come, then nothing more; the connection stays open.
    StalledBody(u64),
    /// The connection ends after so many bytes of the body.
    TruncatedBody(u64),
    /// The body has the right length, and a wrong byte at this place (modulo its length).
    WrongBody(u64),
    /// The answer has another entity tag.
    WrongEtag,
    /// A page ends after so many entries and says that nothing follows.
    ShortListing(usize),
    /// A page holds its first entry twice.
    RepeatedEntry,
    /// A page is in descending order.
    UnsortedListing,
    /// A page holds more entries than were asked for, if there are more.
    OverfullListing,
    /// A page that was asked for with a token says that the listing goes on at the same token.
    RepeatedToken,
}

impl HttpFault {
    /// The server asks for a lower rate, and perhaps says how long to wait (in seconds).
    pub fn slow_down(retry_after: Option<u32>) -> Self {
        HttpFault::Answer { status: 503, code: "SlowDown", retry_after }
    }

    /// The server has broken down for a moment.
    pub fn internal_error() -> Self {
        HttpFault::Answer { status: 500, code: "InternalError", retry_after: None }
    }

    /// The server denies access.
    pub fn denied() -> Self {
        HttpFault::Answer { status: 403, code: "AccessDenied", retry_after: None }
    }

    /// The server does not find the object.
    pub fn missing() -> Self {
        HttpFault::Answer { status: 404, code: "NoSuchKey", retry_after: None }
    }

    /// The answer of a request that is refused.
    pub(super) fn refusal(&self) -> Option<Response<AnswerBody>> {
        match *self {
            HttpFault::Answer { status, code, retry_after } => Some(refuse(status, code, retry_after)),
            HttpFault::ErrorBehind200(code) => Some(refuse(200, code, None)),
            HttpFault::BareStatus(status) => {
                let mut answer = refuse(status, "", None);
                *answer.body_mut() = Full::default().map_err(|never| match never {}).boxed_unsync();
                answer.headers_mut().remove(CONTENT_TYPE);
                Some(answer)
            }
            HttpFault::Lost => Some(refuse(500, "InternalError", None)),
            _ => None,
        }
    }

    /// The answer of a request that was carried out, as the client gets it.
    pub(super) fn spoil(&self, mut answer: Response<AnswerBody>) -> Response<AnswerBody> {
        match *self {
            HttpFault::WrongEtag => {
                answer
                    .headers_mut()
                    .insert(ETAG, HeaderValue::from_static("\"00000000000000000000000000000000\""));
                answer
            }
            HttpFault::TruncatedBody(limit) => answer.map(|body| {
                cut(body, limit, stream::iter([Err(BoxError::from("the connection is cut on purpose"))]))
            }),
            HttpFault::StalledBody(limit) => answer.map(|body| cut(body, limit, stream::pending())),
            HttpFault::WrongBody(place) => {
                let length = http_body::Body::size_hint(answer.body()).exact();
                let header = answer
                    .headers()
                    .get("content-length")
                    .and_then(|value| value.to_str().ok()?.parse().ok());
                let Some(length) = header.or(length).filter(|length| *length > 0) else { return answer };
                answer.map(|body| flip(body, place % length))
            }
            _ => answer,
        }
    }
}

fn refuse(status: u16, code: &str, retry_after: Option<u32>) -> Response<AnswerBody> {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>injected</Message></Error>"
    );
    let mut answer =
        Response::new(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    if let Some(seconds) = retry_after {
        answer.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    answer
}

/// The first `limit` bytes of a body, and then what `end` yields.
fn cut(
    body: AnswerBody,
    limit: u64,
    end: impl futures::Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
) -> AnswerBody {
    let pieces = stream::unfold((body, limit), |(mut body, left)| async move {
        if left == 0 {
            return None;
        }
        loop {
            match body.frame().await?.map(Frame::into_data) {
                Ok(Ok(data)) => {
                    let data = data.slice(..data.len().min(left as usize));
                    let left = left - data.len() as u64;
                    return Some((Ok(data), (body, left)));
                }
                Ok(Err(_trailers)) => {}
                Err(error) => return Some((Err(error), (body, 0))),
            }
        }
    });
    StreamBody::new(pieces.chain(end).map_ok(Frame::data)).boxed_unsync()
}

fn flip(body: AnswerBody, place: u64) -> AnswerBody {
    let mut left = Some(place);
    let frames = BodyStream::new(body).map_ok(move |frame| {
        frame.map_data(|data| match left {
            Some(at) if at < data.len() as u64 => {
                left = None;
                let mut wrong = BytesMut::from(&data[..]);
                wrong[at as usize] ^= 0x20;
                wrong.freeze()
            }
            _ => {
                left = left.map(|at| at - data.len() as u64);
                data
            }
        })
    });
    StreamBody::new(frames).boxed_unsync()
}
