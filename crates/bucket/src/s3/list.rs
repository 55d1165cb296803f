//! Listings: pages asked for, decoded and checked before anybody relies on them.

use std::borrow::Cow;

use http::Method;
use jiff::Timestamp;

use super::attributes::unquoted;
use super::encode::{decode, percent};
use super::xml::{Node, walk};
use super::{Ask, Inner};
use crate::{Entry, ErrorKind, Key, ListRequest, Page, Result, Revision, Verb};

/// Entries of one page, by the protocol.
const PAGE: u32 = 1_000;
/// A page of 1,000 keys of 1,024 bytes, every byte escaped twice, is about 8 MB.
const MAX_ANSWER: usize = 16 << 20;

/// Asks for one page.
pub(super) async fn page(inner: &Inner, request: &ListRequest) -> Result<Page> {
    let error = |kind, what: &str| inner.error(kind, Verb::List, None).detail(what);
    if request.limit == Some(0) {
        return Err(error(ErrorKind::Invalid, "a page of no entries"));
    }
    let place = match &request.token {
        Some(token) => Some(Token::parse(token).ok_or_else(|| error(ErrorKind::Invalid, "no such token"))?),
        None => None,
    };
    let mut query = String::with_capacity(128);
    if let Some(place) = &place {
        query.push_str("continuation-token=");
        percent(place.continuation.as_bytes(), false, &mut query);
        query.push('&');
    }
    query.push_str("encoding-type=url&list-type=2&max-keys=");
    query.push_str(&request.limit.unwrap_or(PAGE).min(PAGE).to_string());
    query.push_str("&prefix=");
    percent(request.prefix.as_bytes(), false, &mut query);
    if let (None, Some(after)) = (&place, &request.after) {
        query.push_str("&start-after=");
        percent(after.as_bytes(), false, &mut query);
    }
    let mut ask = Ask::new(Verb::List, Method::GET, None);
    ask.query = &query;
    ask.limit = MAX_ANSWER;

    // An answer that cannot be read may have been cut on its way: it is asked for again. One that can be read
    // and is wrong would be wrong again.
    let mut tries = inner.tries();
    let answer = loop {
        let failure = match inner.attempt_whole(&ask).await {
            Ok(answer) => match parse(&answer.body) {
                Ok(parsed) => break parsed,
                Err(what) => error(ErrorKind::BadAnswer, &what).into(),
            },
            Err(failure) => failure,
        };
        tries.again(failure).await?;
    };
    let after = place.as_ref().map(|place| &place.last).or(request.after.as_ref());
    check(answer, &request.prefix, after, place.as_ref().map(|place| place.continuation))
        .map_err(|what| error(ErrorKind::BadAnswer, &what))
}

/// Where the next page begins: the store's token, and the last key that was seen, so that pages which
/// overlap are noticed.
struct Token<'a> {
    last: Key,
    continuation: &'a str,
}

impl<'a> Token<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (last, continuation) = text.split_once(' ')?;
        Some(Token { last: Key::new(decode(last)), continuation })
    }

    fn write(last: &Key, continuation: &str) -> String {
        let mut text = String::new();
        percent(last.as_bytes(), false, &mut text);
        text.push(' ');
        text.push_str(continuation);
        text
    }
}

/// A page as the store wrote it.
#[derive(Debug, Default)]
struct Parsed {
    entries: Vec<Entry>,
    truncated: bool,
    next: Option<String>,
}

