//! What only the owner of a store does, and Cistern has no verb for: buckets with locks, versions, borrowed keys.
//!
//! One signed request over one connection, as the protocol's documentation has it
//! (<https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-authenticating-requests.html>).

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use aws_lc_rs::{digest, hmac};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::External;

/// What stands in a query as it is.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const TIMEOUT: Duration = Duration::from_secs(60);

/// The answer to a request.
#[derive(Debug)]
struct Answer {
    status: u16,
    body: String,
}

/// A version of an object, as a listing of versions has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The object.
    pub key: String,
    /// The version.
    pub id: String,
    /// Whether it only says that the object was deleted.
    pub is_marker: bool,
}

/// Keys that may do less than the owner's, and are valid for an hour.
#[derive(Clone)]
pub struct Borrowed {
    /// The id of the access key.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
    /// What has to go along with every request.
    pub session_token: String,
}

impl External {
    /// Creates a bucket whose objects can be locked, which makes it a versioned one.
    ///
    /// # Panics
    /// If the server does not.
    pub fn create_locked_bucket(&self, name: &str) {
        let lock = ("x-amz-bucket-object-lock-enabled", "true");
        let answer = self.request("s3", "PUT", &format!("/{name}"), "", &[lock], "");
        assert_eq!(answer.status, 200, "{}", answer.body);
    }

    /// All versions of all objects whose keys begin so; at most a thousand.
    ///
    /// # Panics
    /// If the server does not tell.
    pub fn versions(&self, bucket: &str, prefix: &str) -> Vec<Version> {
        let query = format!("encoding-type=url&prefix={}&versions=", utf8_percent_encode(prefix, QUERY));
        let answer = self.request("s3", "GET", &format!("/{bucket}"), &query, &[], "");
        assert_eq!(answer.status, 200, "{}", answer.body);
        let version = |element: &str, is_marker| Version {
            key: percent_decode_str(&texts(element, "Key").concat()).decode_utf8_lossy().into_owned(),
            id: texts(element, "VersionId").concat(),
            is_marker,
        };
        let objects = texts(&answer.body, "Version").into_iter().map(|text| version(&text, false));
        objects
            .chain(texts(&answer.body, "DeleteMarker").into_iter().map(|text| version(&text, true)))
            .collect()
    }

    /// Deletes one version for good, with all that the owner may do, but without a word that overrides locks.
    ///
    /// # Errors
    /// The server's refusal.
    pub fn delete_version(&self, bucket: &str, version: &Version) -> Result<(), String> {
        let query = format!("versionId={}", utf8_percent_encode(&version.id, QUERY));
        let answer = self.request("s3", "DELETE", &format!("/{bucket}/{}", version.key), &query, &[], "");
        if answer.status / 100 == 2 { Ok(()) } else { Err(answer.body) }
    }

    /// Keys that may do what both the owner and this policy (JSON) allow (AssumeRole with a session policy).
    ///
    /// # Panics
    /// If the server lends none.
    pub fn borrow_keys(&self, policy: &str) -> Borrowed {
        let policy = utf8_percent_encode(policy, QUERY);
        let form = format!("Action=AssumeRole&DurationSeconds=3600&Policy={policy}&Version=2011-06-15");
        let kind = ("content-type", "application/x-www-form-urlencoded");
        let answer = self.request("sts", "POST", "/", "", &[kind], &form);
        assert_eq!(answer.status, 200, "no keys were lent");
        let text = |name| texts(&answer.body, name).concat();
        Borrowed {
            access_key: text("AccessKeyId"),
            secret_key: text("SecretAccessKey"),
            session_token: text("SessionToken"),
        }
    }

    /// Makes a signed request; `query` is encoded and sorted, `headers` are in lower case.
    fn request(
        &self,
        service: &str,
        method: &str,
        path: &str,
        query: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let time = TimeZone::UTC.to_datetime(Timestamp::now());
        let stamp = time.strftime("%Y%m%dT%H%M%SZ").to_string();
        let scope = format!("{}/us-east-1/{service}/aws4_request", &stamp[..8]);
        let hash = |text: &str| hex::encode(digest::digest(&digest::SHA256, text.as_bytes()));
        let (host, payload) = (self.address().to_string(), hash(body));
        let mut headers: Vec<(&str, &str)> = headers.to_vec();
        headers.extend([("host", &*host), ("x-amz-content-sha256", &payload), ("x-amz-date", &stamp)]);
        headers.sort_unstable();
        let names = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
        let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let canonical = format!("{method}\n{path}\n{query}\n{lines}\n{names}\n{payload}");
        let to_sign = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}", hash(&canonical));
        let sign = |key: &[u8], text: &str| {
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
        };
        let secret = format!("AWS4{}", self.secret_key()).into_bytes();
        let key = scope.split('/').fold(secret, |key, part| sign(&key, part));
        let signature = hex::encode(sign(&key, &to_sign));
        let id = self.access_key();
        let signed = format!("Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}");
        let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let request = format!(
            "{method} {target} HTTP/1.1\r\n{lines}authorization: AWS4-HMAC-SHA256 {signed}\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        // A server that was just started answers before it is able to do anything.
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let answer = self.exchange(&request).expect("the server answers");
            if answer.status != 503 || Instant::now() > deadline {
                return answer;
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }

    fn exchange(&self, request: &str) -> io::Result<Answer> {
        let mut stream = TcpStream::connect_timeout(&self.address(), TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        let body = if chunked { unchunked(body) } else { body.to_owned() };
        Ok(Answer { status: status.ok_or(io::ErrorKind::InvalidData)?, body })
    }
}

/// A body without the sizes of its chunks.
fn unchunked(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        let Some(chunk) = after.get(..size).filter(|chunk| !chunk.is_empty()) else { break };
        body += chunk;
        rest = after[size..].trim_start_matches("\r\n");
    }
    body
}

/// What stands in all elements of this name.
fn texts(xml: &str, name: &str) -> Vec<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let after = xml.split(&*open).skip(1);
    after.filter_map(|rest| Some(rest.split_once(&*close)?.0.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_put_together_and_taken_apart() {
        assert_eq!(unchunked("3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n"), "abcd");
        assert_eq!(texts("<a><k>1</k></a><a><k>2</k></a>", "k"), ["1", "2"]);
        assert_eq!(texts("<a>", "a"), [""; 0]);
    }
}
