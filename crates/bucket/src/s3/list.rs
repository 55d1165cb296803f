//! Listings: pages asked for, decoded and checked before anybody relies on them.

use std::borrow::Cow;
use std::sync::atomic::Ordering::Relaxed;

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
/// Longest token of a store, in bytes: it goes into a request line, where every byte may become three.
const MAX_TOKEN: usize = 8 << 10;

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
    let limit = request.limit.unwrap_or(PAGE).min(PAGE);
    query.push_str(&limit.to_string());
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
            Ok(answer) => match parse(&answer.body, limit as usize) {
                Ok(parsed) => break parsed,
                Err(what) => error(ErrorKind::BadAnswer, &what).into(),
            },
            Err(failure) => failure,
        };
        tries.again(failure).await?;
    };
    let bounds = match &place {
        Some(place) => Bounds {
            floor: Some(&place.floor),
            last: Some(&place.last),
            asked_with: Some(place.continuation),
        },
        None => Bounds { floor: request.after.as_ref(), ..Bounds::default() },
    };
    let (page, dropped) =
        check(answer, &request.prefix, bounds).map_err(|what| error(ErrorKind::BadAnswer, &what))?;
    if dropped && place.is_none() {
        // The store begins at the beginning wherever it is told to begin.
        inner.takes_start_after.store(false, Relaxed);
    }
    Ok(page)
}

/// Where the next page begins: the store's token; the last key that was seen, so that pages which overlap are
/// noticed; and the key behind which the listing was to begin, for stores that do not.
struct Token<'a> {
    last: Key,
    floor: Key,
    continuation: &'a str,
}

impl<'a> Token<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (last, rest) = text.split_once(' ')?;
        let (floor, continuation) = rest.split_once(' ')?;
        Some(Token { last: Key::new(decode(last)), floor: Key::new(decode(floor)), continuation })
    }

    fn write(last: &Key, floor: &Key, continuation: &str) -> String {
        let mut text = String::new();
        percent(last.as_bytes(), false, &mut text);
        text.push(' ');
        percent(floor.as_bytes(), false, &mut text);
        text.push(' ');
        text.push_str(continuation);
        text
    }
}

/// Reads a token and writes it again, for fuzzing.
#[doc(hidden)]
pub(super) fn rewritten(text: &str) -> Option<String> {
    let token = Token::parse(text)?;
    Some(Token::write(&token.last, &token.floor, token.continuation))
}

/// A page as the store wrote it.
#[derive(Debug, Default)]
struct Parsed {
    entries: Vec<Entry>,
    truncated: bool,
    next: Option<String>,
    /// There are more entries than were asked for; they were not read.
    overfull: bool,
}

fn parse(xml: &[u8], limit: usize) -> Result<Parsed, String> {
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
    let mut overfull = false;
    let walked = walk(xml, |node| {
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
            Node::End { path: ["ListBucketResult", "Contents"] } if items.len() == limit => {
                overfull = true;
                return Err("too many entries".into());
            }
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
    });
    if overfull {
        return Ok(Parsed { overfull, ..Parsed::default() });
    }
    walked?;
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
    Ok(Parsed { entries, truncated, next, overfull })
}

/// What a page is measured by.
#[derive(Clone, Copy, Debug, Default)]
struct Bounds<'a> {
    /// Only keys behind this are wanted.
    floor: Option<&'a Key>,
    /// Only keys behind this can come.
    last: Option<&'a Key>,
    /// The store's token that the page was asked for with.
    asked_with: Option<&'a str>,
}

/// Makes a page of what the store wrote, if it is what was asked for; and says whether entries had to be dropped
/// because the store does not begin where it is told to.
fn check(mut parsed: Parsed, prefix: &Key, bounds: Bounds<'_>) -> Result<(Page, bool), String> {
    if parsed.overfull {
        return Err("the listing has more entries than were asked for".into());
    }
    let Bounds { floor, mut last, asked_with } = bounds;
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
        (true, Some(next)) if next.len() > MAX_TOKEN => {
            return Err("the listing goes on at a token of more than 8 KiB".into());
        }
        (true, Some(next)) if !next.is_empty() => {
            if parsed.entries.is_empty() && asked_with == Some(&*next) {
                return Err("the listing does not move on".into());
            }
            let start = Key::default();
            Some(Token::write(last.unwrap_or(&start), floor.unwrap_or(&start), &next))
        }
        (true, _) => return Err("the listing goes on but does not say where".into()),
    };
    let before = parsed.entries.len();
    if let Some(floor) = floor {
        parsed.entries.retain(|entry| entry.key > *floor);
    }
    let dropped = parsed.entries.len() < before;
    Ok((Page { entries: parsed.entries, next }, dropped))
}

/// Parses a page, for fuzzing: must neither panic nor take more memory than a small multiple of the input.
#[doc(hidden)]
pub fn parse_listing(xml: &[u8]) -> std::result::Result<Page, String> {
    Ok(check(parse(xml, PAGE as usize)?, &Key::default(), Bounds::default())?.0)
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
        let last = after.map(Key::from);
        let bounds = Bounds { floor: None, last: last.as_ref(), asked_with: Some("t") };
        Ok(check(parse(xml.as_bytes(), 3)?, &prefix.into(), bounds)?.0)
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
        let long = "t".repeat(MAX_TOKEN + 1);
        let table = [
            (listing(&["b", "a"], END), "", None, "out of order"),
            (listing(&["a", "a"], END), "", None, "twice"),
            (listing(&["a"], END), "", Some("a"), "twice"),
            (listing(&["a"], END), "b", None, "outside the prefix"),
            (listing(&["a"], ""), "", None, "whether it is complete"),
            (listing(&["a"], truncated), "", None, "does not say where"),
            (listing(&["a", "b", "c", "d"], END), "", None, "more entries"),
            (
                listing(&["a"], &format!("{truncated}<NextContinuationToken>{long}</NextContinuationToken>")),
                "",
                None,
                "8 KiB",
            ),
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
        let parsed = || parse(listing(&["b c", "d"], END).as_bytes(), 3).unwrap();
        let bounds = Bounds { floor: None, last: Some(&token.last), asked_with: Some(token.continuation) };
        assert!(check(parsed(), &Key::default(), bounds).unwrap_err().contains("twice"));
        // A store that did not begin behind the floor: what lies before it is left out.
        let (page, dropped) =
            check(parsed(), &Key::default(), Bounds { floor: Some(&"c".into()), ..Bounds::default() })
                .unwrap();
        assert_eq!((page.entries.len(), &page.entries[0].key, dropped), (1, &Key::from("d"), true));
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