fn parse(xml: &[u8]) -> Result<Parsed, String> {
    #[derive(Default)]
    struct Item<'i> {
        key: Option<Cow<'i, str>>,
        size: Option<u64>,
        modified: Option<Timestamp>,
        etag: Option<Box<str>>,
        class: Option<Box<str>>,
    }
    let mut items: Vec<(Cow<'_, str>, Entry)> = Vec::new();
    let mut item = Item::default();
    let mut truncated = None;
    let mut next = None;
    let mut count = None;
    let mut url = false;
    walk(xml, |node| {
        match node {
            Node::Leaf { path: ["ListBucketResult", "Contents", name], text } => match *name {
                "Key" => item.key = Some(text),
                "Size" => item.size = Some(text.trim().parse().map_err(|_| "a size is no number")?),
                "LastModified" => {
                    item.modified = Some(text.trim().parse().map_err(|_| "a time is no time")?);
                }
                "ETag" => item.etag = Some(unquoted(&text).into()),
                "StorageClass" if text != "STANDARD" && !text.is_empty() => {
                    item.class = Some(text.into());
                }
                _ => {}
            },
            Node::End { path: ["ListBucketResult", "Contents"] } => {
                let Item { key: Some(key), size: Some(size), modified: Some(modified), etag, class } =
                    std::mem::take(&mut item)
                else {
                    return Err("an entry lacks its key, size or time".into());
                };
                let revision = match etag {
                    Some(tag) if !tag.is_empty() => Revision::ETag(tag),
                    _ => Revision::Unknown,
                };
                let entry = Entry { key: Key::default(), size, modified, revision, class, attributes: None };
                items.push((key, entry));
            }
            Node::Leaf { path: ["ListBucketResult", name], text } => match *name {
                "IsTruncated" => truncated = Some(&*text == "true"),
                "NextContinuationToken" => next = Some(text.into_owned()),
                "EncodingType" => url = &*text == "url",
                "KeyCount" => count = text.trim().parse::<usize>().ok(),
                "CommonPrefixes" | "Contents" => return Err("an empty entry".into()),
                _ => {}
            },
            Node::End { path: ["ListBucketResult", "CommonPrefixes"] } => {
                return Err("keys were folded into prefixes that nobody asked for".into());
            }
            Node::End { path: [root] } | Node::Leaf { path: [root], .. } if *root != "ListBucketResult" => {
                return Err("the answer is no listing".into());
            }
            _ => {}
        }
        Ok(())
    })?;
    if count.is_some_and(|count| count > items.len()) {
        return Err("the listing has fewer entries than it says".into());
    }
    let entries = items
        .into_iter()
        .map(|(key, entry)| {
            // Not every store honours the encoding that was asked for; then keys come as they are.
            let key = if url { Key::new(decode(&key)) } else { Key::from(key.into_owned()) };
            Entry { key, ..entry }
        })
        .collect();
    // A page that does not say whether it is the last proves nothing.
    let truncated = truncated.ok_or("the listing does not say whether it is complete")?;
    Ok(Parsed { entries, truncated, next })
}

/// Makes a page of what the store wrote, if it is what was asked for.
fn check(
    parsed: Parsed,
    prefix: &Key,
    after: Option<&Key>,
    asked_with: Option<&str>,
) -> Result<Page, String> {
    let mut last = after;
    for Entry { key, .. } in &parsed.entries {
        if !key.as_bytes().starts_with(prefix.as_bytes()) {
            return Err(format!("listed outside the prefix: {key}"));
        }
        if last.is_some_and(|last| key <= last) {
            return Err(format!("listed out of order or twice: {key}"));
        }
        last = Some(key);
    }
    let next = match (parsed.truncated, parsed.next) {
        (false, _) => None,
        (true, Some(next)) if !next.is_empty() => {
            if parsed.entries.is_empty() && asked_with == Some(&*next) {
                return Err("the listing does not move on".into());
            }
            Some(Token::write(last.unwrap_or(&Key::default()), &next))
        }
        (true, _) => return Err("the listing goes on but does not say where".into()),
    };
    Ok(Page { entries: parsed.entries, next })
}

