//! Checks and prunes a repository of ten million blobs, and prints peak memory and time: `ten_million make DIRECTORY
//! [BLOBS]`, then `ten_million check|prune|index DIRECTORY [CACHE]`, each a process's worth of peak memory.
//!
//! Directories, index and snapshots are whole; packs of data are files of the right size without content, which no check
//! of the structure and no prune without packing anew reads. Of two snapshots the second has half of the data, so that
//! `prune` deletes the other half.
#![expect(clippy::print_stdout, reason = "the figures are what it is for")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cistern_bucket::{Bucket, Directory, Durability};
use cistern_repository::config::Config;
use cistern_repository::crypto::MasterKey;
use cistern_repository::file::{self, FileKind};
use cistern_repository::index::IndexFile;
use cistern_repository::key::KeyFile;
use cistern_repository::pack::{PackedBlob, Sealer};
use cistern_repository::{
    BlobKind, CheckOptions, Error, Id, Identity, KdfParams, LockKind, Node, NodeKind, Options, PruneOptions,
    Repository, Result, Snapshot, Time, TreeBuilder, Writer, check, node, plan_prune, prune,
};
use secrecy::SecretString;

/// Files in one directory.
const FILES: usize = 100;
/// Data blobs in one pack, and their stored bytes.
const IN_PACK: usize = 4000;
const LENGTH: u32 = 4096;

fn password() -> SecretString {
    "synthetic".into()
}

fn who() -> Identity {
    Identity { hostname: "host".into(), username: "user".into(), pid: std::process::id(), uid: 0, gid: 0 }
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [verb, place, rest @ ..] = arguments.as_slice() else {
        println!("usage: ten_million make|check|prune|index DIRECTORY [BLOBS or CACHE]");
        return Ok(());
    };
    let start = Instant::now();
    if verb == "make" {
        let blobs = rest.first().and_then(|count| count.parse().ok()).unwrap_or(10_000_000);
        make(Path::new(place), blobs).await?;
    } else {
        let cache = rest.first().map(PathBuf::from);
        let options = Options { cache, workers: 2, ..Options::default() };
        let bucket = Arc::new(Directory::with(place, Durability::None));
        let repo = Repository::open(bucket, &password(), options).await?;
        work(verb, &repo).await?;
    }
    println!("{verb}: {:.1} s, peak {} MiB", start.elapsed().as_secs_f64(), peak_memory());
    Ok(())
}

async fn work(verb: &str, repo: &Repository) -> Result<()> {
    match verb {
        "index" => drop(repo.index().await?),
        "check" => {
            let findings = check(repo, CheckOptions::default(), &|_| ()).await?;
            println!("{} findings", findings.len());
        }
        _ => {
            let lock = Arc::new(repo.lock(LockKind::Exclusive, &who(), Duration::ZERO).await?);
            if let Some((id, _)) = repo.snapshots().await?.first() {
                repo.remove_snapshot(id, &lock).await?;
            }
            let options = PruneOptions {
                max_unused: cistern_repository::MaxUnused::Unlimited,
                ..PruneOptions::default()
            };
            let plan = plan_prune(repo, &options, Some(&lock), &|_| ()).await?;
            println!("used {:?}, unused {:?}, delete {:?}", plan.used, plan.unused, plan.packs_deleted);
            println!("{:?}", prune(repo, plan, &lock, None, &|_| ()).await?);
            lock.release().await;
        }
    }
    Ok(())
}

/// The `n`-th data blob.
fn data(n: usize) -> Id {
    Id::of(&(n as u64).to_le_bytes())
}

