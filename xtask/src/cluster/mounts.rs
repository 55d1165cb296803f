//! Mounts below the folder of a test cluster: shared ones for volumes, and what is left of any at its end.

use super::layout::Layout;
use crate::process::output;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Makes the kubelet's folder, and one for tests, shared mounts, or no pod could mount anything for another.
///
/// Nothing outside of the two is changed: the root may be a private mount.
pub fn share(layout: &Layout) -> Result<()> {
    for name in ["kubelet", "shared"] {
        let folder = layout.path(name);
        fs::create_dir_all(&folder)?;
        if !below(&folder)?.contains(&folder) {
            output(Command::new("mount").arg("--bind").arg(&folder).arg(&folder))?;
        }
        output(Command::new("mount").arg("--make-rshared").arg(&folder))?;
    }
    Ok(())
}

/// Unmounts everything below the folder, also what a dead FUSE client holds.
pub fn remove(folder: &Path) -> Result<()> {
    for _ in 0..5 {
        let found = below(folder)?;
        if found.is_empty() {
            return Ok(());
        }
        for mount in found.iter().rev() {
            let ordinary = output(Command::new("umount").arg(mount));
            if ordinary.is_err() {
                // It may have gone with the one before it: what counts is what is left.
                let _ = output(Command::new("umount").arg("--lazy").arg(mount));
            }
        }
    }
    let left: Vec<String> = below(folder)?.iter().map(|mount| mount.display().to_string()).collect();
    if left.is_empty() { Ok(()) } else { bail!("these mounts cannot be removed: {}", left.join(" ")) }
}

/// The mounts at and below the folder, in the order in which they were made.
pub fn below(folder: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mounts").context("cannot list the mounts of this machine")?;
    let mounts = table.lines().filter_map(|line| line.split(' ').nth(1)).map(unescape);
    Ok(mounts.map(PathBuf::from).filter(|mount| mount.starts_with(folder)).collect())
}

/// Blanks, tabs, newlines and backslashes stand there in octal; see fstab(5).
fn unescape(text: &str) -> String {
    let codes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    codes.iter().fold(text.to_owned(), |text, (code, character)| text.replace(code, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_whole_names() {
        let root = below(Path::new("/")).expect("the table can be read");
        assert!(root.contains(&PathBuf::from("/")) && root.contains(&PathBuf::from("/proc")), "{root:?}");
        let proc = below(Path::new("/proc")).expect("the table can be read");
        assert!(proc.contains(&PathBuf::from("/proc")) && !proc.contains(&PathBuf::from("/")), "{proc:?}");
        assert_eq!(below(Path::new("/pro")).expect("the table can be read"), Vec::<PathBuf>::new());
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
    }
}
