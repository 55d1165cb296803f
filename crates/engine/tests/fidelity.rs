//! The mapping between keys and paths, judged on hostile keys and on arbitrary bytes: reversible, injective, and
//! within what a tree can hold.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;

use cistern_bucket::{Attributes, Entry, Key, Retention, Revision};
use cistern_engine::fidelity::{
    self, ATTRIBUTE, Description, directory, file, is_escaped, is_natural, is_same, key, name, object_name,
    piece, set_value, side_name,
};
use cistern_repository::{Id, Node};
use cistern_testkit::hostile;
use jiff::Timestamp;
use proptest::prelude::*;

/// The names on a key's way, the last one as of an object beside a directory if `beside`.
fn path(key: &[u8], beside: bool) -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = key.split(|b| *b == b'/').map(|piece| name(piece).into_owned()).collect();
    if beside {
        let last = key.rsplit(|b| *b == b'/').next().unwrap();
        *names.last_mut().unwrap() = object_name(last);
    }
    names
}

fn back(names: &[Vec<u8>], attribute: Option<&Key>) -> Key {
    key(&names.iter().map(|name| &name[..]).collect::<Vec<_>>(), attribute)
}

fn check(original: &Key) {
    let bytes = original.as_bytes();
    for beside in [false, true] {
        let names = path(bytes, beside);
        for name in &names {
            assert!(Node::check_name(name).is_ok() && name.len() <= 255, "{original}");
        }
        // The node carries the key if a name is escaped, and then it is exact whatever the names are.
        let attribute = (is_escaped(bytes) || beside).then_some(original);
        assert_eq!(back(&names, attribute), *original, "beside: {beside}");
        // Below a directory, and below other directories, the rest is told rightly as well.
        if names.len() > 1 {
            let rest = &bytes[bytes.iter().position(|b| *b == b'/').unwrap() + 1..];
            assert_eq!(back(&names[1..], attribute), Key::from(rest));
        }
        let above: Vec<Vec<u8>> = [vec![b"root".to_vec()], names.clone()].concat();
        assert_eq!(back(&above, attribute), original.under(b"root/"));
        // Without the attribute, only hashed names are lost.
        if names.iter().all(|name| piece(name).is_some()) {
            assert_eq!(back(&names, None), *original);
        }
    }
}

