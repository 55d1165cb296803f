//! Decides by patterns, size and time which files or objects are meant, with the meaning that restic's
//! patterns have.
//!
//! A pattern is split at `/` and compared with a path component by component. One that begins with `/`
//! begins at the root; any other may begin at every component. A pattern that is shorter than the path still
//! matches: what lies below an excluded directory is excluded. `*`, `?` and `[…]` stay within a component,
//! `**` stands for any number of them. In the list of excludes, `!` takes back what earlier patterns excluded
//! (<https://restic.readthedocs.io/en/stable/040_backup.html#excluding-files>).

use jiff::Timestamp;

use crate::{Error, Result, Selection};

/// A [`Selection`] that was checked and prepared.
#[derive(Clone, Debug, Default)]
pub(crate) struct Select {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
    negation: bool,
    ignore_case: bool,
    max_size: Option<u64>,
    modified_since: Option<Timestamp>,
}

/// What a selection says of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Directory {
    /// It is not meant, and nothing below it is.
    Excluded,
    /// It is meant.
    Included,
    /// It is not meant itself, but something below it may be.
    Passage,
}

impl Selection {
    /// Looks at the patterns before a run does.
    ///
    /// # Errors
    /// `Invalid`, naming the pattern that is malformed.
    pub fn check(&self) -> Result<()> {
        Select::new(self).map(drop)
    }
}

impl Select {
    /// Prepares a selection.
    ///
    /// # Errors
    /// `Invalid`, naming the pattern that is malformed.
    pub fn new(selection: &Selection) -> Result<Self> {
        let parse = |patterns: &[String]| -> Result<Vec<Pattern>> {
            let patterns = patterns.iter().filter(|pattern| !pattern.is_empty());
            patterns.map(|pattern| Pattern::parse(pattern, selection.ignore_case)).collect()
        };
        let exclude = parse(&selection.exclude)?;
        Ok(Select {
            include: parse(&selection.include)?,
            negation: exclude.iter().any(|pattern| pattern.negated),
            exclude,
            ignore_case: selection.ignore_case,
            max_size: selection.max_size,
            modified_since: selection.modified_since,
        })
    }

    /// Whether every path is meant, so that none needs to be put together to be asked for.
    pub fn takes_every_path(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    /// Whether a pattern excludes this absolute path, which begins with `/`. None of the directories above is
    /// asked: a walk has asked before it entered them.
    pub fn excludes(&self, path: &[u8]) -> bool {
        !self.exclude.is_empty() && self.is_excluded(&split(&self.fold(path)))
    }

    /// Whether the file of this absolute path is meant, by patterns alone.
    pub fn file(&self, path: &[u8]) -> bool {
        !self.excludes(path) && self.includes(path)
    }

    /// Whether there are no includes, or one matches this absolute path or a directory above it.
    pub fn includes(&self, path: &[u8]) -> bool {
        self.include.is_empty() || self.is_included(&split(&self.fold(path)))
    }

    /// Whether the directory of this absolute path is meant, by patterns alone.
    pub fn directory(&self, path: &[u8]) -> Directory {
        if self.excludes(path) {
            return Directory::Excluded;
        }
        if self.includes(path) {
            return Directory::Included;
        }
        let folded = self.fold(path);
        let parts = split(&folded);
        match self.include.iter().any(|pattern| !pattern.negated && pattern.may_match_below(&parts)) {
            true => Directory::Passage,
            false => Directory::Excluded,
        }
    }

    /// Whether the object of this absolute path is meant, where no walk has asked for the directories above.
    pub fn object(&self, path: &[u8]) -> bool {
        if self.takes_every_path() {
            return true;
        }
        // Without negation, what matches a directory matches everything below it as well.
        if self.negation {
            let folded = self.fold(path);
            let parts = split(&folded);
            if (2..parts.len()).any(|end| self.is_excluded(&parts[..end])) {
                return false;
            }
        }
        self.file(path)
    }

    /// Whether a file or object of this size and time of modification is meant.
    pub fn metadata(&self, size: u64, modified: Option<Timestamp>) -> bool {
        self.max_size.is_none_or(|max| size <= max)
            && self.modified_since.is_none_or(|since| modified.is_none_or(|time| time >= since))
    }

    fn is_excluded(&self, parts: &[&[u8]]) -> bool {
        if !self.negation {
            return self.exclude.iter().any(|pattern| pattern.matches(parts));
        }
        let mut excluded = false;
        for pattern in &self.exclude {
            if excluded == pattern.negated && pattern.matches(parts) {
                excluded = !pattern.negated;
            }
        }
        excluded
    }

    fn is_included(&self, parts: &[&[u8]]) -> bool {
        let mut included = false;
        for pattern in &self.include {
            if included == pattern.negated && pattern.matches(parts) {
                included = !pattern.negated;
            }
        }
        included
    }

    fn fold<'a>(&self, path: &'a [u8]) -> std::borrow::Cow<'a, [u8]> {
        if self.ignore_case { fold(path).into() } else { path.into() }
    }
}

