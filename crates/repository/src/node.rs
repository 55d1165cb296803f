//! Entries of directories, read and written byte for byte as restic does, because a directory's name in the
//! repository is the hash of that text
//! (<https://restic.readthedocs.io/en/stable/100_references.html#trees-and-data>).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::json::{self, JsonResult, Scanner};
use crate::time::Time;
use crate::{Id, quote};

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum NodeKind {
    /// A regular file.
    #[default]
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A block device.
    Device,
    /// A character device.
    CharDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// Something that the operating system has no word for.
    Irregular,
    /// A word that this program does not know; it is kept in [`Node::unknown`].
    Unknown,
}

impl NodeKind {
    const WORDS: [(NodeKind, &'static str); 8] = [
        (NodeKind::File, "file"),
        (NodeKind::Dir, "dir"),
        (NodeKind::Symlink, "symlink"),
        (NodeKind::Device, "dev"),
        (NodeKind::CharDevice, "chardev"),
        (NodeKind::Fifo, "fifo"),
        (NodeKind::Socket, "socket"),
        (NodeKind::Irregular, "irregular"),
    ];

    /// The word in the format; none for [`NodeKind::Unknown`].
    pub fn as_str(self) -> Option<&'static str> {
        Self::WORDS.iter().find(|(kind, _)| *kind == self).map(|(_, word)| *word)
    }

    /// The kind that the file type in a mode of [`mode`] says.
    pub fn of_mode(bits: u32) -> NodeKind {
        match bits & mode::TYPE {
            0 => NodeKind::File,
            mode::DIR => NodeKind::Dir,
            mode::SYMLINK => NodeKind::Symlink,
            mode::DEVICE => NodeKind::Device,
            mode::FIFO => NodeKind::Fifo,
            mode::SOCKET => NodeKind::Socket,
            bits if bits == mode::DEVICE | mode::CHAR_DEVICE => NodeKind::CharDevice,
            _ => NodeKind::Irregular,
        }
    }
}

/// Bits of Go's `FileMode`, which a node's mode is made of (<https://pkg.go.dev/io/fs#FileMode>); the lowest
/// nine are the permissions of Unix.
pub mod mode {
    /// Permissions of owner, group and others.
    pub const PERMISSIONS: u32 = 0o777;
    /// A directory.
    pub const DIR: u32 = 1 << 31;
    /// A symbolic link.
    pub const SYMLINK: u32 = 1 << 27;
    /// A device.
    pub const DEVICE: u32 = 1 << 26;
    /// A named pipe.
    pub const FIFO: u32 = 1 << 25;
    /// A socket.
    pub const SOCKET: u32 = 1 << 24;
    /// Set user id.
    pub const SET_UID: u32 = 1 << 23;
    /// Set group id.
    pub const SET_GID: u32 = 1 << 22;
    /// With [`DEVICE`]: a character device.
    pub const CHAR_DEVICE: u32 = 1 << 21;
    /// Sticky.
    pub const STICKY: u32 = 1 << 20;
    /// None of the other types.
    pub const IRREGULAR: u32 = 1 << 19;
    /// All bits that say the type.
    pub const TYPE: u32 = DIR | SYMLINK | DEVICE | FIFO | SOCKET | CHAR_DEVICE | IRREGULAR;

    /// From `st_mode` of Unix.
    pub fn from_unix(st_mode: u32) -> u32 {
        let kind = match st_mode & 0o170_000 {
            0o040_000 => DIR,
            0o120_000 => SYMLINK,
            0o060_000 => DEVICE,
            0o020_000 => DEVICE | CHAR_DEVICE,
            0o010_000 => FIFO,
            0o140_000 => SOCKET,
            0o100_000 => 0,
            _ => IRREGULAR,
        };
        let special = [(0o4000, SET_UID), (0o2000, SET_GID), (0o1000, STICKY)];
        let special = special.iter().filter(|(bit, _)| st_mode & bit != 0).fold(0, |bits, (_, go)| bits | go);
        kind | special | st_mode & PERMISSIONS
    }

    /// Permissions and set-id and sticky bits as `chmod` takes them.
    pub fn to_unix_permissions(bits: u32) -> u32 {
        let special = [(SET_UID, 0o4000), (SET_GID, 0o2000), (STICKY, 0o1000)];
        special
            .iter()
            .filter(|(bit, _)| bits & bit != 0)
            .fold(bits & PERMISSIONS, |unix, (_, bit)| unix | bit)
    }
}

