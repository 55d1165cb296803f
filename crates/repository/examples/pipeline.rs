//! What writing and reading cost: feeds data from memory through a writer into a directory, reads it back, and
//! prints processor time per GiB.
//!
//! `cargo run --release --example pipeline -- [random|text|small|tiny] [MiB] [directory] [verify|no-verify] [level]`
#![expect(clippy::print_stdout, reason = "an example that measures prints what it measured")]

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cistern_bucket::{Directory, Durability};
use cistern_repository::{
    Compression, Contents, Id, Identity, LockKind, Node, Options, Repository, Snapshot, Ticket, Time,
    TreeBuilder, Writer,
};
use cistern_testkit::Random;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |i: usize, default: &str| arguments.get(i).cloned().unwrap_or_else(|| default.to_owned());
    let kind = argument(0, "random");
    let size = argument(1, "1024").parse::<u64>()? << 20;
    let directory = argument(2, "/dev/shm/cistern-pipeline");
    let options = Options {
        verify_writes: argument(3, "verify") == "verify",
        compression: Compression::Level(argument(4, "3").parse()?),
        ..Options::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(&kind, size, &directory, options))?;
    std::fs::remove_dir_all(directory)?;
    Ok(())
}

async fn run(kind: &str, size: u64, directory: &str, options: Options) -> Result<(), Box<dyn Error>> {
    let bucket = Arc::new(Directory::with(directory, Durability::None));
    let who =
        Identity { hostname: "host".into(), username: "me".into(), pid: std::process::id(), uid: 0, gid: 0 };
    let repo = Repository::init(bucket, &"password".into(), &who, options).await?;

    let lock = repo.lock(LockKind::Shared, &who, Duration::ZERO).await?;
    let writer = repo.writer(repo.index().await?, lock);
    // Made before the clock starts, and given out again and again, made different by a counter in each KiB.
    let pool = material(kind == "text", if kind == "tiny" { 4 << 20 } else { 64 << 20 });
    let meter = Meter::start();
    let root = match kind {
        "small" => files(&writer, &pool, size, 4096, true).await?,
        // Their names would be most of the memory: nothing is read again.
        "tiny" => files(&writer, &pool, size, 1024, false).await?,
        _ => large(&writer, &pool, size).await?,
    };
    let finished =
        writer.finish(vec![Snapshot::new(Time::new(0, 0), root.tree, vec!["/data".into()])]).await?;
    meter.report("write", size);
    println!("  {:?}", finished.stats);

    let meter = Meter::start();
    let reader = repo.reader(repo.index().await?);
    let read = Arc::new(AtomicU64::new(0));
    let count = read.clone();
    let sink = move |_, piece: Result<&[u8], &cistern_repository::Error>| {
        count.fetch_add(piece.map_or(0, <[u8]>::len) as u64, Relaxed);
    };
    reader.deliver(root.blobs, Arc::new(sink)).await?;
    meter.report("read", size);
    assert_eq!(read.load(Relaxed), root.size, "everything is read");
    Ok(())
}

struct Root {
    tree: Id,
    blobs: Vec<Id>,
    size: u64,
}

/// Bytes that are random or like the lines of a log.
fn material(text: bool, length: usize) -> Bytes {
    let mut random = Random::new(1);
    let mut bytes = vec![0; length];
    if text {
        let mut line = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let n = random.word();
            line.clear();
            line.extend_from_slice(
                format!(
                    "2026-11-22T10:{:02}:{:02}Z host-{} GET /api/v1/orders/{} 200 {}us trace={:016x}\n",
                    n % 60,
                    n / 60 % 60,
                    n % 17,
                    n % 100_003,
                    n % 9973,
                    n
                )
                .as_bytes(),
            );
            let part = line.len().min(bytes.len() - at);
            bytes[at..at + part].copy_from_slice(&line[..part]);
            at += part;
        }
    } else {
        random.fill(&mut bytes);
    }
    bytes.into()
}

/// Eight bytes in which no compressor sees a number.
fn mix(number: u64) -> [u8; 8] {
    Random::new(number).word().to_le_bytes()
}

/// Buffers that are used again, as a reader of files would.
#[derive(Clone, Default)]
struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

/// A buffer that goes back when nobody reads it any more.
struct Lent(Vec<u8>, Buffers);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.1.0.lock().expect("nobody panics here").push(std::mem::take(&mut self.0));
    }
}

impl Buffers {
    /// A copy of a stretch that no other copy equals: what reading a source costs.
    fn fresh(&self, stretch: &[u8], number: &mut u64) -> Bytes {
        let mut bytes = self.0.lock().expect("nobody panics here").pop().unwrap_or_default();
        bytes.clear();
        bytes.extend_from_slice(stretch);
        for chunk in bytes.chunks_mut(1024) {
            *number += 1;
            chunk[..8].copy_from_slice(&mix(*number));
        }
        Bytes::from_owner(Lent(bytes, self.clone()))
    }
}