/// One pattern.
#[derive(Clone, Debug, PartialEq)]
struct Pattern {
    negated: bool,
    /// Begins at the root: the first component of the path is the empty one before its first slash.
    absolute: bool,
    parts: Vec<Part>,
}

/// A component of a pattern.
#[derive(Clone, Debug, PartialEq)]
enum Part {
    /// `**`: any number of components.
    AnyDepth,
    /// Exactly this name.
    Name(Box<[u8]>),
    /// A name that these tokens describe.
    Glob(Box<[Token]>),
}

/// A piece of a component with wildcards.
#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// `*`.
    Any,
    /// `?`.
    One,
    /// A character as it is.
    Char(Symbol),
    /// `[a-z]`, `[^a-z]`: ranges, both ends included.
    Class { inverted: bool, ranges: Box<[(Symbol, Symbol)]> },
}

/// A character, or a byte that is not part of one. Go compares those as U+FFFD, and so does this.
type Symbol = char;

impl Pattern {
    fn parse(text: &str, ignore_case: bool) -> Result<Pattern> {
        let folded = if ignore_case { fold(text.as_bytes()) } else { text.as_bytes().to_vec() };
        let (negated, rest) = match folded.strip_prefix(b"!") {
            Some(rest) => (true, rest),
            None => (false, &folded[..]),
        };
        let clean = clean(rest);
        let absolute = clean.starts_with(b"/");
        let names = split(&clean);
        let names = if absolute { &names[1..] } else { &names[..] };
        let parts = names
            .iter()
            .map(|name| match *name {
                // What restic makes of "/": the component behind the slash is empty as that of "**" is.
                b"**" | b"" => Some(Part::AnyDepth),
                name if !name.iter().any(|b| b"\\[]*?".contains(b)) => Some(Part::Name(name.into())),
                name => tokens(name).map(Part::Glob),
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| Error::Invalid(format!("the pattern '{text}' is malformed")))?;
        Ok(Pattern { negated, absolute, parts })
    }

    /// Whether the pattern describes the path or a directory above it. `parts` of an absolute path begin with
    /// an empty one.
    fn matches(&self, parts: &[&[u8]]) -> bool {
        let (rooted, names) = match parts {
            [b"", names @ ..] => (true, names),
            names => (false, names),
        };
        if self.absolute {
            return rooted && matches_from(&self.parts, names);
        }
        if self.parts.is_empty() {
            return names.is_empty();
        }
        (0..=names.len()).any(|start| begins(&self.parts, &names[start..]))
    }

    /// Whether a path below this one can match.
    fn may_match_below(&self, parts: &[&[u8]]) -> bool {
        if !self.absolute {
            return true;
        }
        let names = parts.strip_prefix(&[&b""[..]]).unwrap_or(parts);
        let fixed = self.parts.iter().position(|part| *part == Part::AnyDepth).unwrap_or(self.parts.len());
        let common = fixed.min(names.len());
        self.parts[..common].iter().zip(names).all(|(part, name)| part.matches(name))
    }
}

/// An absolute pattern of no component is the root itself, which nothing but the root matches.
fn matches_from(parts: &[Part], names: &[&[u8]]) -> bool {
    if parts.is_empty() { names.is_empty() } else { begins(parts, names) }
}

/// Whether `names` begins with what `parts` describe.
fn begins(parts: &[Part], names: &[&[u8]]) -> bool {
    // `from` are the numbers of names that the parts so far can stand for, as a set of flags: no pattern makes
    // this exponential.
    let mut from = vec![false; names.len() + 1];
    from[0] = true;
    let mut any = false;
    for part in parts {
        let mut to = vec![false; names.len() + 1];
        match part {
            Part::AnyDepth => {
                any = true;
                if let Some(first) = from.iter().position(|reached| *reached) {
                    to[first..].fill(true);
                }
            }
            part => {
                for at in 0..names.len() {
                    to[at + 1] = from[at] && part.matches(names[at]);
                }
            }
        }
        from = to;
    }
    // "**" alone stands for at least one component, as a pattern of no component matches nothing.
    let only_depth = any && parts.iter().all(|part| *part == Part::AnyDepth);
    from.iter().skip(usize::from(only_depth)).any(|reached| *reached)
}

impl Part {
    fn matches(&self, name: &[u8]) -> bool {
        match self {
            Part::AnyDepth => true,
            Part::Name(wanted) => **wanted == *name,
            Part::Glob(tokens) => glob(tokens, name),
        }
    }
}

/// Whether the tokens describe the whole name.
fn glob(tokens: &[Token], name: &[u8]) -> bool {
    let symbols: Vec<Symbol> = symbols(name).collect();
    // Greedy with one point to come back to: the last `*` decides, the ones before it never need to.
    let (mut token, mut at) = (0, 0);
    let mut back = None;
    while at < symbols.len() {
        match tokens.get(token) {
            Some(Token::Any) => {
                back = Some((token + 1, at));
                token += 1;
                continue;
            }
            Some(one) if one.matches(symbols[at]) => {
                token += 1;
                at += 1;
                continue;
            }
            _ => (),
        }
        let Some((next, from)) = back else { return false };
        back = Some((next, from + 1));
        (token, at) = (next, from + 1);
    }
    tokens[token..].iter().all(|token| *token == Token::Any)
}

impl Token {
    fn matches(&self, symbol: Symbol) -> bool {
        match self {
            Token::Any | Token::One => true,
            Token::Char(c) => *c == symbol,
            Token::Class { inverted, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&symbol)) != *inverted
            }
        }
    }
}