/// An extended attribute.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Xattr {
    /// The name, with its name space: `user.x`.
    pub name: Box<str>,
    /// The value; restic writes `null` for one that it could not tell from none.
    pub value: Option<Box<[u8]>>,
}

/// An entry of a directory. Names and link targets are the file system's bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Node {
    /// The name within the directory.
    pub name: Box<[u8]>,
    /// What it is.
    pub kind: NodeKind,
    /// Bits of [`mode`].
    pub mode: u32,
    /// When the content changed last.
    pub mtime: Time,
    /// When it was read last; restic writes `mtime` unless asked for it.
    pub atime: Time,
    /// When the inode changed last; for sources without inodes, `mtime`.
    pub ctime: Time,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The owner's name, empty if it has none.
    pub user: Box<str>,
    /// The group's name, empty if it has none.
    pub group: Box<str>,
    /// Inode number, 0 if the source has no stable one.
    pub inode: u64,
    /// The file system's device number, 0 if there is none.
    pub device_id: u64,
    /// Length in bytes, of files only.
    pub size: u64,
    /// Hard links, of all but directories.
    pub links: u64,
    /// Where a symbolic link points.
    pub link_target: Box<[u8]>,
    /// Extended attributes, in the order of listing.
    pub xattrs: Vec<Xattr>,
    /// A JSON object that this program keeps and does not interpret: attributes of Windows.
    pub generic_attributes: Option<Box<[u8]>>,
    /// Device number of a device.
    pub device: u64,
    /// The blobs whose concatenation is a file; none for everything else.
    pub content: Option<Box<[Id]>>,
    /// The directory's tree.
    pub subtree: Option<Id>,
    /// What restic met when it read the file.
    pub error: Box<str>,
    /// Members that this program does not know, as JSON text separated by commas; written again at the end.
    pub unknown: Option<Box<[u8]>>,
}

