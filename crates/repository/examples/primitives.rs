//! Measures what one core does with the primitives of a repository, in thread CPU time, not wall time:
//! `cargo run --release -p cistern-repository --example primitives [name…]`.
#![expect(clippy::print_stdout, reason = "an example that measures prints what it measured")]

use std::hint::black_box;
use std::sync::Arc;

use cistern_repository::chunker::{self, Chunker};
use cistern_repository::compress::{Compressor, Decompressor};
use cistern_repository::crypto::{MasterKey, Nonces};
use cistern_repository::index::{IndexBuilder, IndexFile, LiveIndex, Pending};
use cistern_repository::pack::{Opener, PackBuilder, PackedBlob, Sealer};
use cistern_repository::polynomial::Polynomial;
use cistern_repository::sha256::{self, Job, Lanes, Stream};
use cistern_repository::{BlobKind, Id, Node, NodeKind, Time, Tree, TreeBuilder, TreeReader};
use rustix::time::{ClockId, clock_gettime};

const MIB: usize = 1 << 20;
const TOTAL: usize = 64 * MIB;

fn cpu_nanoseconds() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Runs `work` five times over `units` and prints the best; the others were disturbed.
fn measure(wanted: &[String], name: &str, units: usize, unit: &str, mut work: impl FnMut()) {
    if !wanted.is_empty() && !wanted.iter().any(|word| name.contains(word.as_str())) {
        return;
    }
    let best = (0..5)
        .map(|_| {
            let start = cpu_nanoseconds();
            work();
            cpu_nanoseconds() - start
        })
        .min()
        .unwrap_or(0) as f64;
    match unit {
        "byte" => {
            let per_gib = best / 1e6 * (1u64 << 30) as f64 / units as f64;
            println!("{name:<44} {:>8.2} GB/s {per_gib:>8.0} ms/GiB", units as f64 / best);
        }
        _ => println!("{name:<44} {:>8.1} ns/{unit} {:>8.1} ms", best / units as f64, best / 1e6),
    }
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(length)
    .collect()
}

fn text(length: usize) -> Vec<u8> {
    let words = ["GET", "POST", "/api/v1/orders", "/index.html", "timeout", "user", "session", "retry", "ok"];
    let (mut text, mut random) = (Vec::with_capacity(length + 200), noise(length / 4 + 64).into_iter());
    let mut next = || random.next().unwrap_or(7) as usize;
    while text.len() < length {
        let (a, b, c, d) = (next(), next(), next(), next());
        let line = format!(
            "2026-11-22T17:{:02}:{:02}.{:03}Z host-{} {} {} status={} bytes={} id={:02x}{:02x}{:02x}\n",
            a % 60,
            b % 60,
            c * 3,
            d % 8,
            words[a % words.len()],
            words[b % words.len()],
            200 + c % 5,
            a * b,
            b,
            c,
            d
        );
        text.extend_from_slice(line.as_bytes());
    }
    text.truncate(length);
    text
}

fn nodes(count: usize) -> Vec<Node> {
    let id = |i: usize| Id::of(&i.to_le_bytes());
    (0..count)
        .map(|i| Node {
            name: format!("file-{i:07}.dat").into_bytes().into(),
            kind: NodeKind::File,
            mode: 0o644,
            mtime: Time::new(1_700_000_000 + i as i64, 123_456_789),
            atime: Time::new(1_700_000_000 + i as i64, 123_456_789),
            ctime: Time::new(1_700_000_001 + i as i64, 987_654_321),
            uid: 1000,
            gid: 1000,
            user: "someone".into(),
            group: "someone".into(),
            inode: 10_000_000 + i as u64,
            device_id: 64_769,
            size: 4096,
            links: 1,
            content: Some([id(i)].into()),
            ..Node::default()
        })
        .collect()
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let measure = |name: &str, units: usize, unit: &str, work: &mut dyn FnMut()| {
        measure(&wanted, name, units, unit, work);
    };
    let (random, log) = (noise(TOTAL), text(TOTAL));
    bytes(&measure, &random, &log);
    if wanted.is_empty() || wanted.iter().any(|word| ["tree", "index", "claim"].contains(&word.as_str())) {
        records(&measure);
    }
}

type Measure<'a> = dyn Fn(&str, usize, &str, &mut dyn FnMut()) + 'a;

