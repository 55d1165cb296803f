//! The data that the benchmark backs up: the same bytes for the same seed, and a change of 1 %.

use anyhow::{Context, Result, bail};
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;

/// One collection of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Set {
    /// 1 GiB of random bytes in 16 files
    Random,
    /// 1 GiB of JSON lines in 64 files
    Text,
    /// 100,000 files of 4 KiB in 1,000 directories, half random, half JSON lines
    Small,
    /// 1,000,000 files of 1 KiB in 1,000 directories
    Many,
    /// One file of 20 GiB, with holes: it costs time, not space
    Huge,
}

/// What one file of a set is made of.
enum Content {
    Random,
    Text,
    Hole,
}

impl Set {
    /// The name on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Text => "text",
            Self::Small => "small",
            Self::Many => "many",
            Self::Huge => "huge",
        }
    }

    /// Files, and bytes in each.
    fn shape(self, scale: f64) -> (u64, u64) {
        let (files, size) = match self {
            Self::Random => (16, 64 * MIB),
            Self::Text => (64, 16 * MIB),
            Self::Small => (100_000, 4096),
            Self::Many => (1_000_000, 1024),
            Self::Huge => (1, 20 << 30),
        };
        match self {
            Self::Random | Self::Text | Self::Huge => (files, (size as f64 * scale) as u64),
            Self::Small | Self::Many => ((files as f64 * scale) as u64, size),
        }
    }

    /// Bytes that the set takes on a disk with blocks of 4 KiB.
    pub fn space(self, scale: f64) -> u64 {
        let (files, size) = self.shape(scale);
        if self == Self::Huge { 0 } else { files * (size.next_multiple_of(4096) + 1024) }
    }

    fn content(self, file: u64) -> Content {
        match self {
            Self::Random => Content::Random,
            Self::Text => Content::Text,
            Self::Small | Self::Many if file.is_multiple_of(2) => Content::Random,
            Self::Small | Self::Many => Content::Text,
            Self::Huge => Content::Hole,
        }
    }

    fn path(self, root: &Path, file: u64) -> PathBuf {
        match self {
            Self::Small | Self::Many => root.join(format!("d{:03}/f{file:07}", file % 1000)),
            Self::Random | Self::Text | Self::Huge => root.join(format!("f{file:02}")),
        }
    }

    /// Writes the whole set below `root`, which must not exist.
    pub fn generate(self, root: &Path, scale: f64) -> Result<()> {
        let (files, size) = self.shape(scale);
        fs::create_dir_all(root)?;
        for file in 0..files {
            let path = self.path(root, file);
            if matches!(self, Self::Small | Self::Many) && file < 1000 {
                fs::create_dir_all(path.parent().expect("files of this set lie in directories"))?;
            }
            let mut out = BufWriter::with_capacity(MIB as usize, File::create_new(&path)?);
            self.content(file).write(&mut out, size, seed(self, file, 0))?;
            out.into_inner().context("cannot write the data")?;
        }
        Ok(())
    }

    /// Changes 1 % of the set in place: other bytes for each `round`, all else untouched.
    pub fn change(self, root: &Path, scale: f64, round: u64) -> Result<()> {
        let (files, size) = self.shape(scale);
        let part = size / 100;
        match self {
            Self::Random => {
                for file in 0..files {
                    let mut random = Random(seed(self, file, round));
                    let mut out = OpenOptions::new().write(true).open(self.path(root, file))?;
                    out.seek(SeekFrom::Start(random.next() % (size - part)))?;
                    Content::Random.write(&mut out, part, random.next())?;
                }
            }
            Self::Text => {
                for file in 0..files {
                    let mut random = Random(seed(self, file, round));
                    let path = self.path(root, file);
                    let mut bytes = fs::read(&path)?;
                    let at = (random.next() % (size - 2 * part)) as usize;
                    // A little more or less than what was there, so that all behind it moves.
                    let mut other = Vec::new();
                    Content::Text.write(&mut other, part - 500 + random.next() % 1000, random.next())?;
                    bytes.splice(at..at + part as usize, other);
                    fs::write(path, bytes)?;
                }
            }
            Self::Small | Self::Many => {
                for file in (round % 100..files).step_by(100) {
                    let mut out = File::create(self.path(root, file))?;
                    self.content(file).write(&mut out, size, seed(self, file, round))?;
                }
            }
            Self::Huge => bail!("the set `huge` has no changed version"),
        }
        Ok(())
    }
}

