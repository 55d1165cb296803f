//! How a person names a bucket or a directory: one string, parsed once, shown the same way.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use url::Url;

use crate::{Error, ErrorKind, Key, Result, Verb};

/// Where objects lie.
///
/// | Text | Meaning |
/// |---|---|
/// | `s3://bucket`, `s3://bucket/prefix` | a bucket, at the endpoint that the caller knows |
/// | `s3:https://host:port/bucket/prefix` | the same with its endpoint, as restic writes it |
/// | `s3:host/bucket/prefix` | the same, over https |
/// | `file:///dir`, `local:dir`, `/dir`, `./dir`, `dir` | a directory |
///
/// Nothing is percent-decoded or normalised: a prefix is the bytes behind the bucket's name as they are
/// given (`s3://b/a/` has the prefix `a/`, `s3://b/a` the prefix `a`, `s3://b//a` the prefix `/a`), and
/// what follows `file://` is the path itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A bucket that is spoken to in the S3 protocol.
    S3 {
        /// The server, if the text names one.
        endpoint: Option<Url>,
        /// Name of the bucket.
        bucket: String,
        /// Keys that are meant begin with these bytes; empty means all.
        prefix: Key,
    },
    /// A directory of this machine.
    Directory(PathBuf),
}

/// Schemes that people may expect from other programs; a path that really begins so is written `./gs:…`.
const FOREIGN: [&str; 9] = ["azure", "az", "abfs", "b2", "gs", "rclone", "rest", "sftp", "swift"];

impl Address {
    /// Parses an argument of the command line: what is no UTF-8 can only be a path.
    ///
    /// # Errors
    /// As [`from_str`](Self::from_str).
    pub fn from_os(text: &OsStr) -> Result<Self> {
        match text.to_str() {
            Some(text) => text.parse(),
            None => Ok(Address::Directory(text.into())),
        }
    }
}

impl FromStr for Address {
    type Err = Error;

    /// Parses the forms in the table above.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`], saying what is wrong with the text.
    fn from_str(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(invalid("''", "an address is empty"));
        }
        if text.contains('\0') {
            return Err(invalid(text, "an address holds a NUL"));
        }
        if let Some(rest) = text.strip_prefix("s3://") {
            return s3(text, None, rest);
        }
        if let Some(rest) = text.strip_prefix("s3:") {
            return restic_s3(text, rest);
        }
        if let Some(rest) = text.strip_prefix("file://") {
            let path = rest.strip_prefix("localhost").unwrap_or(rest);
            if !path.starts_with('/') {
                return Err(invalid(text, "file:// wants an absolute path: file:///directory"));
            }
            return Ok(Address::Directory(path.into()));
        }
        if let Some(rest) = text.strip_prefix("local:") {
            if rest.is_empty() {
                return Err(invalid(text, "the path is missing"));
            }
            return Ok(Address::Directory(rest.into()));
        }
        if let Some((scheme, rest)) = text.split_once(':') {
            let named = scheme.to_ascii_lowercase();
            if FOREIGN.contains(&named.as_str()) {
                let shown = format!("{scheme}:…"); // what follows may hold a password
                return Err(invalid(&shown, &format!("{named}: is not supported by this build")));
            }
            let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
            if is_scheme && rest.starts_with("//") {
                let shown = format!("{scheme}://…");
                return Err(invalid(&shown, "unknown scheme; s3://bucket/prefix or a path is expected"));
            }
        }
        Ok(Address::Directory(text.into()))
    }
}

/// `rest` is `bucket` or `bucket/prefix`.
fn s3(text: &str, endpoint: Option<Url>, rest: &str) -> Result<Address> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(invalid(text, "the bucket's name is missing"));
    }
    if bucket.contains('@') {
        return Err(invalid("s3:…", "an address holds no credentials"));
    }
    // The name becomes part of a request line or of a host name. Servers judge it further.
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if !bucket.chars().all(fits) || bucket.len() > 255 || bucket.chars().all(|c| c == '.') {
        return Err(invalid(text, "a bucket's name is made of letters, digits, '-', '_' and '.'"));
    }
    Ok(Address::S3 { endpoint, bucket: bucket.into(), prefix: Key::from(prefix) })
}

/// restic's forms: `s3:https://host/bucket/prefix` and `s3:host/bucket/prefix`.
fn restic_s3(text: &str, rest: &str) -> Result<Address> {
    let (scheme, rest) = match rest.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (scheme, rest),
        Some(_) => return Err(invalid("s3:…", "the endpoint begins with http:// or https://")),
        None => ("https", rest),
    };
    let Some((host, rest)) = rest.split_once('/') else {
        return Err(invalid("s3:…", "expected s3://bucket/prefix or s3:https://host/bucket/prefix"));
    };
    if host.contains('@') {
        return Err(invalid("s3:…", "an address holds no credentials"));
    }
    let endpoint = Url::parse(&format!("{scheme}://{host}"))
        .ok()
        .filter(|url| {
            url.has_host() && url.path() == "/" && url.query().is_none() && url.fragment().is_none()
        })
        .ok_or_else(|| invalid(text, "the endpoint is no host name"))?;
    s3(text, Some(endpoint), rest)
}