/// The tokens of one component; nothing if it is malformed
/// (<https://pkg.go.dev/path/filepath#Match>).
fn tokens(name: &[u8]) -> Option<Box<[Token]>> {
    let mut rest = symbols(name).peekable();
    let mut tokens = Vec::new();
    while let Some(symbol) = rest.next() {
        tokens.push(match symbol {
            '*' => Token::Any,
            '?' => Token::One,
            '\\' => Token::Char(rest.next()?),
            '[' => {
                let inverted = rest.next_if_eq(&'^').is_some();
                let mut ranges = Vec::new();
                loop {
                    if !ranges.is_empty() && rest.next_if_eq(&']').is_some() {
                        break;
                    }
                    let low = bound(&mut rest)?;
                    let high = if rest.next_if_eq(&'-').is_some() { bound(&mut rest)? } else { low };
                    ranges.push((low, high));
                }
                Token::Class { inverted, ranges: ranges.into() }
            }
            symbol => Token::Char(symbol),
        });
    }
    Some(tokens.into())
}

/// One end of a range.
fn bound(rest: &mut impl Iterator<Item = Symbol>) -> Option<Symbol> {
    match rest.next()? {
        '-' | ']' => None,
        '\\' => rest.next(),
        symbol => Some(symbol),
    }
}

fn symbols(text: &[u8]) -> impl Iterator<Item = Symbol> {
    text.utf8_chunks().flat_map(|chunk| {
        let invalid = chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER);
        chunk.valid().chars().chain(invalid)
    })
}

