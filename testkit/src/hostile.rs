//! Keys that break programs which take keys for paths, text, URLs or XML; the same for the same seed.

use std::collections::BTreeSet;

use cistern_bucket::Key;

use crate::Random;

/// The longest key of S3, in bytes.
pub const MAX_KEY: usize = 1_024;

/// Components that each have been somebody's bug.
const COMPONENTS: &[&str] = &[
    // What paths mean.
    "",
    ".",
    "..",
    "...",
    "~",
    "-",
    "--",
    "-rf",
    "a",
    "b",
    "A",
    "B",
    "ab",
    "aB",
    "AB",
    "a.",
    "a..",
    ".a",
    "..a",
    // Order: `-`, `.` and `/` and `0` follow each other, and so do these names.
    "a-",
    "a-b",
    "a.txt",
    "a0",
    "a!",
    "a b",
    "a+b",
    "a,b",
    "a~",
    // What URLs mean.
    "%",
    "%2F",
    "%2f",
    "%25",
    "%2525",
    "%00",
    "%0A",
    "%zz",
    "a%20b",
    "+",
    "a+",
    " ",
    "a ",
    " a",
    "?",
    "?list-type=2",
    "#",
    "#a",
    "&",
    "=",
    "a=b&c=d",
    ";",
    ":",
    "@",
    "!",
    "$",
    "*",
    "'",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "|",
    "^",
    "`",
    ",",
    "http:",
    "s3:",
    "%E2%82%AC",
    "%C3",
    // What XML, shells, JSON and Windows mean.
    "<",
    ">",
    "&amp;",
    "&#10;",
    "<a>",
    "</Key>",
    "]]>",
    "<![CDATA[",
    "<!--",
    "\"",
    "\\",
    "a\\b",
    "\\\\",
    "\\n",
    "$(id)",
    "${a}",
    "`id`",
    "CON",
    "nul",
    "aux.txt",
    "C:",
    "a:b",
    "a*",
    "a?",
    "null",
    "true",
    "0",
    "00",
    "-0",
    // Control characters.
    "\u{1}",
    "\u{7}",
    "\u{8}",
    "\t",
    "\n",
    "\r",
    "\r\n",
    "a\nb",
    "a\n",
    "\na",
    "\u{b}",
    "\u{c}",
    "\u{1b}[31m",
    "\u{1f}",
    "\u{7f}",
    "\u{80}",
    "\u{85}",
    "\u{9f}",
    "\u{a0}",
    // The same to the eye, or to Unicode; not the same key.
    "é",
    "e\u{301}",
    "Å",
    "A\u{30a}",
    "\u{212b}",
    "ﬁ",
    "fi",
    "ß",
    "ss",
    "SS",
    "ı",
    "i",
    "İ",
    "K",
    "\u{212a}",
    "한",
    "\u{1112}\u{1161}\u{11ab}",
    "ａ",
    "ñ",
    "n\u{303}",
    "q\u{307}\u{323}",
    "q\u{323}\u{307}",
    // Wide, invisible and last characters.
    "🦀",
    "👩\u{200d}👩\u{200d}👧",
    "🏳\u{fe0f}\u{200d}🌈",
    "日本語",
    "שלום",
    "\u{202e}txt.exe",
    "\u{200b}",
    "\u{feff}",
    "\u{ad}",
    "\u{2028}",
    "\u{2029}",
    "\u{d7ff}",
    "\u{e000}",
    "\u{fffd}",
    "\u{fffe}",
    "\u{ffff}",
    "\u{10000}",
    "\u{10ffff}",
    // Names that look like our own, like restic's and like those of servers.
    ".cistern",
    ".cistern~",
    ".cistern~~",
    ".cistern~.",
    ".cistern~..",
    ".cistern~61",
    ".cistern~2e2e",
    ".cistern~a",
    ".cistern~~61",
    ".cistern-tmp",
    "user.cistern.object",
    ".minio.sys",
    "xl.meta",
    ".git",
    ".DS_Store",
    "config",
    "data",
    "keys",
    "locks",
    "snapshots",
    "index",
    "_$folder$",
    "index.html",
];

/// Whole keys that every set begins with: pairs and rows in which the order or the conflict is the point.
const KEYS: &[&str] = &[
    "a",
    "a/",
    "a/b",
    "a//b",
    "a/./b",
    "a/../b",
    "a-b",
    "a.txt",
    "a0",
    "a/b/",
    "a/b/c",
    "a//",
    "a///b",
    "A",
    "A/b",
    "/",
    "//",
    "/a",
    "//a",
    "./a",
    "../a",
    ".",
    "..",
    "./",
    "../",
    "a/.",
    "a/..",
    "/.",
    "/..",
    "a\\b",
    "both",
    "both/",
    "both/b",
    "both/b/",
    "both/b/c",
    "both-",
    "both.",
    "both0",
    "é/a",
    "e\u{301}/a",
    "é",
    "e\u{301}",
    "x/\n/y",
    "x/\u{1}",
    " ",
    "  ",
    "%",
    "+",
    "a b",
    "a+b",
    "a%20b",
    "a%2Bb",
    "a%2Fb",
    "a?b",
    "a#b",
    "🦀",
    "🦀/",
    "🦀/🦀",
    ".cistern~61",
    ".cistern~~61",
    ".cistern~",
];

