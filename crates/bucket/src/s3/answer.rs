//! What a store means by a status and an error code.

use http::{HeaderMap, StatusCode};

use super::xml;
use crate::ErrorKind;

/// No error of a store is read beyond this.
pub(crate) const MAX_ERROR: usize = 64 * 1024;

/// A refusal, understood.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) kind: ErrorKind,
    /// The store's code, or empty.
    pub(crate) code: String,
    /// What a person reads: code and message, or the status.
    pub(crate) detail: String,
    /// The region that the store names.
    pub(crate) region: Option<String>,
}

/// The fields of an error that are looked at. The others may hold what was signed, and are not kept.
#[derive(Debug, Default)]
pub(crate) struct ErrorBody {
    pub(crate) code: String,
    pub(crate) message: String,
    region: Option<String>,
}

/// Reads `<Error>`; what is none yields nothing.
pub(crate) fn error_body(body: &[u8]) -> Option<ErrorBody> {
    let mut error = ErrorBody::default();
    let read = xml::walk(body, |node| {
        if let xml::Node::Leaf { path: ["Error", name], text } = node {
            match *name {
                "Code" => error.code = text.into_owned(),
                "Message" => error.message = text.into_owned(),
                "Region" => error.region = Some(text.into_owned()),
                _ => {}
            }
        }
        Ok(())
    });
    (read.is_ok() && !error.code.is_empty()).then_some(error)
}

