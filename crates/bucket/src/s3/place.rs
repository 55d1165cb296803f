//! Where a bucket is: server, region, and the part of the request line before the key.

use http::HeaderValue;
use http::uri::{Authority, Scheme};
use url::Url;

use super::config::{S3Config, Style};

/// Where requests go and what region they are signed for.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) scheme: Scheme,
    pub(crate) authority: Authority,
    /// The authority as a header.
    pub(crate) host: HeaderValue,
    /// The path up to the key; ends with `/`, and is the bucket's own path.
    pub(crate) base: String,
    pub(crate) region: Box<str>,
    /// Whether the server is AWS, whose host names follow from bucket and region.
    pub(crate) aws: bool,
    /// Whether AWS itself answers, be it through an endpoint of another form: metadata that is not ASCII goes to it
    /// as RFC 2047 words.
    pub(crate) words: bool,
    bucket: Box<str>,
    style: Style,
}

const DEFAULT_REGION: &str = "us-east-1";

impl Place {
    /// The place that a configuration describes.
    ///
    /// # Errors
    /// A sentence on what is wrong with it.
    pub(crate) fn new(config: &S3Config) -> Result<Self, String> {
        let bucket = config.bucket.as_str();
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if bucket.is_empty() || !bucket.chars().all(fits) || bucket.chars().all(|c| c == '.') {
            return Err("a bucket's name is made of letters, digits, '-', '_' and '.'".into());
        }
        if bucket.ends_with("--x-s3") {
            return Err("directory buckets list no order and are not supported".into());
        }
        if let Some(region) = &config.region
            && !region_fits(region)
        {
            return Err("a region is made of letters, digits and '-'".into());
        }
        let named = config.endpoint.as_ref().and_then(aws_region);
        let region = config.region.as_deref().or(named.flatten()).unwrap_or(DEFAULT_REGION);
        match &config.endpoint {
            Some(url) if named.is_none() => Place::at(url, config, region),
            _ => Place::aws(bucket, config.style, region),
        }
    }

    fn aws(bucket: &str, style: Style, region: &str) -> Result<Self, String> {
        let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        let host = format!("s3.{region}.{suffix}");
        let in_path = match style {
            Style::Auto => bucket.contains(['.', '_']) || bucket.contains(|c: char| c.is_ascii_uppercase()),
            Style::Path => true,
            Style::VirtualHost => false,
        };
        let (host, base) =
            if in_path { (host, format!("/{bucket}/")) } else { (format!("{bucket}.{host}"), "/".into()) };
        Ok(Place {
            scheme: Scheme::HTTPS,
            authority: host.parse().map_err(|_| "the bucket's name is no host name")?,
            host: HeaderValue::from_str(&host).map_err(|_| "the bucket's name is no host name")?,
            base,
            region: region.into(),
            aws: true,
            words: true,
            bucket: bucket.into(),
            style,
        })
    }

    fn at(url: &Url, config: &S3Config, region: &str) -> Result<Self, String> {
        let scheme = match url.scheme() {
            "http" => Scheme::HTTP,
            "https" => Scheme::HTTPS,
            _ => return Err("the endpoint begins with http:// or https://".into()),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err("the endpoint holds credentials; give them apart".into());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("the endpoint is a host, perhaps with a path".into());
        }
        let bucket = config.bucket.as_str();
        let mut host = url.host_str().ok_or("the endpoint has no host")?.to_owned();
        let path = url.path().trim_end_matches('/');
        let base = match config.style {
            Style::VirtualHost => {
                host = format!("{bucket}.{host}");
                format!("{path}/")
            }
            Style::Auto | Style::Path => format!("{path}/{bucket}/"),
        };
        let words = host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn");
        if let Some(port) = url.port() {
            host.push_str(&format!(":{port}"));
        }
        Ok(Place {
            scheme,
            authority: host.parse().map_err(|_| "the endpoint is no host name")?,
            host: HeaderValue::from_str(&host).map_err(|_| "the endpoint is no host name")?,
            base,
            region: region.into(),
            aws: false,
            words,
            bucket: bucket.into(),
            style: config.style,
        })
    }

    /// The same bucket in another region: another server on AWS, the same server elsewhere. `None` if the name
    /// comes from a server that lies, or nothing would change.
    pub(crate) fn moved(&self, region: &str) -> Option<Self> {
        if *self.region == *region || !region_fits(region) {
            return None;
        }
        if self.aws {
            return Place::aws(&self.bucket, self.style, region).ok();
        }
        Some(Place { region: region.into(), ..self.clone() })
    }

    /// The bucket's name.
    pub(crate) fn bucket(&self) -> &str {
        &self.bucket
    }

    /// Whether the connection is encrypted.
    pub(crate) fn https(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }
}

/// A region becomes part of a host name, so what a server says is looked at closely.
fn region_fits(region: &str) -> bool {
    (1..=64).contains(&region.len())
        && region.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
        && !region.starts_with('-')
        && !region.ends_with('-')
}