impl Node {
    /// Why a name cannot be that of an entry below a directory, or nothing: the guard of every restore.
    pub fn check_name(name: &[u8]) -> Result<(), &'static str> {
        match name {
            b"" => Err("it is empty"),
            b"." | b".." => Err("it names another directory"),
            _ if name.contains(&b'/') => Err("it contains a slash"),
            _ if name.contains(&0) => Err("it contains a zero byte"),
            _ => Ok(()),
        }
    }

    /// Appends the node as restic writes it.
    pub fn write(&self, out: &mut Vec<u8>) {
        let number = |out: &mut Vec<u8>, key: &str, value: u64| {
            if value != 0 {
                out.extend_from_slice(key.as_bytes());
                json::write_u64(value, out);
            }
        };
        let text = |out: &mut Vec<u8>, key: &str, value: &[u8]| {
            if !value.is_empty() {
                out.extend_from_slice(key.as_bytes());
                json::write_string(value, out);
            }
        };
        let time = |out: &mut Vec<u8>, key: &str, value: &Time| {
            out.extend_from_slice(key.as_bytes());
            value.write(out);
            out.push(b'"');
        };
        out.extend_from_slice(b"{\"name\":\"");
        quote::write_name(&self.name, out);
        out.push(b'"');
        if let Some(word) = self.kind.as_str() {
            out.extend_from_slice(b",\"type\":\"");
            out.extend_from_slice(word.as_bytes());
            out.push(b'"');
        }
        number(out, ",\"mode\":", u64::from(self.mode));
        let start = out.len() + ",\"mtime\":\"".len();
        time(out, ",\"mtime\":\"", &self.mtime);
        let mtime = start..out.len();
        for (key, value) in [(",\"atime\":\"", &self.atime), (",\"ctime\":\"", &self.ctime)] {
            // Two of the three are the same as a rule, all three for a bucket.
            if *value == self.mtime {
                out.extend_from_slice(key.as_bytes());
                out.extend_from_within(mtime.clone());
            } else {
                time(out, key, value);
            }
        }
        out.extend_from_slice(b",\"uid\":");
        json::write_u64(u64::from(self.uid), out);
        out.extend_from_slice(b",\"gid\":");
        json::write_u64(u64::from(self.gid), out);
        text(out, ",\"user\":", self.user.as_bytes());
        text(out, ",\"group\":", self.group.as_bytes());
        number(out, ",\"inode\":", self.inode);
        number(out, ",\"device_id\":", self.device_id);
        number(out, ",\"size\":", self.size);
        number(out, ",\"links\":", self.links);
        text(out, ",\"linktarget\":", &self.link_target);
        if std::str::from_utf8(&self.link_target).is_err() {
            out.extend_from_slice(b",\"linktarget_raw\":\"");
            out.extend_from_slice(BASE64.encode(&self.link_target).as_bytes());
            out.push(b'"');
        }
        self.write_xattrs(out);
        if let Some(attributes) = &self.generic_attributes {
            out.extend_from_slice(b",\"generic_attributes\":");
            out.extend_from_slice(attributes);
        }
        number(out, ",\"device\":", self.device);
        match &self.content {
            None => out.extend_from_slice(b",\"content\":null"),
            Some(ids) => {
                out.extend_from_slice(b",\"content\":[");
                for (i, id) in ids.iter().enumerate() {
                    out.extend_from_slice(if i == 0 { b"\"" } else { b",\"" });
                    out.extend_from_slice(&id.hex());
                    out.push(b'"');
                }
                out.push(b']');
            }
        }
        if let Some(id) = &self.subtree {
            out.extend_from_slice(b",\"subtree\":\"");
            out.extend_from_slice(&id.hex());
            out.push(b'"');
        }
        text(out, ",\"error\":", self.error.as_bytes());
        if let Some(members) = &self.unknown {
            out.push(b',');
            out.extend_from_slice(members);
        }
        out.push(b'}');
    }

    fn write_xattrs(&self, out: &mut Vec<u8>) {
        if self.xattrs.is_empty() {
            return;
        }
        out.extend_from_slice(b",\"extended_attributes\":[");
        for (i, xattr) in self.xattrs.iter().enumerate() {
            out.extend_from_slice(if i == 0 { b"{\"name\":" } else { b",{\"name\":" });
            json::write_string(xattr.name.as_bytes(), out);
            out.extend_from_slice(b",\"value\":");
            match &xattr.value {
                None => out.extend_from_slice(b"null"),
                Some(value) => {
                    out.push(b'"');
                    out.extend_from_slice(BASE64.encode(value).as_bytes());
                    out.push(b'"');
                }
            }
            out.push(b'}');
        }
        out.push(b']');
    }

    /// [`read`](Self::read), if the node is written exactly as restic and we write it, and has nothing that is
    /// rare: most nodes by far.
    fn read_as_written(scanner: &mut Scanner<'_>) -> Option<Node> {
        let took = |scanner: &mut Scanner<'_>, text: &[u8]| scanner.take_literally(text).then_some(());
        let number = |scanner: &mut Scanner<'_>, key: &[u8]| {
            if scanner.take_literally(key) { scanner.u64().ok() } else { Some(0) }
        };
        let text = |scanner: &mut Scanner<'_>, key: &[u8]| match scanner.take_literally(key) {
            true => Some(std::str::from_utf8(scanner.rest_of_plain_string()?).ok()?.into()),
            false => Some("".into()),
        };
        let mut node = Node::default();
        took(scanner, b"{\"name\":\"")?;
        node.name = scanner.rest_of_plain_string()?.into();
        took(scanner, b",\"type\":\"")?;
        let word = scanner.rest_of_plain_string()?;
        node.kind = NodeKind::WORDS.iter().find(|(_, known)| known.as_bytes() == word)?.0;
        node.mode = number(scanner, b",\"mode\":")?.try_into().ok()?;
        took(scanner, b",\"mtime\":\"")?;
        let mtime = scanner.rest_of_plain_string()?;
        node.mtime = Time::parse(mtime).ok()?;
        took(scanner, b",\"atime\":\"")?;
        let atime = scanner.rest_of_plain_string()?;
        node.atime = if atime == mtime { node.mtime } else { Time::parse(atime).ok()? };
        took(scanner, b",\"ctime\":\"")?;
        let ctime = scanner.rest_of_plain_string()?;
        node.ctime = if ctime == mtime { node.mtime } else { Time::parse(ctime).ok()? };
        took(scanner, b",\"uid\":")?;
        node.uid = scanner.u32().ok()?;
        took(scanner, b",\"gid\":")?;
        node.gid = scanner.u32().ok()?;
        node.user = text(scanner, b",\"user\":\"")?;
        node.group = text(scanner, b",\"group\":\"")?;
        node.inode = number(scanner, b",\"inode\":")?;
        node.device_id = number(scanner, b",\"device_id\":")?;
        node.size = number(scanner, b",\"size\":")?;
        node.links = number(scanner, b",\"links\":")?;
        if !scanner.take_literally(b",\"content\":null") {
            took(scanner, b",\"content\":[")?;
            let mut ids = Vec::new();
            if !scanner.take_literally(b"]") {
                loop {
                    took(scanner, b"\"")?;
                    ids.push(scanner.rest_of_id()?);
                    if !scanner.take_literally(b",") {
                        took(scanner, b"]")?;
                        break;
                    }
                }
            }
            node.content = Some(ids.into());
        }
        if scanner.take_literally(b",\"subtree\":\"") {
            node.subtree = Some(scanner.rest_of_id()?);
        }
        took(scanner, b"}")?;
        Some(node)
    }

    /// Reads one node.
    pub(crate) fn read(scanner: &mut Scanner<'_>) -> JsonResult<Node> {
        let start = scanner.clone();
        if let Some(node) = Node::read_as_written(scanner) {
            return Ok(node);
        }
        *scanner = start;
        let mut node = Node::default();
        let mut unknown = Vec::new();
        let mut raw_target = None;
        let mut before = scanner.position();
        let mut typed = false;
        scanner.object(|scanner, key| {
            if scanner.take_null() {
                // As in Go, null leaves a member as it is.
                before = scanner.position();
                return Ok(());
            }
            match key {
                b"name" => match quote::unquote(&scanner.string()?) {
                    Some(name) => node.name = name.into(),
                    None => return scanner.error("a quoted name"),
                },
                // Of two, it would depend on the reader which one counts.
                b"type" if std::mem::replace(&mut typed, true) => return scanner.error("one type"),
                b"type" => {
                    let word = scanner.string()?;
                    let known = NodeKind::WORDS.iter().find(|(_, known)| known.as_bytes() == &word[..]);
                    node.kind = known.map_or(NodeKind::Unknown, |(kind, _)| *kind);
                    if known.is_none() {
                        keep(&mut unknown, scanner.since(before));
                    }
                }
                b"mode" => node.mode = scanner.u32()?,
                b"mtime" => node.mtime = time(scanner)?,
                b"atime" => node.atime = time(scanner)?,
                b"ctime" => node.ctime = time(scanner)?,
                b"uid" => node.uid = scanner.u32()?,
                b"gid" => node.gid = scanner.u32()?,
                b"user" => node.user = text(scanner)?,
                b"group" => node.group = text(scanner)?,
                b"inode" => node.inode = scanner.u64()?,
                b"device_id" => node.device_id = scanner.u64()?,
                b"size" => node.size = scanner.u64()?,
                b"links" => node.links = scanner.u64()?,
                b"linktarget" => node.link_target = scanner.string()?.into_owned().into(),
                b"linktarget_raw" => raw_target = Some(base64(scanner)?),
                b"extended_attributes" => node.xattrs = xattrs(scanner)?,
                b"generic_attributes" => node.generic_attributes = Some(scanner.skip()?.into()),
                b"device" => node.device = scanner.u64()?,
                b"content" => {
                    let mut ids = Vec::new();
                    scanner.array(|scanner| {
                        ids.push(scanner.id()?);
                        Ok(())
                    })?;
                    node.content = Some(ids.into());
                }
                b"subtree" => node.subtree = Some(scanner.id()?),
                b"error" => node.error = text(scanner)?,
                _ => {
                    scanner.skip()?;
                    keep(&mut unknown, scanner.since(before));
                }
            }
            before = scanner.position();
            Ok(())
        })?;
        if let Some(target) = raw_target.filter(|target| !target.is_empty()) {
            node.link_target = target;
        }
        node.unknown = (!unknown.is_empty()).then(|| unknown.into());
        Ok(node)
    }
}