/// Files of 512 MiB in pieces of 8 MiB.
async fn large(writer: &Writer, pool: &Bytes, size: u64) -> Result<Root, Box<dyn Error>> {
    const PIECE: usize = 8 << 20;
    let buffers = Buffers::default();
    let mut tree = TreeBuilder::new();
    let (mut blobs, mut number, mut left) = (Vec::new(), 0, size);
    while left > 0 {
        let mut file = writer.file();
        let length = left.min(512 << 20);
        for piece in 0..length / PIECE as u64 {
            let from = (piece as usize * PIECE) % pool.len();
            file.push(buffers.fresh(&pool[from..from + PIECE], &mut number)).await?;
        }
        left -= length;
        let contents = file.finish().await?;
        add(&mut tree, &format!("{left:020}"), &contents)?;
        blobs.extend(contents.blobs);
    }
    Ok(Root { tree: writer.tree(tree.finish()?)?, blobs, size })
}

/// Files of `length` bytes in batches of 512 and directories of 4096.
async fn files(
    writer: &Writer,
    pool: &Bytes,
    total: u64,
    length: usize,
    keep: bool,
) -> Result<Root, Box<dyn Error>> {
    let (mut blobs, mut size) = (Vec::new(), 0);
    let (mut left, mut number) = (total as usize / length, 0u64);
    let mut root = TreeBuilder::new();
    while left > 0 {
        let mut directory = TreeBuilder::new();
        let mut tickets: Vec<Ticket<Vec<std::io::Result<Contents>>>> = Vec::new();
        for _ in 0..8 {
            let count = left.min(512);
            left -= count;
            let permit = writer.permit(count * length).await?;
            let (pool, from) = (pool.clone(), number as usize * 512 * length % (pool.len() - 512 * length));
            let stamp = number;
            number += 1;
            tickets.push(writer.batch(permit, move |batch| {
                for i in 0..count {
                    batch.add_with(length, |out| {
                        let start = out.len();
                        out.extend_from_slice(&pool[from + i * length..from + (i + 1) * length]);
                        out[start..start + 8].copy_from_slice(&mix(stamp));
                        Ok(())
                    });
                }
            }));
        }
        for (i, ticket) in tickets.into_iter().enumerate() {
            for (j, contents) in ticket.await?.into_iter().enumerate() {
                let contents = contents?;
                add(&mut directory, &format!("file {i:03} {j:03}"), &contents)?;
                size += contents.size;
                if keep {
                    blobs.extend(contents.blobs);
                }
            }
        }
        let mut node = Node { name: format!("{number:010}").into_bytes().into(), ..Node::default() };
        node.kind = cistern_repository::NodeKind::Dir;
        node.subtree = Some(writer.tree(directory.finish()?)?);
        root.add(&node)?;
    }
    Ok(Root { tree: writer.tree(root.finish()?)?, blobs, size: if keep { size } else { 0 } })
}

fn add(tree: &mut TreeBuilder, name: &str, contents: &Contents) -> Result<(), Box<dyn Error>> {
    let time = Time::new(1_700_000_000, 5);
    let node = Node {
        name: name.as_bytes().into(),
        mode: 0o644,
        mtime: time,
        atime: time,
        ctime: time,
        size: contents.size,
        content: Some(contents.blobs.clone().into()),
        ..Node::default()
    };
    Ok(tree.add(&node)?)
}

/// Processor and wall time of this process from here on.
struct Meter {
    wall: Instant,
    cpu: [f64; 2],
}

impl Meter {
    fn start() -> Self {
        Meter { wall: Instant::now(), cpu: cpu() }
    }

    fn report(&self, what: &str, size: u64) {
        let gib = size as f64 / f64::from(1 << 30);
        let now = cpu();
        let (user, system) = (now[0] - self.cpu[0], now[1] - self.cpu[1]);
        println!(
            "{what}: {:.2} CPU s/GiB (user {:.2}, system {:.2}), {:.2} s wall, {} MiB at most resident",
            (user + system) / gib,
            user / gib,
            system / gib,
            self.wall.elapsed().as_secs_f64(),
            status("VmHWM:") >> 10
        );
    }
}

/// User and system seconds of this process.
fn cpu() -> [f64; 2] {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // Fields 14 and 15 of proc(5), in ticks of 10 ms; the first here is field 3.
    [11, 12].map(|i| fields.get(i).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or(0.0) / 100.0)
}

/// A figure of this process in KiB.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    line.split(' ').next().and_then(|kib| kib.parse().ok()).unwrap_or(0)
}