fn bytes(measure: &Measure<'_>, random: &[u8], log: &[u8]) {
    let lanes = Lanes::detect();
    println!("lanes enabled: {}", lanes.enabled());
    for (name, size) in [("1 MiB", MIB), ("8 KiB", 8 << 10), ("1 KiB", 1 << 10)] {
        let pieces: Vec<&[u8]> = random.chunks(size).collect();
        measure(&format!("sha256 library, {name}"), TOTAL, "byte", &mut || {
            pieces.iter().for_each(|piece| {
                black_box(sha256::hash(piece));
            });
        });
        measure(&format!("sha256 lanes, {name}"), TOTAL, "byte", &mut || {
            pieces.chunks(512).for_each(|batch| drop(black_box(lanes.hash_many(batch))));
        });
        measure(&format!("sha256 two lanes, {name}"), TOTAL, "byte", &mut || {
            pieces.chunks(2).for_each(|batch| drop(black_box(lanes.hash_many(batch))));
        });
    }

    let chunker = Chunker::new(Polynomial(0x003D_A335_8B4D_C173));
    measure("rabin, tables", 1, "table", &mut || {
        drop(black_box(Chunker::new(Polynomial(0x003D_A335_8B4D_C173))))
    });
    for (name, data) in [("random", random), ("text", log)] {
        measure(&format!("rabin, positions searched, {name}"), TOTAL, "byte", &mut || {
            let mut found = Vec::new();
            chunker.candidates(data, chunker::WINDOW, data.len(), &mut found);
            black_box(found);
        });
        measure(&format!("rabin, positions searched in cache, {name}"), TOTAL, "byte", &mut || {
            let mut found = Vec::new();
            for _ in 0..64 {
                chunker.candidates(&data[..MIB], chunker::WINDOW, MIB, &mut found);
            }
            black_box(found);
        });
        measure(&format!("rabin, data cut, {name}"), TOTAL, "byte", &mut || {
            let mut rest = data;
            while let Some(cut) = chunker.next_cut(rest, true) {
                rest = &rest[cut..];
            }
        });
    }

    let key = Arc::new(MasterKey::generate().expect("the system has randomness"));
    for (name, size) in [("1 MiB", MIB), ("8 KiB", 8 << 10), ("1 KiB", 1 << 10)] {
        let mut nonces = Nonces::new();
        let mut sealed = Vec::with_capacity(2 * MIB);
        measure(&format!("seal, {name}"), TOTAL, "byte", &mut || {
            for piece in random.chunks(size) {
                sealed.clear();
                key.seal_into(&mut nonces, piece, &mut sealed).expect("sealing works");
            }
        });
        sealed.clear();
        key.seal_into(&mut nonces, &random[..size], &mut sealed).expect("sealing works");
        let mut copy = sealed.clone();
        measure(&format!("copy and open, {name}"), TOTAL, "byte", &mut || {
            for _ in 0..TOTAL / size {
                copy.copy_from_slice(&sealed);
                black_box(key.open_in_place(&mut copy).expect("it was sealed"));
            }
        });
    }

    let mut decompressor = Decompressor::new().expect("zstd works");
    for (kind, data) in [("random", random), ("text", log)] {
        for level in [-1, 1, 3] {
            let mut compressor = Compressor::new(level).expect("the level exists");
            for (name, size) in [("1 MiB", MIB), ("8 KiB", 8 << 10)] {
                let sample = &data[..TOTAL / 4];
                let (mut out, mut stored) = (Vec::with_capacity(2 * MIB), 0);
                measure(&format!("zstd {level}, {kind}, {name}"), sample.len(), "byte", &mut || {
                    stored = 0;
                    for piece in sample.chunks(size) {
                        out.clear();
                        compressor.append(piece, &mut out).expect("zstd works");
                        stored += out.len();
                    }
                });
                if stored > 0 {
                    println!("{:<44} {:>8.3}", "  ratio", stored as f64 / sample.len() as f64);
                }
                if level == 3 {
                    let mut plain = Vec::new();
                    measure(&format!("unzstd, {kind}, {name}"), sample.len(), "byte", &mut || {
                        for _ in 0..sample.len() / size {
                            decompressor.exactly(&out, size, &mut plain).expect("it was compressed");
                        }
                    });
                }
            }
        }
        for (name, size) in [("1 MiB", MIB), ("8 KiB", 8 << 10)] {
            let mut sealer = Sealer::new(key.clone(), Some(3)).expect("zstd works");
            let pieces: Vec<&[u8]> = data[..TOTAL / 4].chunks(size).collect();
            let mut buffer = Vec::new();
            let mut opener = Opener::new(key.clone()).expect("zstd works");
            let mut sealed = Vec::new();
            sealer.seal_blob(BlobKind::Data, pieces[0], &mut sealed).expect("sealing works");
            measure(&format!("prove, {kind}, {name}"), TOTAL / 4, "byte", &mut || {
                for _ in 0..TOTAL / 4 / size {
                    opener.prove(&sealed, Some(size as u32), pieces[0]).expect("it was sealed");
                }
            });
            measure(&format!("pack at 3 with both hashes, {kind}, {name}"), TOTAL / 4, "byte", &mut || {
                let mut pack = PackBuilder::reuse(BlobKind::Data, std::mem::take(&mut buffer));
                for batch in pieces.chunks(4 * MIB / size) {
                    // What the last batch added to the pack is hashed along with this batch.
                    let mut streams: Vec<Stream> = batch.iter().map(|_| Stream::new()).collect();
                    let blobs = streams.iter_mut().zip(batch).map(|(stream, piece)| Job::last(stream, piece));
                    lanes.run(&mut [pack.hash_job()].into_iter().chain(blobs).collect::<Vec<_>>());
                    for (piece, stream) in batch.iter().zip(streams) {
                        let id = Id::from_bytes(stream.finish());
                        pack.add(&mut sealer, id, piece).expect("sealing works");
                    }
                }
                buffer = pack.finish(&mut sealer, lanes).expect("sealing works").bytes;
            });
        }
    }
}