/// `Some` if the endpoint is AWS itself (as restic users write it), with the region in its name.
fn aws_region(url: &Url) -> Option<Option<&str>> {
    let host = url.host_str()?;
    let host = host.strip_suffix(".cn").unwrap_or(host).strip_suffix(".amazonaws.com")?;
    if url.scheme() != "https" || url.port().is_some() || url.path() != "/" {
        return None;
    }
    match host.split_once('.') {
        None if host == "s3" => Some(None),
        Some(("s3", region)) if region_fits(region) => Some(Some(region)),
        _ => host.strip_prefix("s3-").filter(|r| region_fits(r)).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(
        endpoint: Option<&str>,
        bucket: &str,
        region: Option<&str>,
        style: Style,
    ) -> Result<Place, String> {
        let mut config = S3Config::new(bucket);
        config.endpoint = endpoint.map(|e| e.parse().unwrap());
        config.region = region.map(Into::into);
        config.style = style;
        Place::new(&config)
    }

    #[test]
    fn a_bucket_is_found_where_its_style_puts_it() {
        use Style::{Auto, Path, VirtualHost};
        let minio = Some("http://127.0.0.1:9000");
        let table = [
            (None, "b", None, Auto, "https://b.s3.us-east-1.amazonaws.com/", "us-east-1"),
            (None, "b", Some("eu-west-1"), Auto, "https://b.s3.eu-west-1.amazonaws.com/", "eu-west-1"),
            (None, "b.c", None, Auto, "https://s3.us-east-1.amazonaws.com/b.c/", "us-east-1"),
            (None, "b", None, Path, "https://s3.us-east-1.amazonaws.com/b/", "us-east-1"),
            (None, "b", Some("cn-north-1"), Auto, "https://b.s3.cn-north-1.amazonaws.com.cn/", "cn-north-1"),
            (minio, "b", None, Auto, "http://127.0.0.1:9000/b/", "us-east-1"),
            (minio, "b", Some("x"), VirtualHost, "http://b.127.0.0.1:9000/", "x"),
            (Some("https://h:443/s3/"), "b", None, Auto, "https://h/s3/b/", "us-east-1"),
            (Some("https://[::1]:9/"), "b", None, Auto, "https://[::1]:9/b/", "us-east-1"),
            (
                Some("https://s3.amazonaws.com"),
                "b",
                None,
                Auto,
                "https://b.s3.us-east-1.amazonaws.com/",
                "us-east-1",
            ),
            (
                Some("https://s3.eu-west-3.amazonaws.com"),
                "b",
                None,
                Auto,
                "https://b.s3.eu-west-3.amazonaws.com/",
                "eu-west-3",
            ),
            (
                Some("https://s3.eu-west-3.amazonaws.com.evil.org"),
                "b",
                None,
                Auto,
                "https://s3.eu-west-3.amazonaws.com.evil.org/b/",
                "us-east-1",
            ),
        ];
        for (endpoint, bucket, region, style, expected, expected_region) in table {
            let place = place(endpoint, bucket, region, style).unwrap();
            assert_eq!(format!("{}://{}{}", place.scheme, place.authority, place.base), expected);
            assert_eq!(place.host, place.authority.as_str());
            assert_eq!(&*place.region, expected_region);
        }
    }

    #[test]
    fn every_way_to_aws_is_sent_words() {
        for (endpoint, expected) in [
            ("https://s3.eu-west-3.amazonaws.com", true),
            ("https://s3.dualstack.eu-west-3.amazonaws.com", true),
            ("https://s3-fips.us-gov-west-1.amazonaws.com", true),
            ("https://bucket.vpce-1a2b3c.s3.eu-west-1.vpce.amazonaws.com", true),
            ("https://s3-accelerate.amazonaws.com:443/", true),
            ("http://s3.cn-north-1.amazonaws.com.cn:80", true),
            ("https://amazonaws.com.evil.org", false),
            ("https://notamazonaws.com", false),
            ("http://127.0.0.1:9000", false),
        ] {
            assert_eq!(place(Some(endpoint), "b", None, Style::Auto).unwrap().words, expected, "{endpoint}");
        }
    }

    #[test]
    fn what_is_no_place_is_refused() {
        let table = [
            (None, "", None, "made of"),
            (None, "a/b", None, "made of"),
            (None, "..", None, "made of"),
            (None, "b--x-s3", None, "directory buckets"),
            (None, "b", Some("a.evil.org/"), "region"),
            (Some("ftp://h"), "b", None, "begins with"),
            (Some("http://me:pw@h"), "b", None, "credentials"),
            (Some("http://h/?x"), "b", None, "host"),
        ];
        for (endpoint, bucket, region, part) in table {
            let error = place(endpoint, bucket, region, Style::Auto).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_move_changes_the_host_on_aws_only_and_believes_no_lies() {
        let aws = place(None, "b", None, Style::Auto).unwrap();
        assert_eq!(aws.moved("eu-west-1").unwrap().authority, "b.s3.eu-west-1.amazonaws.com");
        for lie in ["", "us-east-1", "evil.org/", "a.evil", "-", &"a".repeat(65)] {
            assert!(aws.moved(lie).is_none(), "{lie}");
        }
        let own = place(Some("http://h:1"), "b", None, Style::Auto).unwrap().moved("garage").unwrap();
        assert_eq!((own.authority.as_str(), &*own.region), ("h:1", "garage"));
    }
}