/// Lower case, as far as the text is text.
fn fold(text: &[u8]) -> Vec<u8> {
    let mut folded = Vec::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        folded.extend_from_slice(chunk.valid().to_lowercase().as_bytes());
        folded.extend_from_slice(chunk.invalid());
    }
    folded
}

/// The components; that before the first slash of an absolute path is empty.
fn split(path: &[u8]) -> Vec<&[u8]> {
    path.split(|b| *b == b'/').collect()
}

/// The shortest path that means the same by its text alone: no empty components, no `.`, no `..` that can
/// be taken back; `.` if nothing is left.
pub(crate) fn clean(path: &[u8]) -> Vec<u8> {
    let absolute = path.starts_with(b"/");
    let mut kept: Vec<&[u8]> = Vec::new();
    for part in split(path) {
        match part {
            b"" | b"." => (),
            b".." => match kept.last() {
                Some(last) if *last != b".." => drop(kept.pop()),
                _ if absolute => (),
                _ => kept.push(part),
            },
            part => kept.push(part),
        }
    }
    let mut clean = if absolute { b"/".to_vec() } else { Vec::new() };
    clean.extend_from_slice(&kept.join(&b'/'));
    if clean.is_empty() { b".".to_vec() } else { clean }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(include: &[&str], exclude: &[&str], ignore_case: bool) -> Select {
        let own = |patterns: &[&str]| patterns.iter().map(ToString::to_string).collect();
        let selection =
            Selection { include: own(include), exclude: own(exclude), ignore_case, ..Selection::default() };
        Select::new(&selection).unwrap()
    }

    /// Pairs of pattern and path, judged by restic 0.19.1's `filter.Match`.
    #[test]
    fn a_pattern_matches_what_restic_says_it_matches() {
        let table = [
            ("*.go", "/foo/bar/test.go", true),
            ("*.c", "/foo/bar/test.go", false),
            ("*", "/foo/bar/test.go", true),
            ("foo*", "/foo/bar/test.go", true),
            ("bar*", "/foo/bar/test.go", true),
            ("/bar*", "/foo/bar/test.go", false),
            ("bar/*", "/foo/bar/test.go", true),
            ("baz/*", "/foo/bar/test.go", false),
            ("bar/test.go", "/foo/bar/test.go", true),
            ("bar/*.go", "/foo/bar/test.go", true),
            ("ba*/*.go", "/foo/bar/test.go", true),
            ("bb*/*.go", "/foo/bar/test.go", false),
            ("test.*", "/foo/bar/test.go", true),
            ("tesT.*", "/foo/bar/test.go", false),
            ("bar/*", "/foo/bar/baz", true),
            ("bar", "/foo/bar", true),
            ("/foo/bar", "/foo/bar", true),
            ("/foo/bar/", "/foo/bar", true),
            ("/foo/bar", "/foo/baz", false),
            ("/foo/bar", "/foo/bar/baz", true),
            ("/foo/bar/baz", "/foo/bar", false),
            ("/foo/**/baz", "/foo/bar/baz", true),
            ("/foo/**/baz", "/foo/baz", true),
            ("/foo/**/baz", "/foo/a/b/c/baz/x", true),
            ("/foo/**/baz", "/bar/a/baz", false),
            ("**/baz", "/foo/bar/baz", true),
            ("foo/**", "/foo/bar", true),
            ("foo/**", "/foo", true),
            ("foo/**/bar/**/x", "/a/foo/1/bar/2/3/x", true),
            ("**", "/a", true),
            ("/**", "/a", true),
            ("/*/test.*", "/foo/test.go", true),
            ("/*/*/bar/test.*", "/foo/bar/test.go", false),
            ("/*/*/bar/test.*", "/foo/bar/bar/test.go", true),
            ("/*/bar/test.*", "/foo/bar/test.go", true),
            ("[a-c]x", "/bx", true),
            ("[^a-c]x", "/bx", false),
            ("[^a-c]x", "/dx", true),
            ("a\\*", "/a*", true),
            ("a\\*", "/ab", false),
            ("[\\]]", "/]", true),
            ("?", "/é", true),
            ("??", "/é", false),
            ("a*b*c", "/a-b-b-c", true),
            ("a*b*c", "/a-b-b-d", false),
            ("./foo//bar/../baz", "/x/foo/baz", true),
            ("/", "/anything", true),
        ];
        for (pattern, path, expected) in table {
            let chosen = !select(&[], &[pattern], false).file(path.as_bytes());
            assert_eq!(chosen, expected, "{pattern} on {path}");
        }
        assert!(!select(&[], &["?"], false).file(b"/\xff"));
    }

    #[test]
    fn a_negation_takes_back_what_was_excluded_before_it_but_not_below_an_excluded_directory() {
        let select = select(&[], &["/a/*", "!/a/keep", "*.tmp"], false);
        assert_eq!(select.directory(b"/a"), Directory::Included);
        assert_eq!(select.directory(b"/a/b"), Directory::Excluded);
        assert_eq!(select.directory(b"/a/keep"), Directory::Included);
        assert!(select.file(b"/a/keep/x") && !select.file(b"/a/keep/x.tmp"));
        assert!(select.object(b"/a/keep/x") && !select.object(b"/a/other/x"));
        let deep = super::tests::select(&[], &["/a", "!/a/b/c"], false);
        assert!(deep.file(b"/a/b/c"), "by its own path alone it would be taken back");
        assert!(!deep.object(b"/a/b/c"), "but the walk does not get there");
    }

    #[test]
    fn includes_leave_the_directories_on_the_way() {
        let select = select(&["/a/b/*.txt", "/x/**/y"], &[], false);
        assert_eq!(select.directory(b"/a"), Directory::Passage);
        assert_eq!(select.directory(b"/a/b"), Directory::Passage);
        assert_eq!(select.directory(b"/a/c"), Directory::Excluded);
        assert_eq!(select.directory(b"/x/1/2"), Directory::Passage);
        assert_eq!(select.directory(b"/x/1/y"), Directory::Included);
        assert!(select.file(b"/a/b/1.txt") && !select.file(b"/a/b/1.bin") && select.file(b"/x/1/y/deep"));
    }

    #[test]
    fn case_is_ignored_on_request() {
        let table =
            [("*.JPG", "/a/b.jpg", true), ("É*", "/éa", true), ("/A/B", "/a/b/C", true), ("x", "/Y", false)];
        for (pattern, path, expected) in table {
            assert_eq!(!select(&[], &[pattern], true).file(path.as_bytes()), expected, "{pattern} on {path}");
        }
    }

    #[test]
    fn a_malformed_pattern_is_refused_by_name() {
        for bad in ["[", "[]", "a[", "[a", "[a-", "[a-]", "[-a]", "x/[/y", "a\\", "[\\"] {
            let selection = Selection { exclude: vec![bad.into()], ..Selection::default() };
            let error = Select::new(&selection).expect_err(bad);
            assert!(matches!(&error, Error::Invalid(text) if text.contains(bad)), "{error}");
        }
    }

    #[test]
    fn size_and_time_select_files() {
        let second = |s| Timestamp::from_second(s).unwrap();
        let selection =
            Selection { max_size: Some(10), modified_since: Some(second(100)), ..Selection::default() };
        let select = Select::new(&selection).unwrap();
        assert!(select.metadata(10, Some(second(100))) && select.metadata(0, None));
        assert!(!select.metadata(11, Some(second(100))) && !select.metadata(10, Some(second(99))));
    }

    #[test]
    fn clean_is_go_s_clean() {
        let table = [
            ("", "."),
            ("/", "/"),
            ("a//b/", "a/b"),
            ("/../a", "/a"),
            ("../a/..", ".."),
            ("a/../..", ".."),
            ("/a/./b/../c", "/a/c"),
            ("./", "."),
        ];
        for (path, expected) in table {
            assert_eq!(clean(path.as_bytes()), expected.as_bytes(), "{path}");
        }
    }
}
