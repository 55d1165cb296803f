//! Compares a restored tree with its source, byte by byte: a fast restore of the wrong bytes is worth nothing.

use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

/// Fails unless `restored` holds exactly the tree of `source`, at any depth of single directories
/// (a tool may restore below the source's full path).
pub fn same(source: &Path, restored: &Path) -> Result<()> {
    let wanted = names(source)?;
    let mut place = restored.to_owned();
    loop {
        let found = names(&place)?;
        if found == wanted {
            return same_below(source, &place);
        }
        let Some(only) = found.first().filter(|_| found.len() == 1) else {
            bail!("{} does not hold the entries of {}", place.display(), source.display());
        };
        place.push(only);
    }
}

fn same_below(a: &Path, b: &Path) -> Result<()> {
    let mut open: Vec<(PathBuf, PathBuf)> = vec![(a.to_owned(), b.to_owned())];
    while let Some((a, b)) = open.pop() {
        if a.is_dir() && b.is_dir() {
            let inside = names(&a)?;
            if inside != names(&b)? {
                bail!("{} and {} hold different entries", a.display(), b.display());
            }
            open.extend(inside.iter().map(|name| (a.join(name), b.join(name))));
        } else if !same_bytes(&a, &b)? {
            bail!("{} and {} differ", a.display(), b.display());
        }
    }
    Ok(())
}

fn names(folder: &Path) -> Result<BTreeSet<OsString>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    Ok(entries.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<_>>()?)
}

fn same_bytes(a: &Path, b: &Path) -> Result<bool> {
    let (fa, fb) = (File::open(a)?, File::open(b)?);
    let length = fa.metadata()?.len();
    if length != fb.metadata()?.len() {
        return Ok(false);
    }
    let (mut a, mut b) = (BufReader::new(fa), BufReader::new(fb));
    let (mut x, mut y) = (vec![0; 128 * 1024], vec![0; 128 * 1024]);
    let mut left = length;
    while left > 0 {
        let part = left.min(x.len() as u64) as usize;
        a.read_exact(&mut x[..part])?;
        b.read_exact(&mut y[..part])?;
        if x[..part] != y[..part] {
            return Ok(false);
        }
        left -= part as u64;
    }
    Ok(true)
}
