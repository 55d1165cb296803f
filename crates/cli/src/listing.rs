//! How nodes and snapshots are shown, by every verb alike.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cistern_bucket::Key;
use cistern_engine::fidelity::{self, Description};
use cistern_repository::node::mode;
use cistern_repository::{Id, Node, NodeKind, Snapshot};
use comfy_table::{Table, presets};
use serde_json::{Value, json};

/// The first eight digits of an id, as restic shows it.
pub fn short(id: &Id) -> String {
    short_text(&id.to_string())
}

/// As [`short`], of an id that a report has as text.
pub fn short_text(id: &str) -> String {
    id.chars().take(8).collect()
}

/// A time as a person reads it, in the local zone.
pub fn local(time: &cistern_repository::Time) -> String {
    time.timestamp().to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Bytes of a name or path for a terminal: control characters are escaped.
pub fn shown(bytes: &[u8]) -> String {
    Key::from(bytes).to_string()
}

/// A table without a frame, under these heads; without any, it has no line of heads.
pub fn table<const N: usize>(heads: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if N > 0 {
        table.set_header(heads);
    }
    table
}

/// A table without a frame, as lines without white space around them.
pub fn columns(table: &Table) -> String {
    let line = |line: String| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned();
    table.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// `drwxr-xr-x` and the like.
pub fn mode_string(node: &Node) -> String {
    let kind = match node.kind {
        NodeKind::Dir => 'd',
        NodeKind::Symlink => 'l',
        NodeKind::Device => 'b',
        NodeKind::CharDevice => 'c',
        NodeKind::Fifo => 'p',
        NodeKind::Socket => 's',
        _ => '-',
    };
    let bits = mode::to_unix_permissions(node.mode);
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        text.push(if bits >> shift & 4 != 0 { 'r' } else { '-' });
        text.push(if bits >> shift & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits >> shift & 1 != 0, bits & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// One line for a node; `long` adds mode, owner, size and time.
pub fn node_line(path: &[u8], node: &Node, long: bool) -> String {
    let path = shown(path);
    if !long {
        return path;
    }
    let target = match node.kind {
        NodeKind::Symlink => format!(" -> {}", shown(&node.link_target)),
        _ => String::new(),
    };
    format!(
        "{} {:>5} {:>5} {:>12} {} {path}{target}",
        mode_string(node),
        node.uid,
        node.gid,
        node.size,
        local(&node.mtime)
    )
}

/// A node as restic's `ls --json` shows it, with the object's attributes if it stands for one.
pub fn node_json(path: &[u8], node: &Node) -> Value {
    let mut value = json!({
        "message_type": "node",
        "name": String::from_utf8_lossy(&node.name),
        "type": node.kind.as_str(),
        "path": String::from_utf8_lossy(path),
        "uid": node.uid,
        "gid": node.gid,
        "mode": node.mode,
        "permissions": mode_string(node),
        "mtime": node.mtime,
        "atime": node.atime,
        "ctime": node.ctime,
    });
    if node.kind == NodeKind::File {
        value["size"] = node.size.into();
    }
    if std::str::from_utf8(path).is_err() {
        value["path_base64"] = STANDARD.encode(path).into();
    }
    let object =
        node.xattrs.iter().find(|x| &*x.name == fidelity::ATTRIBUTE).and_then(|x| x.value.as_deref());
    if let Some(object) = object.and_then(|json| serde_json::from_slice::<Value>(json).ok()) {
        value["object"] = object;
    }
    value
}

/// The key of the object that a node stands for, below the directory that stands for its bucket.
pub fn key_of(path: &[u8], node: &Node) -> Option<Key> {
    if node.kind != NodeKind::File {
        return None;
    }
    let names: Vec<&[u8]> = path.split(|b| *b == b'/').skip(2).collect();
    let attribute = Description::of(node).ok().and_then(|d| d.key);
    (!names.is_empty()).then(|| fidelity::key(&names, attribute.as_ref()))
}

/// A key as JSON; `key_base64` holds its bytes where they are no UTF-8.
pub fn key_json(key: &Key, size: u64) -> Value {
    match key.as_str() {
        Some(text) => json!({"message_type": "key", "key": text, "size": size}),
        None => json!({
            "message_type": "key",
            "key": String::from_utf8_lossy(key.as_bytes()),
            "key_base64": STANDARD.encode(key.as_bytes()),
            "size": size,
        }),
    }
}

/// A snapshot as restic's `snapshots --json` shows it.
pub fn snapshot_json(id: &Id, snapshot: &Snapshot) -> Value {
    let mut value = serde_json::to_value(snapshot).unwrap_or(Value::Null);
    value["id"] = id.to_string().into();
    value["short_id"] = short(id).into();
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_shown_as_ls_shows_them() {
        let node = |kind, unix| Node { kind, mode: mode::from_unix(unix), ..Node::default() };
        assert_eq!(mode_string(&node(NodeKind::File, 0o100644)), "-rw-r--r--");
        assert_eq!(mode_string(&node(NodeKind::Dir, 0o041777)), "drwxrwxrwt");
        assert_eq!(mode_string(&node(NodeKind::File, 0o104644)), "-rwSr--r--");
    }
}