async fn make(place: &Path, blobs: usize) -> Result<()> {
    fs::create_dir_all(place).map_err(|_| Error::Broken("the directory cannot be made"))?;
    let bucket = Arc::new(Directory::with(place, Durability::None));
    let master = Arc::new(MasterKey::generate()?);
    let key = KeyFile::create(&master, &password(), KdfParams::default(), "user", "host", Time::new(0, 0))?;
    let mut sealer = Sealer::new(master, Some(3))?;
    let key = key.to_json();
    let config = file::seal(&mut sealer, FileKind::Config, &Config::create(None)?.to_json())?;
    put(&*bucket, &FileKind::Key.key(&Id::of(&key)), key).await?;
    put(&*bucket, &cistern_bucket::Key::from(&b"config"[..]), config).await?;
    let mut index = IndexFile::new();
    for first in (0..blobs).step_by(IN_PACK) {
        let count = IN_PACK.min(blobs - first);
        let pack = Id::of(format!("pack {first}").as_bytes());
        let blobs: Vec<PackedBlob> = (0..count)
            .map(|n| PackedBlob {
                kind: BlobKind::Data,
                id: data(first + n),
                offset: n as u32 * LENGTH,
                length: LENGTH,
                raw_length: None,
            })
            .collect();
        let path = place.join(FileKind::Pack.key(&pack).to_string());
        let header = 37 * count + 32 + 4;
        let made = fs::create_dir_all(path.parent().unwrap_or(place))
            .and_then(|()| File::create(&path)?.set_len((count * LENGTH as usize + header) as u64));
        made.map_err(|_| Error::Broken("a pack cannot be made"))?;
        index.add(&pack, &blobs);
        if index.is_full() {
            let full = std::mem::take(&mut index).finish();
            let stored = file::seal(&mut sealer, FileKind::Index, &full)?;
            put(&*bucket, &FileKind::Index.key(&Id::of(&stored)), stored).await?;
        }
    }
    let rest = index.finish();
    let stored = file::seal(&mut sealer, FileKind::Index, &rest)?;
    put(&*bucket, &FileKind::Index.key(&Id::of(&stored)), stored).await?;

    let repo = Repository::open(bucket, &password(), Options { workers: 2, ..Options::default() }).await?;
    for (number, range) in [0..blobs, 0..blobs / 2].into_iter().enumerate() {
        let lock = repo.lock(LockKind::Shared, &who(), Duration::ZERO).await?;
        let writer = repo.writer(repo.index().await?, lock);
        let mut directories = Vec::new();
        for first in range.clone().step_by(FILES) {
            let files = (first..range.end.min(first + FILES)).map(|n| Node {
                name: format!("{n:08}").into_bytes().into(),
                mode: 0o644,
                size: u64::from(LENGTH) - 32,
                content: Some([data(n)].into()),
                ..Node::default()
            });
            directories.push(directory(&writer, files.collect())?);
        }
        // A tree of directories of a thousand at most.
        while directories.len() > 1 {
            let mut above = Vec::new();
            for below in directories.chunks(1000) {
                let entries = below.iter().enumerate().map(|(n, tree)| Node {
                    name: format!("{n:04}").into_bytes().into(),
                    kind: NodeKind::Dir,
                    mode: node::mode::DIR | 0o755,
                    subtree: Some(*tree),
                    ..Node::default()
                });
                above.push(directory(&writer, entries.collect())?);
            }
            directories = above;
        }
        let mut snapshot =
            Snapshot::new(Time::new(1_700_000_000 + number as i64, 0), directories[0], vec!["/data".into()]);
        snapshot.hostname = "host".into();
        writer.finish(vec![snapshot]).await?;
    }
    Ok(())
}

fn directory(writer: &Writer, nodes: Vec<Node>) -> Result<Id> {
    let mut tree = TreeBuilder::new();
    for node in &nodes {
        tree.add(node)?;
    }
    writer.tree(tree.finish()?)
}

async fn put(bucket: &dyn Bucket, key: &cistern_bucket::Key, bytes: Vec<u8>) -> Result<()> {
    bucket.put(key, &[bytes.into()], &cistern_bucket::PutOptions::default()).await?;
    Ok(())
}

/// In MiB.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}