/// One seed for every file and every version of it.
fn seed(set: Set, file: u64, round: u64) -> u64 {
    ((set as u64 + 1) << 56) ^ (round << 32) ^ file
}

impl Content {
    fn write(&self, out: &mut (impl Write + Seekable), size: u64, seed: u64) -> Result<()> {
        let mut random = Random(seed);
        let mut block = Vec::with_capacity(2 * 64 * 1024);
        let mut left = size;
        while left > 0 {
            block.clear();
            match self {
                Self::Random => {
                    while block.len() < 64 * 1024 {
                        block.extend_from_slice(&random.next().to_le_bytes());
                    }
                }
                Self::Text => {
                    while block.len() < 64 * 1024 {
                        json_line(&mut block, &mut random)?;
                    }
                }
                Self::Hole => return out.extend(size),
            }
            let length = left.min(block.len() as u64);
            out.write_all(&block[..length as usize])?;
            left -= length;
        }
        Ok(())
    }
}

/// Where a hole may be written.
trait Seekable {
    fn extend(&mut self, size: u64) -> Result<()>;
}

impl Seekable for BufWriter<File> {
    fn extend(&mut self, size: u64) -> Result<()> {
        Ok(self.get_mut().set_len(size)?)
    }
}

impl Seekable for File {
    fn extend(&mut self, size: u64) -> Result<()> {
        Ok(self.set_len(size)?)
    }
}

impl Seekable for Vec<u8> {
    fn extend(&mut self, _: u64) -> Result<()> {
        bail!("memory has no holes")
    }
}

/// A line of a service's log: words that repeat, numbers that do not. zstd's level 3 makes a quarter of it.
fn json_line(out: &mut Vec<u8>, random: &mut Random) -> Result<()> {
    const LEVELS: [&str; 4] = ["info", "info", "warn", "debug"];
    const SERVICES: [&str; 8] =
        ["orders", "billing", "search", "mail", "users", "stock", "export", "gateway"];
    const VERBS: [&str; 4] = ["GET", "GET", "POST", "DELETE"];
    const TEXTS: [&str; 8] = [
        "request was served from the cache of this node",
        "request was served after a look at the database",
        "the upstream answered late, the second attempt was good",
        "the session is over, the user was sent to the start page",
        "a batch was written and acknowledged by all replicas",
        "the queue grew above its first mark, workers were added",
        "the index was read anew because its generation changed",
        "nothing to do, the next look follows in a minute",
    ];
    let bits = random.next();
    let pick = |shift: u32, count: usize| (bits >> shift) as usize % count;
    writeln!(
        out,
        r#"{{"time":"2026-11-{:02}T{:02}:{:02}:{:02}.{:03}Z","level":"{}","service":"{}","request":"{:016x}","verb":"{}","path":"/v1/{}/{}","status":{},"millis":{},"bytes":{},"text":"{}"}}"#,
        1 + pick(0, 30),
        pick(5, 24),
        pick(10, 60),
        pick(16, 60),
        pick(22, 1000),
        LEVELS[pick(32, 4)],
        SERVICES[pick(34, 8)],
        random.next(),
        VERBS[pick(37, 4)],
        SERVICES[pick(39, 8)],
        pick(42, 100_000),
        200 + pick(48, 5),
        pick(50, 900),
        pick(44, 1_000_000),
        TEXTS[pick(60, 8)],
    )?;
    Ok(())
}

/// SplitMix64 (<https://prng.di.unimi.it/splitmix64.c>): one word of state, no zero to avoid.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
