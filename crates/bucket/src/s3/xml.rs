//! Reads the XML of S3: leaves with their path and text, within bounds that no honest answer meets.

use std::borrow::Cow;

use quick_xml::Reader;
use quick_xml::events::Event;

/// Elements within elements. The deepest answer of S3 has six.
const MAX_DEPTH: usize = 16;

/// What the walk through a document meets.
#[derive(Debug)]
pub(crate) enum Node<'n, 'i> {
    /// An element without elements in it; its name is the last of `path`.
    Leaf { path: &'n [&'i str], text: Cow<'i, str> },
    /// The end of an element with others in it.
    End { path: &'n [&'i str] },
}

/// Walks through a whole document.
///
/// # Errors
/// A sentence: no UTF-8, not well formed, cut short, too deep, or with a document type (whose entities are
/// the classic way to make a small document large).
pub(crate) fn walk<'i>(
    xml: &'i [u8],
    mut visit: impl for<'n> FnMut(Node<'n, 'i>) -> Result<(), String>,
) -> Result<(), String> {
    let xml = std::str::from_utf8(xml).map_err(|_| "the XML is not UTF-8")?;
    let mut reader = Reader::from_str(xml);
    reader.config_mut().expand_empty_elements = true;
    let mut path: Vec<&'i str> = Vec::with_capacity(MAX_DEPTH);
    let mut text = Cow::Borrowed("");
    // Whether an element began since the last one ended: then the element that ends now is a leaf.
    let mut leaf = false;
    let mut root_ended = false;
    loop {
        match reader.read_event().map_err(|e| format!("the XML is not well formed: {e}"))? {
            Event::Start(start) => {
                if path.len() == MAX_DEPTH {
                    return Err("the XML is nested too deeply".into());
                }
                if root_ended {
                    return Err("the XML has two roots".into());
                }
                path.push(local_name(xml, start.name().0));
                text = Cow::Borrowed("");
                leaf = true;
            }
            Event::End(_) => {
                let node = if leaf {
                    Node::Leaf { path: &path, text: std::mem::take(&mut text) }
                } else {
                    Node::End { path: &path }
                };
                visit(node)?;
                leaf = false;
                path.pop();
                root_ended = path.is_empty();
            }
            Event::Text(piece) if leaf => push(&mut text, piece.into_inner()),
            Event::CData(piece) if leaf => push(&mut text, piece.into_inner()),
            Event::GeneralRef(reference) if leaf => {
                let known = match &*reference {
                    "amp" => Some('&'),
                    "lt" => Some('<'),
                    "gt" => Some('>'),
                    "quot" => Some('"'),
                    "apos" => Some('\''),
                    _ => reference.resolve_char_ref().map_err(|e| format!("a reference in the XML: {e}"))?,
                };
                let known = known.ok_or("the XML refers to an unknown entity")?;
                text.to_mut().push(known);
            }
            Event::DocType(_) => return Err("the XML has a document type".into()),
            Event::Eof if root_ended => return Ok(()),
            Event::Eof => return Err("the XML is cut short".into()),
            _ => {}
        }
    }
}

fn push<'i>(text: &mut Cow<'i, str>, piece: Cow<'i, str>) {
    if text.is_empty() {
        *text = piece;
    } else {
        text.to_mut().push_str(&piece);
    }
}

/// The name without a namespace's prefix, as a part of the document.
fn local_name<'i>(xml: &'i str, name: &str) -> &'i str {
    let begin = name.as_ptr() as usize - xml.as_ptr() as usize;
    let name = &xml[begin..begin + name.len()];
    name.rsplit_once(':').map_or(name, |(_, local)| local)
}

/// Whether XML 1.0 can hold the text; what it cannot is not even expressible as a reference.
pub(crate) fn can_hold(text: &str) -> bool {
    text.chars()
        .all(|c| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..))
}

/// Appends text so that it is read back exactly: line ends too, which a parser would normalise.
pub(crate) fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\t' => out.push_str("&#9;"),
            '\n' => out.push_str("&#10;"),
            '\r' => out.push_str("&#13;"),
            c => out.push(c),
        }
    }
}

/// The text of the first leaf with this name, wherever it is.
pub(crate) fn find(xml: &[u8], name: &str) -> Result<Option<String>, String> {
    let mut found = None;
    walk(xml, |node| {
        if let Node::Leaf { path, text } = node
            && path.last() == Some(&name)
            && found.is_none()
        {
            found = Some(text.into_owned());
        }
        Ok(())
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn leaves(xml: &str) -> Result<Vec<(String, String)>, String> {
        let mut all = Vec::new();
        walk(xml.as_bytes(), |node| {
            all.push(match node {
                Node::Leaf { path, text } => (path.join("/"), text.into_owned()),
                Node::End { path } => (format!("{}.", path.join("/")), String::new()),
            });
            Ok(())
        })?;
        Ok(all)
    }

    #[test]
    fn leaves_come_with_their_path_and_exact_text() {
        let xml = "<?xml version=\"1.0\"?>\n<!-- c --><n:R xmlns:n='u'>\n <A> x&amp;&#x79;<![CDATA[<z>]]></A>\n <B/><C><D>1</D></C></n:R>\n";
        let expected = [("R/A", " x&y<z>"), ("R/B", ""), ("R/C/D", "1"), ("R/C.", ""), ("R.", "")];
        let expected: Vec<_> = expected.iter().map(|(p, t)| ((*p).to_owned(), (*t).to_owned())).collect();
        assert_eq!(leaves(xml).unwrap(), expected);
        assert_eq!(find(xml.as_bytes(), "D").unwrap().as_deref(), Some("1"));
        assert_eq!(find(xml.as_bytes(), "E").unwrap(), None);
    }

    #[test]
    fn what_is_broken_or_made_to_harm_is_an_error() {
        let deep = "<a>".repeat(100_000);
        let table = [
            ("", "cut short"),
            ("<R><A>1</A>", "cut short"),
            ("<R><A>1</R>", "not well formed"),
            ("<R/><R/>", "two roots"),
            ("<!DOCTYPE R [<!ENTITY a 'aaaa'>]><R>&a;</R>", "document type"),
            ("<R><A>&a;</A></R>", "unknown entity"),
            ("<R><A>&#xffffffff;</A></R>", "reference"),
            ("<html><body><br></body></html>", "not well formed"),
            (&deep, "too deeply"),
        ];
        for (xml, part) in table {
            let error = leaves(xml).expect_err(xml);
            assert!(error.contains(part), "{error}");
        }
        assert!(walk(b"<R>\xff</R>", |_| Ok(())).unwrap_err().contains("UTF-8"));
    }

    proptest! {
        #[test]
        fn what_xml_can_hold_is_read_back_exactly(text in "\\PC*|[\\t\\r\\n &<>\"']*") {
            let beyond = text.contains(['\u{fffe}', '\u{ffff}']);
            prop_assert!(can_hold(&text) || beyond);
            let mut xml = String::from("<R><K>");
            escape(&text, &mut xml);
            xml.push_str("</K></R>");
            prop_assert_eq!(find(xml.as_bytes(), "K").unwrap().unwrap(), text);
        }

        #[test]
        fn no_bytes_make_the_walk_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = walk(&bytes, |_| Ok(()));
        }
    }

    #[test]
    fn control_characters_cannot_be_held() {
        for text in ["\0", "a\u{1}", "\u{1f}", "\u{fffe}", "\u{ffff}"] {
            assert!(!can_hold(text), "{text:?}");
        }
        assert!(can_hold("a\t\r\n\u{7f}é\u{1f600}"));
    }
}