/// Understands an answer that is no success.
pub(crate) fn refusal(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Refusal {
    let error = error_body(body).unwrap_or_default();
    let kind = kind(status, &error.code, &error.message);
    let mut detail = match (error.code.is_empty(), error.message.is_empty()) {
        (true, _) => format!("HTTP {status}"),
        (false, true) => error.code.clone(),
        (false, false) => format!("{}: {}", error.code, error.message),
    };
    if error.code == "RequestTimeTooSkewed" {
        detail = "RequestTimeTooSkewed: the clock of this machine or of the store is wrong".into();
        if let Some(date) = headers.get("date").and_then(|d| d.to_str().ok()) {
            detail.push_str(&format!(" (the store says {date})"));
        }
    }
    let named = headers.get("x-amz-bucket-region").and_then(|v| v.to_str().ok()).map(Into::into);
    Refusal { kind, code: error.code, detail, region: named.or(error.region) }
}

/// The kind behind a code, else behind the bare status. Codes:
/// <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>, and those of MinIO and Ceph.
pub(crate) fn kind(status: StatusCode, code: &str, message: &str) -> ErrorKind {
    use ErrorKind::*;
    match code {
        "NoSuchKey" | "NoSuchUpload" | "NoSuchVersion" => NoSuchKey,
        "NoSuchBucket" => NoSuchBucket,
        "PreconditionFailed" => PreconditionFailed,
        "InvalidObjectState" | "ObjectNotInActiveTierError" => Archived,
        "SlowDown"
        | "SlowDownRead"
        | "SlowDownWrite"
        | "ServiceUnavailable"
        | "Throttling"
        | "ThrottlingException"
        | "TooManyRequests"
        | "TooManyRequestsException"
        | "RequestLimitExceeded"
        | "BandwidthLimitExceeded"
        | "Busy" => Throttled,
        // What the store itself says may pass.
        "InternalError"
        | "RequestTimeout"
        | "RequestTimeoutException"
        | "IncompleteBody"
        | "OperationAborted"
        | "ConditionalRequestConflict"
        | "XMinioServerNotInitialized" => Unreachable,
        // The contents were changed on their way.
        "BadDigest"
        | "XAmzContentSHA256Mismatch"
        | "XAmzContentChecksumMismatch"
        | "ContentSHA256Mismatch" => BadAnswer,
        "AccessDenied"
        | "AccountProblem"
        | "AllAccessDisabled"
        | "ExpiredToken"
        | "InvalidAccessKeyId"
        | "InvalidSecurity"
        | "InvalidToken"
        | "InvalidTokenId"
        | "MissingSecurityHeader"
        | "NotSignedUp"
        | "RequestExpired"
        | "RequestTimeTooSkewed"
        | "SignatureDoesNotMatch"
        | "TokenRefreshRequired"
        | "UnauthorizedAccess"
        | "XMinioInvalidObjectState" => Denied,
        code if code.starts_with("KMS.") => Denied,
        // An object under SSE-C: "The object was stored using a form of Server Side Encryption. The correct
        // parameters must be provided to retrieve the object."
        "InvalidRequest" | "InvalidArgument" | "SSECustomerKeyMissing"
            if message.contains("Server Side Encryption") || message.contains("ncryption key") =>
        {
            CustomerKey
        }
        // Locks on a bucket that has none.
        "InvalidRequest" | "InvalidArgument"
            if message.contains("Object Lock") || message.contains("ObjectLock") =>
        {
            Unsupported
        }
        "EntityTooLarge"
        | "InvalidStorageClass"
        | "InvalidTag"
        | "InvalidURI"
        | "KeyTooLongError"
        | "KeyTooLong"
        | "MaxMessageLengthExceeded"
        | "MetadataTooLarge"
        | "MethodNotAllowed"
        | "NotImplemented"
        | "UnsupportedOperation"
        | "UnsupportedHeader"
        | "XMinioInvalidObjectName"
        | "XMinioInvalidResource"
        | "XMinioInvalidResourceName"
        | "XMinioObjectExistsAsDirectory"
        | "XMinioParentIsObject"
        | "InvalidObjectName" => Unsupported,
        "InsufficientCapacity"
        | "InsufficientStorage"
        | "QuotaExceeded"
        | "TooManyBuckets"
        | "XMinioAdminBucketQuotaExceeded"
        | "XMinioStorageFull" => NoSpace,
        _ => match status.as_u16() {
            400 | 416 => Invalid,
            401 | 403 => Denied,
            404 => NoSuchKey,
            405 | 411 | 413 | 414 | 431 | 501 => Unsupported,
            412 => PreconditionFailed,
            429 | 503 => Throttled,
            408 | 409 | 425 => Unreachable,
            507 => NoSpace,
            500..=599 => Unreachable,
            // A redirect that was not followed: the bucket is in another place.
            300..=399 => Invalid,
            400..=499 => Invalid,
            _ => BadAnswer,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: &str, message: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message><AWSAccessKeyId>AKIASECRET</AWSAccessKeyId><StringToSign>AWS4</StringToSign></Error>"
        )
    }

    #[test]
    fn codes_say_more_than_the_status() {
        use ErrorKind::*;
        let table = [
            (404, "NoSuchKey", "", NoSuchKey),
            (404, "NoSuchBucket", "", NoSuchBucket),
            (404, "", "", NoSuchKey),
            (412, "PreconditionFailed", "", PreconditionFailed),
            (403, "AccessDenied", "", Denied),
            (403, "InvalidObjectState", "", Archived),
            (403, "", "", Denied),
            (
                400,
                "InvalidRequest",
                "The object was stored using a form of Server Side Encryption.",
                CustomerKey,
            ),
            (400, "InvalidRequest", "Something else", Invalid),
            (400, "InvalidRequest", "Bucket is missing Object Lock Configuration", Unsupported),
            (400, "InvalidRequest", "Bucket is missing ObjectLockConfiguration", Unsupported),
            (400, "KeyTooLongError", "", Unsupported),
            (400, "XMinioInvalidObjectName", "", Unsupported),
            (400, "EntityTooLarge", "", Unsupported),
            (400, "ExpiredToken", "", Denied),
            (400, "RequestTimeout", "", Unreachable),
            (400, "BadDigest", "", BadAnswer),
            (400, "KMS.DisabledException", "", Denied),
            (403, "SignatureDoesNotMatch", "", Denied),
            (403, "QuotaExceeded", "", NoSpace),
            (507, "", "", NoSpace),
            (416, "InvalidRange", "", Invalid),
            (429, "", "", Throttled),
            (503, "SlowDown", "", Throttled),
            (503, "", "", Throttled),
            (500, "InternalError", "", Unreachable),
            (502, "", "", Unreachable),
            (501, "NotImplemented", "", Unsupported),
            (409, "ConditionalRequestConflict", "", Unreachable),
            (301, "PermanentRedirect", "", Invalid),
            (600, "", "", BadAnswer),
        ];
        for (status, code, message, expected) in table {
            let status = StatusCode::from_u16(status).unwrap();
            let body = if code.is_empty() { String::new() } else { error(code, message) };
            let refusal = refusal(status, &HeaderMap::new(), body.as_bytes());
            assert_eq!(refusal.kind, expected, "{status} {code} {message}");
            assert!(!refusal.detail.contains("AKIA") && !refusal.detail.contains("AWS4"), "{refusal:?}");
            assert!(!refusal.detail.is_empty());
        }
    }

    #[test]
    fn pages_of_proxies_are_not_quoted() {
        let html = b"<html><body>Bad <b>Gateway</b></body></html>";
        let refusal = refusal(StatusCode::BAD_GATEWAY, &HeaderMap::new(), html);
        assert_eq!((refusal.kind, refusal.detail.as_str()), (ErrorKind::Unreachable, "HTTP 502 Bad Gateway"));
    }

    #[test]
    fn the_region_is_in_the_headers_or_the_body() {
        let body = b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>m</Message><Region>eu-west-1</Region></Error>";
        let mut headers = HeaderMap::new();
        let status = StatusCode::BAD_REQUEST;
        assert_eq!(refusal(status, &headers, body).region.as_deref(), Some("eu-west-1"));
        headers.insert("x-amz-bucket-region", "eu-west-2".parse().unwrap());
        assert_eq!(refusal(status, &headers, body).region.as_deref(), Some("eu-west-2"));
    }

    #[test]
    fn a_wrong_clock_is_named() {
        let mut headers = HeaderMap::new();
        headers.insert("date", "Wed, 21 Oct 2015 07:28:00 GMT".parse().unwrap());
        let body = error("RequestTimeTooSkewed", "The difference is too large");
        let refusal = refusal(StatusCode::FORBIDDEN, &headers, body.as_bytes());
        assert!(refusal.detail.contains("clock") && refusal.detail.contains("2015"), "{}", refusal.detail);
    }
}