/// Parses a page, for fuzzing: must neither panic nor take more memory than a small multiple of the input.
#[doc(hidden)]
pub fn parse_listing(xml: &[u8]) -> std::result::Result<Page, String> {
    check(parse(xml)?, &Key::default(), None, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn listing(keys: &[&str], rest: &str) -> String {
        let mut xml = String::from(
            "<?xml version=\"1.0\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>b</Name><Prefix></Prefix>",
        );
        for key in keys {
            xml.push_str(&format!("<Contents><Key>{key}</Key><LastModified>2026-11-22T17:00:00.123Z</LastModified><ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag><Size>7</Size><Owner><ID>x</ID></Owner><StorageClass>STANDARD</StorageClass></Contents>"));
        }
        xml + rest + "</ListBucketResult>"
    }

    const END: &str = "<IsTruncated>false</IsTruncated><EncodingType>url</EncodingType>";

    fn page(xml: &str, prefix: &str, after: Option<&str>) -> Result<Page, String> {
        check(parse(xml.as_bytes())?, &prefix.into(), after.map(Key::from).as_ref(), Some("t"))
    }

    #[test]
    fn keys_are_decoded_only_if_the_store_encoded_them() {
        let xml = listing(&["a%2Fb+c%00", "a%2fd"], END);
        let page = self::page(&xml, "a", None).unwrap();
        assert_eq!(page.next, None);
        let keys: Vec<_> = page.entries.iter().map(|e| e.key.as_bytes()).collect();
        assert_eq!(keys, [&b"a/b c\0"[..], b"a/d"]);
        let entry = &page.entries[0];
        assert_eq!((entry.size, entry.revision.etag()), (7, Some("d41d8cd98f00b204e9800998ecf8427e")));
        assert_eq!((entry.modified.to_string().as_str(), &entry.class), ("2026-11-22T17:00:00.123Z", &None));

        let xml = listing(&["a%2Fb+c&#1;&amp;"], "<IsTruncated>false</IsTruncated>");
        assert_eq!(self::page(&xml, "a", None).unwrap().entries[0].key, Key::from("a%2Fb+c\u{1}&"));
    }

    #[test]
    fn a_page_that_proves_nothing_is_an_error() {
        let truncated = "<IsTruncated>true</IsTruncated>";
        let table = [
            (listing(&["b", "a"], END), "", None, "out of order"),
            (listing(&["a", "a"], END), "", None, "twice"),
            (listing(&["a"], END), "", Some("a"), "twice"),
            (listing(&["a"], END), "b", None, "outside the prefix"),
            (listing(&["a"], ""), "", None, "whether it is complete"),
            (listing(&["a"], truncated), "", None, "does not say where"),
            (
                listing(&[], &format!("{truncated}<NextContinuationToken>t</NextContinuationToken>")),
                "",
                None,
                "move on",
            ),
            (listing(&["a"], &format!("{END}<KeyCount>2</KeyCount>")), "", None, "fewer entries"),
            (
                listing(&[], &format!("{END}<CommonPrefixes><Prefix>a/</Prefix></CommonPrefixes>")),
                "",
                None,
                "folded",
            ),
            (listing(&[], &format!("{END}<Contents><Key>a</Key></Contents>")), "", None, "lacks"),
            (listing(&[], &format!("{END}<Contents><Size>-1</Size></Contents>")), "", None, "no number"),
            (listing(&[], &format!("{END}<Contents/>")), "", None, "empty entry"),
            ("<Error><Code>x</Code></Error>".into(), "", None, "no listing"),
            ("<html/>".into(), "", None, "no listing"),
        ];
        for (xml, prefix, after, part) in table {
            let error = page(&xml, prefix, after).expect_err(&xml);
            assert!(error.contains(part), "{error}: {xml}");
        }
    }

    #[test]
    fn a_token_carries_the_last_key_so_that_overlap_is_noticed() {
        let rest = "<IsTruncated>true</IsTruncated><NextContinuationToken>a b+/=</NextContinuationToken>";
        let first = page(&listing(&["a", "b c"], rest), "", None).unwrap();
        let text = first.next.unwrap();
        let token = Token::parse(&text).unwrap();
        assert_eq!((&token.last, token.continuation), (&Key::from("b c"), "a b+/="));
        let overlap = check(
            parse(listing(&["b c", "d"], END).as_bytes()).unwrap(),
            &Key::default(),
            Some(&token.last),
            Some(token.continuation),
        );
        assert!(overlap.unwrap_err().contains("twice"));
    }

    proptest! {
        #[test]
        fn no_listing_makes_the_parser_panic(
            pieces in prop::collection::vec(
                prop::sample::select(vec![
                    "<ListBucketResult>", "</ListBucketResult>", "<Contents>", "</Contents>", "<Key>", "</Key>",
                    "<Size>", "</Size>", "1", "%", "%4", "&#0;", "&lt;", "<![CDATA[", "]]>", "<!--", "-->", "<", ">",
                    "<IsTruncated>true</IsTruncated>", "2026-01-01T00:00:00Z", "<LastModified>", "</LastModified>",
                ]),
                0..40,
            )
        ) {
            let _ = parse_listing(pieces.concat().as_bytes());
        }
    }
}