/// Keeps a member's text, which begins behind the brace or comma before its key.
pub(crate) fn keep(members: &mut Vec<u8>, text: &[u8]) {
    let start = text.iter().position(|byte| *byte == b'"').unwrap_or(0);
    if !members.is_empty() {
        members.push(b',');
    }
    members.extend_from_slice(&text[start..]);
}

fn time(scanner: &mut Scanner<'_>) -> JsonResult<Time> {
    let text = scanner.string()?;
    Time::parse(&text).or_else(|_| scanner.error("a time"))
}

fn text(scanner: &mut Scanner<'_>) -> JsonResult<Box<str>> {
    Ok(String::from_utf8_lossy(&scanner.string()?).into())
}

fn base64(scanner: &mut Scanner<'_>) -> JsonResult<Box<[u8]>> {
    let text = scanner.string()?;
    BASE64.decode(&*text).map(Into::into).or_else(|_| scanner.error("base64"))
}

fn xattrs(scanner: &mut Scanner<'_>) -> JsonResult<Vec<Xattr>> {
    let mut xattrs = Vec::new();
    scanner.array(|scanner| {
        let mut xattr = Xattr { name: "".into(), value: None };
        scanner.object(|scanner, key| {
            match key {
                _ if scanner.take_null() => (),
                b"name" => xattr.name = text(scanner)?,
                b"value" => xattr.value = Some(base64(scanner)?),
                _ => drop(scanner.skip()?),
            }
            Ok(())
        })?;
        xattrs.push(xattr);
        Ok(())
    })?;
    Ok(xattrs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn write(node: &Node) -> String {
        let mut out = Vec::new();
        node.write(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn read(json: &str) -> JsonResult<Node> {
        let mut scanner = Scanner::new(json.as_bytes());
        let node = Node::read(&mut scanner)?;
        scanner.end()?;
        Ok(node)
    }

    /// A node that has every member, in restic's order.
    const FULL: &str = concat!(
        r#"{"name":"a\\n\u003c\\\\","type":"symlink","mode":134218239,"mtime":"2020-01-01T00:00:00.5Z","#,
        r#""atime":"2020-01-01T00:00:00+01:00","ctime":"0001-01-01T00:00:00Z","uid":1,"gid":0,"user":"\u003croot","#,
        r#""group":"g","inode":18446744073709551615,"device_id":2,"size":3,"links":4,"linktarget":"x\ufffd","#,
        r#""linktarget_raw":"eP8=","extended_attributes":[{"name":"user.a","value":"AP8="},"#,
        r#"{"name":"user.b","value":null},{"name":"user.c","value":""}],"#,
        r#""generic_attributes":{"windows.creation_time":"AAA="},"device":5,"#,
        r#""content":["e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"],"#,
        r#""subtree":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","error":"no \u0026 no"}"#
    );

    #[test]
    fn every_member_comes_back_in_its_place() {
        let node = read(FULL).unwrap();
        assert_eq!(&*node.name, b"a\n<\\");
        assert_eq!(&*node.link_target, b"x\xff");
        assert_eq!(node.xattrs[0].value.as_deref(), Some(&b"\0\xff"[..]));
        assert_eq!((node.xattrs[1].value.is_none(), node.xattrs[2].value.as_deref()), (true, Some(&b""[..])));
        assert_eq!(write(&node), FULL);
    }

    #[test]
    fn the_quick_reader_reads_what_is_common() {
        let mut node =
            Node { name: b"a file".as_slice().into(), user: "root".into(), size: 7, ..Node::default() };
        for content in [None, Some([].into()), Some([Id::of(b""), Id::of(b"x")].into())] {
            node.content = content;
            let json = write(&node);
            assert_eq!(Node::read_as_written(&mut Scanner::new(json.as_bytes())), Some(node.clone()));
        }
        assert_eq!(Node::read_as_written(&mut Scanner::new(FULL.as_bytes())), None);
    }

    #[test]
    fn an_empty_node_has_what_is_never_left_out() {
        let zero = "0001-01-01T00:00:00Z";
        let json = format!(
            r#"{{"name":"","type":"file","mtime":"{zero}","atime":"{zero}","ctime":"{zero}","uid":0,"gid":0,"content":null}}"#
        );
        assert_eq!(write(&Node::default()), json);
        assert_eq!(read(&json).unwrap(), Node::default());
        assert_eq!(read("{}").unwrap(), Node::default());
        let empty = Node { content: Some([].into()), ..Node::default() };
        assert_eq!(write(&empty), json.replace("null", "[]"));
        assert_eq!(read(&write(&empty)).unwrap(), empty);
    }

    #[test]
    fn any_order_white_space_and_null_are_read_and_unknown_members_are_kept() {
        let json = r#" { "uid" : 7 , "later":{"a":[1, "]"]},"user":null,"type":"whiteout","name":"x","content":null,"z":1.5 } "#;
        let node = read(json).unwrap();
        assert_eq!((node.uid, node.kind, &*node.user), (7, NodeKind::Unknown, ""));
        assert_eq!(text_of(&node), r#""later":{"a":[1, "]"]},"type":"whiteout","z":1.5"#);
        let again = read(&write(&node)).unwrap();
        assert_eq!(again, node);
    }

    fn text_of(node: &Node) -> &str {
        std::str::from_utf8(node.unknown.as_deref().unwrap()).unwrap()
    }

    #[test]
    fn what_is_no_node_is_an_error() {
        for end in 1..FULL.len() {
            assert!(read(&FULL[..end]).is_err(), "{end}");
        }
        for (from, to) in [
            ("\"uid\":1", "\"uid\":4294967296"),
            ("\"uid\":1", "\"uid\":\"1\""),
            ("\"size\":3", "\"size\":-3"),
            ("\"size\":3", "\"size\":18446744073709551616"),
            ("2020-01-01T00:00:00.5Z", "now"),
            ("eP8=", "eP8"),
            ("\\\\n", "\\\\q"),
            ("\\\\n", "\\q"),
            ("e3b0c442", "e3b0c44"),
            ("\"g\"", "\"g\u{1}\""),
            ("\"gid\"", "gid"),
        ] {
            let bad = FULL.replacen(from, to, 1);
            assert_ne!(bad, FULL);
            assert!(read(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_that_leave_the_directory_are_found_out() {
        for bad in [&b""[..], b".", b"..", b"/", b"a/b", b"../x", b"a\0b"] {
            assert!(Node::check_name(bad).is_err(), "{bad:?}");
        }
        for good in [&b"a"[..], b"...", b" ", b"\\", b"\xff", b".a", b"-"] {
            assert_eq!(Node::check_name(good), Ok(()));
        }
    }

    #[test]
    fn modes_of_unix_and_go() {
        for (unix, go, kind) in [
            (0o100_644, 420, NodeKind::File),
            (0o040_755, 2_147_484_141, NodeKind::Dir),
            (0o120_777, mode::SYMLINK | 0o777, NodeKind::Symlink),
            (0o060_660, 0o660 | 1 << 26, NodeKind::Device),
            (0o020_666, 0o666 | 1 << 26 | 1 << 21, NodeKind::CharDevice),
            (0o010_600, 0o600 | 1 << 25, NodeKind::Fifo),
            (0o140_600, 0o600 | 1 << 24, NodeKind::Socket),
            (0o107_777, 0o777 | 1 << 23 | 1 << 22 | 1 << 20, NodeKind::File),
            (0o150_000, 1 << 19, NodeKind::Irregular),
        ] {
            assert_eq!(mode::from_unix(unix), go);
            assert_eq!(NodeKind::of_mode(go), kind);
            assert_eq!(mode::to_unix_permissions(go), unix & 0o7777);
        }
    }

    proptest! {
        #[test]
        fn any_node_comes_back(
            name in prop_oneof![any::<Vec<u8>>(), "[ -~]{0,20}".prop_map(String::into_bytes)],
            target in prop_oneof![Just(Vec::new()), any::<Vec<u8>>()],
            user in prop_oneof!["[a-z]{0,9}", any::<String>()],
            xattrs in prop::collection::vec(any::<(String, Option<Vec<u8>>)>(), 0..2),
            numbers in any::<[u64; 5]>(), zeros in any::<[bool; 5]>(),
            content in any::<Option<Vec<[u8; 32]>>>(), subtree in any::<Option<[u8; 32]>>(), kind in 0usize..8,
        ) {
            let numbers: [u64; 5] = std::array::from_fn(|i| if zeros[i] { 0 } else { numbers[i] });
            let xattrs = xattrs.into_iter().map(|(name, value)| Xattr { name: name.into(), value: value.map(Into::into) });
            let node = Node {
                name: name.into(),
                kind: NodeKind::WORDS[kind].0,
                mode: numbers[0] as u32,
                mtime: Time::new((numbers[1] >> 29) as i64, (numbers[2] % 1_000_000_000) as u32),
                user: user.into(),
                inode: numbers[3],
                size: numbers[4],
                link_target: target.into(),
                xattrs: xattrs.collect(),
                subtree: subtree.map(Id::from_bytes),
                content: content.map(|ids| ids.into_iter().map(Id::from_bytes).collect()),
                ..Node::default()
            };
            let json = write(&node);
            prop_assert_eq!(&read(&json).unwrap(), &node);
            // White space keeps the quick reader away.
            prop_assert_eq!(&read(&json.replacen(':', " : ", 1)).unwrap(), &node);
            serde_json::from_str::<serde_json::Value>(&json).unwrap();
        }
    }
}
