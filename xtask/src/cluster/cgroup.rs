//! The cgroup that all pods of a test cluster live in, so that they can be found and ended together.

use super::layout::Layout;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

const ROOT: &str = "/sys/fs/cgroup";

/// Makes the cgroup in every hierarchy of this machine: one of version 2, or one per controller of version 1.
pub fn make(layout: &Layout) -> Result<()> {
    for hierarchy in hierarchies() {
        let own = hierarchy.join(layout.name());
        fs::create_dir_all(&own).with_context(|| format!("cannot make {}", own.display()))?;
        // Version 1: nothing runs in a cpuset without processors and memory.
        for name in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(value) = fs::read(hierarchy.join(name)) {
                fs::write(own.join(name), value)?;
            }
        }
        // Version 2: the kubelet wants these controllers; one that this machine lacks is its own complaint.
        for name in ["+cpuset", "+cpu", "+io", "+memory", "+hugetlb", "+pids"] {
            if hierarchy.join("cgroup.subtree_control").exists() {
                let _ = fs::write(hierarchy.join("cgroup.subtree_control"), name);
            }
        }
    }
    Ok(())
}

/// The processes of all pods.
pub fn processes(layout: &Layout) -> Vec<i32> {
    let mut found = Vec::new();
    for folder in folders(layout) {
        let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        // 0 stands for a process of another pid namespace.
        found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Removes it. The kernel needs a moment after the last process has ended.
pub fn remove(layout: &Layout) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let mut failure = None;
        for folder in folders(layout) {
            match fs::remove_dir(&folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => failure = Some((folder, error)),
                _ => {}
            }
        }
        match failure {
            None => return Ok(()),
            Some((folder, error)) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
            }
            Some(_) => sleep(Duration::from_millis(100)),
        }
    }
}

fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        // `cpu` may be a link to `cpu,cpuacct`.
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .filter(|path| path.join("tasks").exists())
        .collect();
    found.sort();
    found
}

/// Our folders in all hierarchies, the deepest first.
fn folders(layout: &Layout) -> Vec<PathBuf> {
    fn collect(folder: PathBuf, found: &mut Vec<PathBuf>) {
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            collect(entry.path(), found);
        }
        found.push(folder);
    }
    // Where both versions are mounted, runc uses the one of version 2 as well.
    let both = Path::new(ROOT).join("unified");
    let mut found = Vec::new();
    for hierarchy in hierarchies().into_iter().chain([both]) {
        let own = hierarchy.join(layout.name());
        if own.is_dir() {
            collect(own, &mut found);
        }
    }
    found
}