#[test]
fn hostile_keys_have_paths_of_their_own_and_come_back() {
    let seed = cistern_testkit::seed(5);
    let mut keys = hostile::keys(seed.value(), 10_000);
    keys.extend(hostile::byte_keys(seed.value(), 3_000));
    keys.sort();
    keys.dedup();
    let mut paths: HashMap<Vec<Vec<u8>>, &Key> = HashMap::new();
    for key in &keys {
        check(key);
        for beside in [false, true] {
            let names = path(key.as_bytes(), beside);
            if let Some(other) = paths.insert(names, key) {
                panic!("{key} and {other} have one path");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn any_bytes_come_back(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        check(&Key::new(bytes));
    }

    #[test]
    fn what_looks_like_an_escape_comes_back(
        text in r"(\.cistern~(c|o|h|oh|a|ah|)~?)?[a-z%/.~0-9A-F]{0,20}(~[0-9a-f]{64})?(/\.cistern~c~[%.]{0,3}){0,2}",
    ) {
        check(&Key::from(text));
    }

    #[test]
    fn two_pieces_never_have_one_name(
        a in r"(\.cistern~(c|o|h|oh|a|ah)~)?(%[0-9A-Fa-f]{2}|[a.%~]){0,6}",
        b in r"(\.cistern~(c|o|h|oh|a|ah)~)?(%[0-9A-Fa-f]{2}|[a.%~]){0,6}",
    ) {
        prop_assume!(a != b);
        let all = |piece: &str| [name(piece.as_bytes()).into_owned(), object_name(piece.as_bytes()), side_name(piece.as_bytes())];
        for one in all(&a) {
            prop_assert!(!all(&b).contains(&one));
        }
    }

    #[test]
    fn a_name_means_at_most_the_piece_that_would_get_it(text in r"\.cistern~(c|o|h|a)~(%[0-9A-Fa-f]{2}|[a.%~]){0,6}") {
        let meant = piece(text.as_bytes()).unwrap();
        let literal = *meant == *text.as_bytes();
        prop_assert!(literal || *name(&meant) == *text.as_bytes() || object_name(&meant) == text.as_bytes());
    }

}

proptest! {
    // Long texts are slow to make.
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn attributes_come_back_whole_or_with_their_side_file(
        texts in prop::collection::vec(prop::option::of(".{0,40}"), 8),
        meta in prop::collection::btree_map("[a-z]{1,8}", ".{0,400}", 0..12),
        tags in prop::option::of(prop::collection::btree_map("[a-z]{1,8}", ".{0,40}", 0..4)),
        key in prop::option::of(prop::collection::vec(any::<u8>(), 0..1_100)),
        etag in prop::option::of(".{0,60}"),
        generation in prop::option::of((any::<u64>(), any::<u64>())),
        missing in 0u32..3,
    ) {
        let description = Description {
            key: key.map(Key::new),
            revision: match (etag, generation) {
                (Some(etag), _) => Some(Revision::ETag(etag.into())),
                (None, Some((object, meta))) => Some(Revision::Generation { object, meta }),
                (None, None) => None,
            },
            version: texts[0].clone(),
            attributes: Attributes {
                content_type: texts[1].clone(),
                cache_control: texts[2].clone(),
                content_disposition: texts[3].clone(),
                content_encoding: texts[4].clone(),
                content_language: texts[5].clone(),
                expires: texts[6].clone(),
                website_redirect: texts[7].clone(),
                class: texts[0].clone(),
                retention: texts[1].clone().map(|mode| Retention {
                    mode,
                    until: Timestamp::from_second(missing.into()).unwrap(),
                }),
                legal_hold: missing % 2 == 1,
                meta,
                missing_meta: missing,
                tag_count: None,
                tags,
            },
            more: None,
            side: false,
        };
        let (value, side) = description.encode(|| side_name(b"x"));
        let mut node = file(b"x", 0, Timestamp::UNIX_EPOCH, &[]);
        set_value(&mut node, value.clone());
        prop_assert!(value.is_none_or(|value| value.len() <= 3_500));
        let read = Description::of(&node).unwrap();
        let read = match side {
            None => read,
            Some(side) => {
                prop_assert_eq!(read.more.as_deref().map(str::as_bytes), Some(&*side.name));
                prop_assert_eq!(fidelity::side_of(&node), Some(side.name));
                read.with_side(&side.content).unwrap()
            }
        };
        prop_assert_eq!(read, description);
    }

    #[test]
    fn attributes_of_others_are_refused_and_never_a_panic(json in ".{0,60}|\\{\"(key|keyBytes|meta|etag|more|side|tags)\":(1|\"x\"|\\{\\}|null|true|\\[\\])\\}") {
        let mut node = file(b"x", 0, Timestamp::UNIX_EPOCH, &[]);
        set_value(&mut node, Some(json.into_bytes()));
        let _ = Description::of(&node);
        let _ = fidelity::side_of(&node);
    }
}

#[test]
fn names_are_as_documented() {
    let table: [(&[u8], &[u8]); 9] = [
        (b"plain", b"plain"),
        (b"", b".cistern~c~"),
        (b".", b".cistern~c~."),
        (b"..", b".cistern~c~.."),
        (b"a\0b", b".cistern~c~a%00b"),
        (b".cistern~x", b".cistern~c~.cistern~x"),
        (b"...", b"..."),
        ("ü\u{301}\n".as_bytes(), "ü\u{301}\n".as_bytes()),
        (b"\xff%", b"\xff%"),
    ];
    for (piece, expected) in table {
        assert_eq!(*name(piece), *expected);
        assert_eq!(is_natural(piece), piece == expected);
    }
    assert_eq!(object_name("ä/%\n\u{ff}\u{85}".as_bytes()), ".cistern~o~ä%2F%25%0Aÿ%C2%85".as_bytes());
    assert_eq!(object_name(b"\xff"), b".cistern~o~%FF");
    assert_eq!(side_name(b"a"), b".cistern~a~a");
    let long = vec![b'x'; 256];
    let hashed = format!(".cistern~h~{}~{}", "x".repeat(100), Id::of(&long));
    assert_eq!(*name(&long), *hashed.as_bytes());
    assert_eq!(piece(hashed.as_bytes()), None);
    assert_eq!(
        object_name(&vec![b'x'; 245]),
        format!(".cistern~oh~{}~{}", "x".repeat(100), Id::of(&[b'x'; 245])).into_bytes()
    );
    // Neither a character nor an escape is cut in two.
    for (piece, head) in
        [("é".repeat(200), "é".repeat(50)), (format!("x{}", "é".repeat(200)), format!("x{}", "é".repeat(49)))]
    {
        assert_eq!(
            *name(piece.as_bytes()),
            *format!(".cistern~h~{head}~{}", Id::of(piece.as_bytes())).as_bytes()
        );
    }
    let escapes = "\u{1}".repeat(256);
    let head = "%01".repeat(33);
    assert_eq!(
        *name(escapes.as_bytes()),
        *format!(".cistern~h~{head}~{}", Id::of(escapes.as_bytes())).as_bytes()
    );
    // Names that nobody escapes so stand for themselves.
    for literal in [
        ".cistern~c~plain",
        ".cistern~c~%2e",
        ".cistern~c~%",
        ".cistern~x",
        ".cistern~h~short",
        ".cistern~o~%zz",
    ] {
        assert_eq!(piece(literal.as_bytes()).as_deref(), Some(literal.as_bytes()));
    }
}

#[test]
fn a_key_that_no_longer_fits_its_path_is_not_believed() {
    let elsewhere = Key::from("a//b");
    let names: [&[u8]; 2] = [b"c", b"d"];
    assert_eq!(key(&names, Some(&elsewhere)), Key::from("c/d"));
    let fits: [&[u8]; 3] = [b"a", b".cistern~c~", b"b"];
    assert_eq!(key(&fits, Some(&elsewhere)), elsewhere);
    assert_eq!(key(&[], Some(&elsewhere)), Key::default());
}

#[test]
fn the_attribute_is_sorted_json_and_absent_when_there_is_nothing_to_say() {
    let nothing = Description {
        attributes: Attributes { tags: Some([].into()), ..Attributes::default() },
        ..Description::default()
    };
    assert_eq!(nothing.encode(|| unreachable!()), (None, None));
    let some = Description {
        key: Some(Key::from("a//b")),
        revision: Some(Revision::ETag("x".into())),
        attributes: Attributes {
            content_type: Some("text/plain".into()),
            meta: [("b".to_string(), "2".to_string()), ("a".to_string(), "1".to_string())].into(),
            tags: None,
            ..Attributes::default()
        },
        ..Description::default()
    };
    let (value, _) = some.encode(|| unreachable!());
    let expected =
        r#"{"contentType":"text/plain","etag":"x","key":"a//b","meta":{"a":"1","b":"2"},"tagsUnknown":true}"#;
    assert_eq!(String::from_utf8(value.unwrap()).unwrap(), expected);
}

#[test]
fn nodes_of_directories_never_change_by_themselves() {
    let node = directory(b"d", Id::of(b"tree"));
    let mut text = Vec::new();
    node.write(&mut text);
    let expected = format!(
        r#"{{"name":"d","type":"dir","mode":2147484141,"mtime":"1970-01-01T00:00:00Z","atime":"1970-01-01T00:00:00Z","ctime":"1970-01-01T00:00:00Z","uid":0,"gid":0,"content":null,"subtree":"{}"}}"#,
        Id::of(b"tree")
    );
    assert_eq!(String::from_utf8(text).unwrap(), expected);
}

#[test]
fn sameness_goes_by_the_best_that_both_sides_have() {
    let at = |nanoseconds: i128| Timestamp::from_nanosecond(nanoseconds).unwrap();
    let second = 1_000_000_000;
    let entry = |revision: Revision, modified: i128| Entry {
        key: Key::from("k"),
        size: 3,
        modified: at(modified),
        revision,
        class: None,
        attributes: None,
    };
    let node = |revision: Option<Revision>, modified: i128, size| {
        let description = Description {
            revision,
            attributes: Attributes { tags: Some([].into()), ..Attributes::default() },
            ..Description::default()
        };
        let mut node = file(b"k", size, at(modified), &[]);
        set_value(&mut node, description.encode(|| unreachable!()).0);
        node
    };
    let tag = |tag: &str| Revision::ETag(tag.into());
    let generation = |object, meta| Revision::Generation { object, meta };
    let table = [
        (node(Some(tag("x")), second, 3), entry(tag("x"), second), true),
        (node(Some(tag("x")), second, 3), entry(tag("y"), second), false),
        (node(Some(tag("x")), second, 4), entry(tag("x"), second), false),
        (node(Some(tag("x")), second, 3), entry(tag("x"), 2 * second), false),
        (node(None, second, 3), entry(tag("x"), second), true),
        (node(None, second, 3), entry(tag("x"), second + 5), true),
        (node(None, second + 4, 3), entry(tag("x"), second + 5), false),
        (node(None, second, 3), entry(tag("x"), 2 * second), false),
        (node(Some(tag("x")), second, 3), entry(Revision::Unknown, second), true),
        (node(Some(generation(7, 1)), second, 3), entry(generation(7, 1), second), true),
        (node(Some(generation(7, 1)), second, 3), entry(generation(7, 2), second), false),
        (node(Some(generation(7, 1)), second, 3), entry(tag("x"), second), false),
        (directory(b"k", Id::of(b"")), entry(tag("x"), 0), false),
    ];
    for (i, (node, entry, expected)) in table.iter().enumerate() {
        assert_eq!(is_same(node, entry), *expected, "row {i}");
    }
    let mut strange = node(None, second, 3);
    set_value(&mut strange, Some(b"not json".to_vec()));
    assert!(!is_same(&strange, &entry(tag("x"), second)), "{ATTRIBUTE}");
}