/// `count` distinct keys that S3 admits: 1 to 1,024 bytes of UTF-8 without NUL. Not sorted.
pub fn keys(seed: u64, count: usize) -> Vec<Key> {
    let mut random = Random::new(seed);
    let mut seen = BTreeSet::new();
    let mut keys = Vec::with_capacity(count);
    let mut add = |text: String| {
        let key = Key::from(cut(text));
        if !key.is_empty() && keys.len() < count && seen.insert(key.clone()) {
            keys.push(key);
        }
        keys.len() < count
    };
    for text in KEYS.iter().chain(COMPONENTS) {
        add(text.to_string());
    }
    for length in [254, 255, 256, 257, 1_000, 1_023, 1_024] {
        add("l".repeat(length));
        add("é".repeat(length / 2));
        add(format!("long/{}", "m".repeat(length)));
    }
    add("d/".repeat(MAX_KEY / 2));
    add("d/".repeat(MAX_KEY / 2 - 1) + "e");
    add("/".repeat(MAX_KEY));
    while add(random_key(&mut random)) {
        // Most collisions between names are between a key and one that is made from it.
        let base = random_key(&mut random);
        for variant in variants(&mut random, &base) {
            add(variant);
        }
    }
    keys
}

/// `count` distinct keys of any bytes, which only some stores hold: NUL, and what is no UTF-8.
pub fn byte_keys(seed: u64, count: usize) -> Vec<Key> {
    let mut random = Random::new(seed);
    let mut seen = BTreeSet::new();
    for fixed in [
        &b"\0"[..],
        b"a\0b",
        b"\xff",
        b"\xc3",
        b"a/\xc3\x28",
        b"\xed\xa0\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xc0\xaf",
    ] {
        if seen.len() < count {
            seen.insert(Key::from(fixed));
        }
    }
    while seen.len() < count {
        let mut bytes = vec![0; 1 + random.below(40) as usize];
        random.fill(&mut bytes);
        if random.one_in(2) {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] = b'/';
        }
        seen.insert(Key::new(bytes));
    }
    seen.into_iter().collect()
}

fn random_key(random: &mut Random) -> String {
    let mut text = String::new();
    let components = 1 + random.below(5);
    for position in 0..components {
        if position > 0 {
            text.push('/');
        }
        match random.below(12) {
            0 => text.push_str(&"x".repeat(200 + random.below(120) as usize)),
            1 => (0..1 + random.below(4)).for_each(|_| text.push_str(random.pick(COMPONENTS))),
            2 => (0..1 + random.below(8)).for_each(|_| text.push(random_char(random))),
            3 => text.push_str(&format!("{:04}", random.below(10_000))),
            _ => text.push_str(random.pick(COMPONENTS)),
        }
    }
    if random.one_in(8) {
        text.insert(0, '/');
    }
    if random.one_in(8) {
        text.push('/');
    }
    if random.one_in(100) {
        while text.len() < MAX_KEY {
            text.push(random_char(random));
        }
        text = cut(text);
        text.push_str(&"x".repeat(MAX_KEY - text.len()));
    }
    text
}

fn variants(random: &mut Random, base: &str) -> [String; 4] {
    let below = random.pick(COMPONENTS);
    let swap = |c: char| if c.is_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() };
    [base.to_string(), format!("{base}/{below}"), format!("{base}/"), base.chars().map(swap).collect()]
}

fn random_char(random: &mut Random) -> char {
    let range = match random.below(6) {
        0 => 0x01..0x20,
        1 => 0x20..0x7f,
        2 => 0x7f..0x100,
        3 => 0x300..0x370,
        4 => 0x1f300..0x1f700,
        _ => 0x100..0xfffe,
    };
    char::from_u32(range.start + random.below(u64::from(range.end - range.start)) as u32)
        .unwrap_or('\u{fffd}')
}

/// The longest beginning of `text` that S3 admits.
fn cut(mut text: String) -> String {
    let mut end = text.len().min(MAX_KEY);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_keys_are_distinct_legal_repeatable_and_of_every_kind() {
        let all = keys(7, 10_000);
        assert_eq!(all, keys(7, 10_000));
        assert_ne!(all, keys(8, 10_000));
        let set: BTreeSet<&Key> = all.iter().collect();
        assert_eq!(set.len(), 10_000);
        let text = |key: &Key| key.as_str().expect("hostile keys are UTF-8").to_string();
        assert!(all.iter().all(|key| (1..=MAX_KEY).contains(&key.len()) && !text(key).contains('\0')));
        type Is = fn(&str) -> bool;
        let kinds: [(&str, Is); 14] = [
            ("empty component", |key| key.contains("//") || key.starts_with('/')),
            ("marker", |key| key.ends_with('/')),
            ("dots", |key| key.split('/').any(|name| name == "." || name == "..")),
            ("control", |key| key.chars().any(|c| c.is_control())),
            ("1,024 bytes", |key| key.len() == MAX_KEY),
            ("long component", |key| key.split('/').any(|name| name.len() > 255)),
            ("combining", |key| key.chars().any(|c| ('\u{300}'..'\u{370}').contains(&c))),
            ("emoji", |key| key.chars().any(|c| c > '\u{1f300}')),
            ("percent", |key| key.contains('%')),
            ("plus", |key| key.contains('+')),
            ("backslash", |key| key.contains('\\')),
            ("markup", |key| key.contains('<') || key.contains('&')),
            ("our escape", |key| key.contains(".cistern~")),
            ("newline", |key| key.contains('\n') || key.contains('\r')),
        ];
        for (name, is) in kinds {
            let count = all.iter().filter(|key| is(&text(key))).count();
            assert!(count >= 20, "{name}: {count}");
        }
        let beside = all.iter().filter(|key| set.contains(&Key::from(text(key) + "/"))).count();
        assert!(beside >= 500, "{beside}");
    }

    #[test]
    fn byte_keys_hold_what_is_no_text() {
        let all = byte_keys(7, 1_000);
        assert_eq!(all.len(), 1_000);
        assert!(all.iter().filter(|key| key.as_str().is_none()).count() > 500);
        assert!(all.iter().any(|key| key.as_bytes().contains(&0)));
    }
}