fn records(measure: &Measure<'_>) {
    const NODES: usize = 100_000;
    let list = nodes(NODES);
    let mut builder = TreeBuilder::new();
    list.iter().for_each(|node| builder.add(node).expect("names differ"));
    let blob = builder.finish().expect("names differ");
    println!("tree of {NODES} nodes: {} bytes, Node: {} bytes", blob.len(), size_of::<Node>());
    measure("tree: write", NODES, "node", &mut || {
        let mut builder = TreeBuilder::new();
        list.iter().for_each(|node| builder.add(node).expect("names differ"));
        black_box(builder.finish().expect("names differ"));
    });
    measure("tree: read one by one", NODES, "node", &mut || {
        let mut reader = TreeReader::new(&blob).expect("it was written");
        while let Some(node) = reader.next_node().expect("it was written") {
            black_box(node);
        }
    });
    measure("tree: read, compare, write again", NODES, "node", &mut || {
        let tree = Tree::parse(blob.clone()).expect("it was written");
        let mut builder = TreeBuilder::new();
        for (i, (old, new)) in tree.nodes().iter().zip(&list).enumerate() {
            assert!(old.size == new.size && old.mtime.instant() == new.mtime.instant());
            builder.add_raw(&old.name, tree.raw(i)).expect("names differ");
        }
        assert_eq!(builder.finish().expect("names differ"), blob);
    });

    const BLOBS: usize = 1_000_000;
    let ids: Vec<Id> = (0..BLOBS).map(|i| Id::of(&i.to_le_bytes())).collect();
    let mut files = Vec::new();
    for part in ids.chunks(50_000) {
        let mut file = IndexFile::new();
        for pack in part.chunks(20) {
            let blobs: Vec<PackedBlob> = (0..)
                .zip(pack)
                .map(|(i, id)| PackedBlob {
                    kind: BlobKind::Data,
                    id: *id,
                    offset: i * 800_000,
                    length: 800_000,
                    raw_length: Some(1_500_000),
                })
                .collect();
            file.add(&Id::of(pack[0].as_bytes()), &blobs);
        }
        files.push(file.finish());
    }
    let total: usize = files.iter().map(Vec::len).sum();
    println!("index of {BLOBS} blobs: {} files, {total} bytes of JSON", files.len());
    let load = || {
        let mut builder = IndexBuilder::new();
        files.iter().for_each(|file| builder.add_file(&Id::of(file), file).expect("it was written"));
        builder.finish().expect("it is kept in memory")
    };
    measure("index: read and sort", BLOBS, "blob", &mut || drop(black_box(load())));
    let index = Arc::new(load());
    measure("index: find", BLOBS, "blob", &mut || {
        assert!(ids.iter().all(|id| index.contains(BlobKind::Data, id)));
    });
    measure("index: miss", BLOBS, "blob", &mut || {
        assert!(!ids.iter().any(|id| index.contains(BlobKind::Tree, id)));
        let missed = ids.iter().filter(|id| {
            let mut bytes = *id.as_bytes();
            bytes[31] ^= 1;
            index.contains(BlobKind::Data, &Id::from_bytes(bytes))
        });
        assert_eq!(missed.count(), 0);
    });
    measure("index: by pack", BLOBS, "blob", &mut || {
        assert_eq!(index.by_pack().iter().map(|(_, blobs)| blobs.len()).sum::<usize>(), BLOBS);
    });
    measure("claim", BLOBS, "blob", &mut || {
        let live = LiveIndex::new(Arc::default());
        assert!(ids.iter().all(|id| live.claim(BlobKind::Data, id)));
    });
    let pending = Pending::new();
    ids.iter().for_each(|id| assert!(pending.claim(BlobKind::Data, id)));
    measure("claim in vain", BLOBS, "blob", &mut || {
        assert!(!ids.iter().any(|id| pending.claim(BlobKind::Data, id)));
    });
}