fn invalid(address: &str, detail: &str) -> Error {
    // Somebody may have written credentials into it, with a `/` where it looks like none.
    let shown;
    let address = match address.split_once(':') {
        Some((scheme, _)) if address.contains('@') => {
            shown = format!("{scheme}:…");
            &shown
        }
        _ => address,
    };
    Error::new(ErrorKind::Invalid, Verb::Bucket, address.escape_debug().to_string()).detail(detail)
}

/// Shows the address in a form that parses to the same address.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::S3 { endpoint, bucket, prefix } => {
                match endpoint {
                    None => write!(f, "s3://{bucket}")?,
                    Some(url) => write!(f, "s3:{}/{bucket}", url.as_str().trim_end_matches('/'))?,
                }
                match prefix.as_str() {
                    Some("") => Ok(()),
                    Some(text) => write!(f, "/{text}"),
                    None => write!(f, "/{prefix}"),
                }
            }
            Address::Directory(path) => write!(f, "{}", shown(path)),
        }
    }
}

/// The path, marked as one if it would be read as something else.
fn shown(path: &Path) -> String {
    let text = path.to_string_lossy();
    match text.parse::<Address>() {
        Ok(Address::Directory(same)) if same == Path::new(&*text) => text.into_owned(),
        _ => format!("./{text}"),
    }
}

impl serde::Serialize for Address {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Address {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(endpoint: Option<&str>, bucket: &str, prefix: &str) -> Address {
        let endpoint = endpoint.map(|e| Url::parse(e).unwrap());
        Address::S3 { endpoint, bucket: bucket.into(), prefix: prefix.into() }
    }

    #[test]
    fn every_form_is_understood_and_shown_so_that_it_parses_again() {
        let directory = |path: &str| Address::Directory(path.into());
        let table = [
            ("s3://orders", bucket(None, "orders", ""), "s3://orders"),
            ("s3://orders/", bucket(None, "orders", ""), "s3://orders"),
            ("s3://orders/2026/", bucket(None, "orders", "2026/"), "s3://orders/2026/"),
            ("s3://orders//a%20b/../c", bucket(None, "orders", "/a%20b/../c"), "s3://orders//a%20b/../c"),
            (
                "s3:http://127.0.0.1:9000/b/p/q",
                bucket(Some("http://127.0.0.1:9000"), "b", "p/q"),
                "s3:http://127.0.0.1:9000/b/p/q",
            ),
            (
                "s3:s3.example.com/b",
                bucket(Some("https://s3.example.com"), "b", ""),
                "s3:https://s3.example.com/b",
            ),
            ("s3:[::1]:9000/b/x", bucket(Some("https://[::1]:9000"), "b", "x"), "s3:https://[::1]:9000/b/x"),
            ("file:///srv/a b%20", directory("/srv/a b%20"), "/srv/a b%20"),
            ("file://localhost/srv", directory("/srv"), "/srv"),
            ("/srv", directory("/srv"), "/srv"),
            ("./x", directory("./x"), "./x"),
            ("x", directory("x"), "x"),
            ("12:30", directory("12:30"), "12:30"),
            ("./s3:x", directory("./s3:x"), "./s3:x"),
            ("local:s3:x", directory("s3:x"), "./s3:x"),
        ];
        for (text, expected, shown) in table {
            let address: Address = text.parse().unwrap();
            assert_eq!(address, expected, "{text}");
            assert_eq!(address.to_string(), shown);
            // A path that had to be marked keeps its meaning, not its spelling.
            let again = shown.parse::<Address>().unwrap();
            assert!(again == expected || shown.starts_with("./"), "{shown} is read as {again:?}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_the_reason_and_without_secrets() {
        let table = [
            ("", "empty"),
            ("s3://", "name is missing"),
            ("s3:///x", "name is missing"),
            ("s3://a b", "is made of"),
            ("s3://..", "is made of"),
            ("s3:bucket", "expected s3://bucket"),
            ("s3:ftp://h/b", "begins with http"),
            ("s3:https://me:hunter2@host/b", "no credentials"),
            ("s3://me:hunter2@b/x", "no credentials"),
            ("s3:ho st/b", "no host name"),
            ("s3://AK:hun/ter2@b", "is made of"),
            ("s3:https://me:hun/ter2@host/b", "no host name"),
            ("s3:https://me:1/hunter2@host/b", "no credentials"),
            ("file://me:hun/ter2@b", "absolute path"),
            ("gs://b", "gs: is not supported by this build"),
            ("azure://b", "azure: is not supported"),
            ("rest:http://me:hunter2@h/", "rest: is not supported"),
            ("https://me:hunter2@h/", "unknown scheme"),
            ("file://other/x", "absolute path"),
            ("file://x", "absolute path"),
            ("a\0", "NUL"),
        ];
        for (text, part) in table {
            let error = text.parse::<Address>().expect_err(text);
            assert_eq!(error.kind, ErrorKind::Invalid);
            assert!(error.to_string().contains(part), "{text}: {error}");
            let shown = error.to_string();
            assert!(!["hunter2", "hun/", "ter2"].iter().any(|part| shown.contains(part)), "{error}");
        }
    }

    #[test]
    fn an_address_travels_as_a_string() {
        let address: Address = serde_json::from_str("\"s3://b/p\"").unwrap();
        assert_eq!(address, bucket(None, "b", "p"));
        assert_eq!(serde_json::to_string(&address).unwrap(), "\"s3://b/p\"");
        assert!(serde_json::from_str::<Address>("\"gs://b\"").is_err());
    }
}
