//! The command line: every verb, option and environment variable, as users of restic know them where
//! they mean the same.

#![allow(rustdoc::bare_urls, reason = "the texts are help on a terminal")]

use std::ffi::OsString;
use std::path::PathBuf;

use cistern_engine::Unused;
use cistern_engine::retention::{Age, Count, GroupBy};
use cistern_repository::ReadData;
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

/// Backs up and restores cloud object storage into repositories that restic reads.
#[derive(Debug, Parser)]
#[command(
    name = "cistern",
    version,
    about,
    long_about = "Backs up and restores cloud object storage (S3 and compatibles) and directories into \
                  repositories in restic's format.\n\nNothing unchanged is read twice: a bucket is compared by \
                  listing alone. Every key and attribute is kept, and every run proves that its source was \
                  listed completely.",
    after_long_help = EXIT_CODES,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    max_term_width = 110
)]
pub struct Cli {
    /// Settings that every verb understands.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
    0  done
    1  internal error, please report it
    2  invalid input
    3  done in part: the output names what is missing
   10  the repository does not exist
   11  the repository is locked
   12  wrong password
   20  source, target, snapshot or key not found
   21  access denied
   22  the repository is damaged
   23  a store is not reachable, asks for a lower rate, or is full
  130  interrupted";

/// Settings that every verb understands.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Repository")]
pub struct Global {
    /// Repository: `s3://bucket/prefix`, a directory, or restic's `s3:https://host/bucket/prefix` [env:
    /// CISTERN_REPOSITORY, RESTIC_REPOSITORY]
    #[arg(short, long, global = true, value_name = "REPOSITORY", value_hint = ValueHint::AnyPath)]
    pub repo: Option<OsString>,
    /// File that holds the repository's address [env: CISTERN_REPOSITORY_FILE, RESTIC_REPOSITORY_FILE]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub repository_file: Option<PathBuf>,
    /// File that holds the password [env: CISTERN_PASSWORD_FILE, RESTIC_PASSWORD_FILE]; the password itself is
    /// read from CISTERN_PASSWORD or RESTIC_PASSWORD, or asked for
    #[arg(short, long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub password_file: Option<PathBuf>,
    /// Command that prints the password [env: CISTERN_PASSWORD_COMMAND, RESTIC_PASSWORD_COMMAND]
    #[arg(long, global = true, value_name = "COMMAND", value_hint = ValueHint::CommandString)]
    pub password_command: Option<String>,
    /// Key to try first [env: CISTERN_KEY_HINT, RESTIC_KEY_HINT]
    #[arg(long, global = true, value_name = "ID")]
    pub key_hint: Option<String>,
    /// Wait this long for a repository that is locked, such as 5m
    #[arg(long, global = true, value_name = "DURATION")]
    pub retry_lock: Option<jiff::SignedDuration>,
    /// Directory for cached index and directory data [default: cistern in the user's cache directory]
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub cache_dir: Option<PathBuf>,
    /// Keep no cache
    #[arg(long, global = true)]
    pub no_cache: bool,
    /// Compression of new data [env: CISTERN_COMPRESSION, RESTIC_COMPRESSION] [default: auto]
    #[arg(long, global = true, value_name = "MODE")]
    pub compression: Option<CompressionMode>,
    /// Size of new packs in MiB, 4 to 128 [env: CISTERN_PACK_SIZE, RESTIC_PACK_SIZE] [default: 16]
    #[arg(long, global = true, value_name = "MIB", value_parser = clap::value_parser!(u32).range(4..=128))]
    pub pack_size: Option<u32>,
    /// Do not open and compare every stored blob before it counts (saves 15 to 30 % CPU)
    #[arg(long, global = true)]
    pub no_extra_verify: bool,
    /// Settings of the stores.
    #[command(flatten)]
    pub store: Store,
    /// Settings of the output.
    #[command(flatten)]
    pub output: Output,
}

/// How stores are reached.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Stores")]
pub struct Store {
    /// Endpoint of source and target, such as https://minio.example:9000 [env: AWS_ENDPOINT_URL_S3,
    /// AWS_ENDPOINT_URL]
    #[arg(long, global = true, value_name = "URL", value_hint = ValueHint::Url)]
    pub endpoint: Option<String>,
    /// Region of source and target [env: AWS_REGION, AWS_DEFAULT_REGION]
    #[arg(long, global = true)]
    pub region: Option<String>,
    /// Profile of source and target in ~/.aws/{credentials,config} [env: AWS_PROFILE]
    #[arg(long, global = true, value_name = "NAME")]
    pub profile: Option<String>,
    /// Endpoint of the repository, if it is another one
    #[arg(long, global = true, value_name = "URL", value_hint = ValueHint::Url)]
    pub repo_endpoint: Option<String>,
    /// Region of the repository, if it is another one
    #[arg(long, global = true, value_name = "REGION")]
    pub repo_region: Option<String>,
    /// Profile of the repository, if it is another one
    #[arg(long, global = true, value_name = "NAME")]
    pub repo_profile: Option<String>,
    /// How buckets are addressed; path for every endpoint that is given, host for AWS
    #[arg(long, global = true, value_name = "STYLE", default_value = "auto")]
    pub bucket_style: BucketStyle,
    /// Use no credentials for source and target (public buckets); the repository's are used as ever
    #[arg(long, global = true)]
    pub no_sign_request: bool,
    /// File with certificates to trust, PEM [env: AWS_CA_BUNDLE, RESTIC_CACERT]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub cacert: Option<PathBuf>,
    /// Trust any certificate (dangerous)
    #[arg(long, global = true)]
    pub insecure_tls: bool,
    /// Requests in flight to each store
    #[arg(long, global = true, value_name = "N", default_value_t = 32)]
    pub connections: usize,
    /// At most this many requests per second to each store
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit_requests: Option<u32>,
    /// At most this many KiB per second to and from each store
    #[arg(long, global = true, value_name = "KIB", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit_rate: Option<u64>,
}

/// What is printed.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct Output {
    /// Print JSON: one object per line
    #[arg(long, global = true)]
    pub json: bool,
    /// Print errors and what was asked for only
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Log more to standard error: -v what is decided, -vv requests that are repeated
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// Compression of new data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CompressionMode {
    /// zstd level 3.
    Auto,
    /// None.
    Off,
    /// zstd level 1.
    Fastest,
    /// zstd level 7.
    Better,
    /// The best ratio, slow.
    Max,
}

/// How buckets are addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BucketStyle {
    /// Path for every endpoint that is given, host for AWS.
    Auto,
    /// https://endpoint/bucket/key
    Path,
    /// https://bucket.endpoint/key
    Host,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a repository
    Init(Init),
    /// Back up a bucket, a prefix of one, or a directory
    Backup(Backup),
    /// List snapshots
    Snapshots(Snapshots),
    /// Remove snapshots by name, or all that no rule keeps
    #[command(after_long_help = "\
Rules add up: a snapshot that any of them keeps is kept. Each is applied to every host and source by itself, and
counts from the newest snapshot, not from today. A backup in several parts is kept or removed as a whole. Snapshots of
backups that did not succeed have a count of their own (--keep-incomplete) and push out no others.

Space is freed when the repository is pruned, at once with --prune.")]
    Forget(Forget),
    /// Free what no snapshot needs
    #[command(after_long_help = "\
Packs that nobody needs are deleted; packs that are needed in part are packed anew until no more than
--max-unused of what stays is unused. New packs and a new index are durable before anything is deleted,
so that a prune may be stopped at any moment: the next one goes on with what is left.

Nothing is deleted if anything that a snapshot needs is missing: `cistern check` tells what.")]
    Prune(Prune),
    /// Lock what the snapshots need against deletion (S3 Object Lock), or tell how much of it is locked
    #[command(after_long_help = "\
Without --until or --for it only tells how much is locked now. Everything that any snapshot needs counts: packs that
older backups have stored, too, whose locks end earlier. Run it after each backup, and again if it was stopped: what is
locked for long enough is left alone, and no lock is ever shortened. Exit code 3 says that something is not covered.

The bucket has to be created with Object Lock, which makes it a versioned one. Deleting then still works, and hides
what is locked without freeing its space.")]
    Protect(Protect),
    /// Change the tags of snapshots
    #[command(after_long_help = "\
Without names, all snapshots that --host, --path and --tag leave are meant. A backup in several parts is tagged as a
whole. A snapshot whose tags change gets a new id; what Cistern itself says in tags (run:…, parts:…, incomplete,
partial) stays.")]
    Tag(Tag),
    /// Copy snapshots from one repository into another
    #[command(after_long_help = "\
Without names, all snapshots that --host, --path and --tag leave are copied. What is there already is not copied, and
not read: to copy again is cheap. Data is copied as it is compressed. Where the source repository needs another
endpoint, region or profile than --repo, give its as --endpoint, --region and --profile and the others as --repo-endpoint
and so on.

Example:
  cistern init --repo s3://offsite/orders --from-repo s3://backups/orders --copy-chunker-params
  cistern copy --repo s3://offsite/orders --from-repo s3://backups/orders --from-password-file old.txt")]
    Copy(Copy),
    /// Write snapshots anew without what matches a pattern
    #[command(after_long_help = "\
Without names, all snapshots that --host, --path and --tag leave are written anew. Patterns match paths in the snapshot,
as those of backup do. The new snapshots are tagged `partial`, because they do not hold their whole source any more, and
`rewrite` if the old ones stay. With --forget the old ones go; what only they held takes space until the repository is
pruned.")]
    Rewrite(Rewrite),
    /// List what a snapshot holds
    Ls(Ls),
    /// Find keys by pattern in all snapshots
    Find(Find),
    /// Show what changed between two snapshots
    Diff(Diff),
    /// Restore a snapshot to a bucket or a directory
    Restore(Restore),
    /// Compare a snapshot with its live source
    Verify(Verify),
    /// Check that the repository is whole
    Check(Check),
    /// Count what snapshots hold and what they cost
    Stats(Stats),
    /// List, add, remove and change the passwords that open the repository
    #[command(subcommand)]
    Key(Key),
    /// Mend a repository that was damaged: the index, then packs, then snapshots
    #[command(subcommand)]
    Repair(Repair),
    /// Remove locks that nobody holds any more
    Unlock(Unlock),
    /// Run the main job on a bucket of its own, in this process
    Demo(Demo),
    /// Print completions for a shell
    Completions(Completions),
    /// Print the manual page
    Man,
    /// Do the work of a Job: what a pod of a cluster runs
    Job(crate::cluster::args::Job),
    /// Begin a backup in a cluster: create the BackupSession of a BackupConfiguration's session
    Trigger(crate::cluster::args::Trigger),
    /// Look after the backups of a cluster; also `kubectl cistern`, if this program is called kubectl-cistern
    Cluster(crate::cluster::args::Cluster),
    /// Run the controllers of a cluster
    Operator(crate::commands::operator::Operator),
    /// Check manifests of backups and restores, without a cluster
    #[command(after_long_help = "\
Each document of Cistern's kinds is held against its definition and beside the other documents: every field that does
not exist, cannot be understood or asks for what is not there yet is named, one line each. Documents of other kinds
(Secrets, claims, volumes, namespaces) count as what the others refer to. What is referred to and is in none of the files
is noted only, for a cluster may have it; with --strict it is wrong, too.

Exit code 2 says that something is wrong.

Example:
  cistern validate storage.yaml backup/")]
    Validate(Validate),
}

/// Which snapshots are meant.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Snapshots")]
pub struct SnapshotFilter {
    /// Only snapshots of this host (repeatable: of any of them)
    #[arg(short = 'H', long, value_name = "HOST")]
    pub host: Vec<String>,
    /// Only snapshots with this path (repeatable)
    #[arg(long, value_name = "PATH")]
    pub path: Vec<String>,
    /// Only snapshots with all of these tags, separated by commas (repeatable: with all of any list)
    #[arg(long, value_name = "TAG[,TAG]")]
    pub tag: Vec<String>,
}

/// Which objects are meant.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Selection")]
pub struct Select {
    /// Only what matches the pattern (repeatable)
    #[arg(short = 'i', long, value_name = "PATTERN")]
    pub include: Vec<String>,
    /// Nothing that matches the pattern (repeatable)
    #[arg(short = 'e', long, value_name = "PATTERN")]
    pub exclude: Vec<String>,
    /// Patterns to include, one per line
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub include_file: Vec<PathBuf>,
    /// Patterns to exclude, one per line
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub exclude_file: Vec<PathBuf>,
    /// Patterns ignore upper and lower case
    #[arg(long)]
    pub ignore_case: bool,
    /// Nothing larger than this, such as 100M or 1G
    #[arg(long, value_name = "SIZE", value_parser = crate::units::parse_size)]
    pub exclude_larger_than: Option<u64>,
    /// Nothing modified before this time, such as 2026-11-01 or '2026-11-01 08:30:00' (local) or 2026-11-01T08:30:00Z
    #[arg(long, value_name = "TIME", value_parser = crate::units::parse_time)]
    pub modified_since: Option<jiff::Timestamp>,
}

/// Creates a repository.
#[derive(Clone, Debug, Args)]
pub struct Init {
    /// Cut files as the repository of --from-repo does, so that what is copied saves new backups, too
    #[arg(long)]
    pub copy_chunker_params: bool,
    /// Whose parameters.
    #[command(flatten)]
    pub from: FromRepository,
}

/// The repository to copy from.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Source repository")]
pub struct FromRepository {
    /// Repository to copy from [env: CISTERN_FROM_REPOSITORY, RESTIC_FROM_REPOSITORY]
    #[arg(long, value_name = "REPOSITORY", value_hint = ValueHint::AnyPath)]
    pub from_repo: Option<OsString>,
    /// File that holds its address [env: CISTERN_FROM_REPOSITORY_FILE, RESTIC_FROM_REPOSITORY_FILE]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub from_repository_file: Option<PathBuf>,
    /// File that holds its password [env: CISTERN_FROM_PASSWORD_FILE, RESTIC_FROM_PASSWORD_FILE]; the password
    /// itself is read from CISTERN_FROM_PASSWORD or RESTIC_FROM_PASSWORD, or asked for
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub from_password_file: Option<PathBuf>,
    /// Command that prints its password [env: CISTERN_FROM_PASSWORD_COMMAND, RESTIC_FROM_PASSWORD_COMMAND]
    #[arg(long, value_name = "COMMAND", value_hint = ValueHint::CommandString)]
    pub from_password_command: Option<String>,
    /// Key of it to try first [env: CISTERN_FROM_KEY_HINT, RESTIC_FROM_KEY_HINT]
    #[arg(long, value_name = "ID")]
    pub from_key_hint: Option<String>,
}

/// Copies snapshots.
#[derive(Clone, Debug, Args)]
pub struct Copy {
    /// Only these: latest, latest~1, an id, run:ID
    pub snapshots: Vec<String>,
    /// Show what would be copied, and copy nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Where from.
    #[command(flatten)]
    pub from: FromRepository,
    /// Which snapshots.
    #[command(flatten)]
    pub filter: SnapshotFilter,
}

/// Writes snapshots anew.
#[derive(Clone, Debug, Args)]
#[group(id = "patterns", required = true, multiple = true, args = ["exclude", "iexclude", "exclude_file", "iexclude_file"])]
pub struct Rewrite {
    /// Only these: latest, latest~1, an id, run:ID
    pub snapshots: Vec<String>,
    /// Leave out what matches the pattern (repeatable)
    #[arg(short = 'e', long, value_name = "PATTERN")]
    pub exclude: Vec<String>,
    /// The same, ignoring upper and lower case (repeatable)
    #[arg(long, value_name = "PATTERN")]
    pub iexclude: Vec<String>,
    /// Patterns to leave out, one per line
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub exclude_file: Vec<PathBuf>,
    /// The same, ignoring upper and lower case
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub iexclude_file: Vec<PathBuf>,
    /// Remove the old snapshots
    #[arg(long)]
    pub forget: bool,
    /// Show what would be left out, and change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Which snapshots.
    #[command(flatten)]
    pub filter: SnapshotFilter,
}

/// Backs up.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Examples:
  cistern backup s3://orders/2026/ --repo s3://backups/orders
  cistern backup ./photos --repo /srv/backup --exclude '*.tmp'

A directory is stored as restic stores it, a bucket as /<bucket>/<key> with all attributes in an
extended attribute. A run whose source lost more than --max-shrink of its keys is refused.")]
pub struct Backup {
    /// s3://bucket[/prefix], a directory, or file:///directory
    #[arg(value_hint = ValueHint::AnyPath)]
    pub source: OsString,
    /// Tag the snapshot, separated by commas (repeatable)
    #[arg(long, value_name = "TAG[,TAG]", value_delimiter = ',')]
    pub tag: Vec<String>,
    /// Host name in the snapshot [env: CISTERN_HOST, RESTIC_HOST] [default: this host; for a bucket the endpoint's]
    #[arg(short = 'H', long, value_name = "HOST")]
    pub host: Option<String>,
    /// Snapshot to compare with [default: the newest of the same source]
    #[arg(long, value_name = "SNAPSHOT")]
    pub parent: Option<String>,
    /// Read everything, also what did not change
    #[arg(short, long)]
    pub force: bool,
    /// Compare with the source and write nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Write no snapshot if nothing changed
    #[arg(long)]
    pub skip_if_unchanged: bool,
    /// Time of the snapshot, such as '2026-11-01 08:30:00' (local) or 2026-11-01T08:30:00Z [default: now]
    #[arg(long, value_name = "TIME", value_parser = crate::units::parse_time)]
    pub time: Option<jiff::Timestamp>,
    /// What becomes of objects that cannot be read (archived, customer key, denied)
    #[arg(long, value_name = "ACTION", default_value = "fail")]
    pub on_unreadable: Unreadable,
    /// Refuse the run if more than this share of the keys is gone
    #[arg(long, value_name = "PERCENT", default_value = "50", value_parser = crate::units::parse_percent)]
    pub max_shrink: f64,
    /// Accept a source that shrank by more
    #[arg(long)]
    pub accept_shrink: bool,
    /// Accept a source that holds nothing
    #[arg(long)]
    pub allow_empty: bool,
    /// Do not read the tags of objects
    #[arg(long)]
    pub no_object_tags: bool,
    /// Keep access times (directories)
    #[arg(long)]
    pub with_atime: bool,
    /// Stay on one file system (directories)
    #[arg(short = 'x', long)]
    pub one_file_system: bool,
    /// Compare files by size and time only (directories that are mounts of buckets)
    #[arg(long)]
    pub ignore_inode: bool,
    /// Which objects are meant.
    #[command(flatten)]
    pub select: Select,
}

/// What becomes of objects that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Unreadable {
    /// The run is incomplete (exit code 3); what could be read is kept.
    Fail,
    /// They are missing, and named in the report (exit code 3).
    Skip,
}

/// Lists snapshots.
#[derive(Clone, Debug, Args)]
pub struct Snapshots {
    /// Only these: latest, latest~1, an id
    pub snapshots: Vec<String>,
    /// Only the newest N of each source
    #[arg(long, value_name = "N")]
    pub latest: Option<usize>,
    /// Which snapshots.
    #[command(flatten)]
    pub filter: SnapshotFilter,
}

/// Removes snapshots.
#[derive(Clone, Debug, Args)]
pub struct Forget {
    /// Remove these, whatever the rules say: latest~3, an id, run:ID
    pub snapshots: Vec<String>,
    /// Keep the newest N; here and below, `unlimited` keeps all
    #[arg(short = 'l', long, value_name = "N", help_heading = "Rules")]
    pub keep_last: Option<Count>,
    /// Keep the newest of each of the last N hours that have any
    #[arg(long, value_name = "N", help_heading = "Rules")]
    pub keep_hourly: Option<Count>,
    /// Keep the newest of each of the last N days that have any
    #[arg(short = 'd', long, value_name = "N", help_heading = "Rules")]
    pub keep_daily: Option<Count>,
    /// Keep the newest of each of the last N weeks that have any
    #[arg(short = 'w', long, value_name = "N", help_heading = "Rules")]
    pub keep_weekly: Option<Count>,
    /// Keep the newest of each of the last N months that have any
    #[arg(short = 'm', long, value_name = "N", help_heading = "Rules")]
    pub keep_monthly: Option<Count>,
    /// Keep the newest of each of the last N years that have any
    #[arg(short = 'y', long, value_name = "N", help_heading = "Rules")]
    pub keep_yearly: Option<Count>,
    /// Keep all that are at most so much older than the newest, such as 1y6m14d12h
    #[arg(long, value_name = "AGE", help_heading = "Rules")]
    pub keep_within: Option<Age>,
    /// Keep the newest of each hour within this age
    #[arg(long, value_name = "AGE", help_heading = "Rules")]
    pub keep_within_hourly: Option<Age>,
    /// Keep the newest of each day within this age
    #[arg(long, value_name = "AGE", help_heading = "Rules")]
    pub keep_within_daily: Option<Age>,
    /// Keep the newest of each week within this age
    #[arg(long, value_name = "AGE", help_heading = "Rules")]
    pub keep_within_weekly: Option<Age>,
    /// Keep the newest of each month within this age
    #[arg(long, value_name = "AGE", help_heading = "Rules")]
    pub keep_within_monthly: Option<Age>,
    /// Keep the newest of each year within this age
    #[arg(long, value_name = "AGE", help_heading = "Rules")]
    pub keep_within_yearly: Option<Age>,
    /// Keep all with all of these tags, separated by commas (repeatable: with all of any list)
    #[arg(long, value_name = "TAG[,TAG]", help_heading = "Rules")]
    pub keep_tag: Vec<String>,
    /// Keep the newest N of those whose backup did not succeed
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Rules")]
    pub keep_incomplete: u32,
    /// By what snapshots are told apart before the rules are applied: some of host, paths, tags, or nothing
    #[arg(short = 'g', long, value_name = "LIST", default_value = "host,paths")]
    pub group_by: GroupBy,
    /// Without any rule, remove all snapshots of the --host, --path or --tag
    #[arg(long)]
    pub unsafe_allow_remove_all: bool,
    /// Show what would be removed, and remove nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Free what only the removed snapshots held
    #[arg(long)]
    pub prune: bool,
    /// How to prune.
    #[command(flatten)]
    pub pruning: Pruning,
    /// Which snapshots.
    #[command(flatten)]
    pub filter: SnapshotFilter,
}

/// Frees what no snapshot needs.
#[derive(Clone, Debug, Args)]
pub struct Prune {
    /// Show what would be done, and change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// How to prune.
    #[command(flatten)]
    pub pruning: Pruning,
}

/// How much a prune does.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Pruning")]
pub struct Pruning {
    /// How much that is unused may stay: 5%, 500M, 0 or unlimited
    #[arg(long, value_name = "SHARE|SIZE", default_value = "5%", value_parser = crate::units::parse_unused)]
    pub max_unused: Unused,
    /// Pack anew at most so much in this run, such as 50G
    #[arg(long, value_name = "SIZE", value_parser = crate::units::parse_size)]
    pub max_repack_size: Option<u64>,
    /// Put packs together that are much smaller than new ones
    #[arg(long)]
    pub repack_small: bool,
    /// Begin to pack nothing anew after this time, such as 2h; the next run goes on
    #[arg(long, value_name = "DURATION")]
    pub max_time: Option<jiff::SignedDuration>,
    /// Keep packs that no index names for this long: others may be about to name them
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    pub grace: jiff::SignedDuration,
}

/// Locks what snapshots need.
#[derive(Clone, Debug, Args)]
#[command(group(clap::ArgGroup::new("end").args(["until", "lasting"])))]
pub struct Protect {
    /// Lock until this time at least, such as 2027-11-01 or '2027-11-01 08:30:00' (local) or 2027-11-01T08:30:00Z
    #[arg(long, value_name = "TIME", value_parser = crate::units::parse_time)]
    pub until: Option<jiff::Timestamp>,
    /// Lock for so long from now at least, such as 30d or 1y6m; ends at a full hour, so that a run that goes on where
    /// another stopped asks for the same
    #[arg(long = "for", value_name = "AGE")]
    pub lasting: Option<Age>,
    /// Who may take the locks away before
    #[arg(long, value_name = "MODE", default_value = "governance", requires = "end")]
    pub mode: LockMode,
    /// Show what would be locked, and lock nothing
    #[arg(short = 'n', long, requires = "end")]
    pub dry_run: bool,
}

/// Who may take locks away before their end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LockMode {
    /// Whoever has the permission to override locks.
    Governance,
    /// Nobody, not even the owner of the account: this cannot be undone.
    Compliance,
}

/// Changes tags.
#[derive(Clone, Debug, Args)]
#[group(id = "change", required = true, multiple = true, args = ["set", "add", "remove"])]
pub struct Tag {
    /// Only these: latest, latest~1, an id, run:ID
    pub snapshots: Vec<String>,
    /// Put these in the place of all tags, separated by commas (repeatable); an empty one leaves none
    #[arg(long, value_name = "TAG[,TAG]", value_delimiter = ',', conflicts_with_all = ["add", "remove"])]
    pub set: Vec<String>,
    /// Add these, separated by commas (repeatable)
    #[arg(long, value_name = "TAG[,TAG]", value_delimiter = ',')]
    pub add: Vec<String>,
    /// Remove these, separated by commas (repeatable)
    #[arg(long, value_name = "TAG[,TAG]", value_delimiter = ',')]
    pub remove: Vec<String>,
    /// Show what would change, and change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Which snapshots.
    #[command(flatten)]
    pub filter: SnapshotFilter,
}

/// Lists contents.
#[derive(Clone, Debug, Args)]
pub struct Ls {
    /// latest, latest~1, an id, each with :path
    pub snapshot: String,
    /// Only what lies below these paths
    pub paths: Vec<String>,
    /// Show type, mode, size and time
    #[arg(short, long)]
    pub long: bool,
    /// Only the path itself and what lies directly in it
    #[arg(long)]
    pub no_recursion: bool,
    /// Show keys of the bucket instead of paths in the snapshot
    #[arg(long)]
    pub keys: bool,
    /// Which snapshots.
    #[command(flatten)]
    pub filter: SnapshotFilter,
}

/// Finds keys.
#[derive(Clone, Debug, Args)]
pub struct Find {
    /// Patterns as for --include
    #[arg(required = true)]
    pub patterns: Vec<String>,
    /// Only in these snapshots
    #[arg(short, long, value_name = "SNAPSHOT")]
    pub snapshot: Vec<String>,
    /// Patterns ignore upper and lower case
    #[arg(short, long)]
    pub ignore_case: bool,
    /// Show type, mode, size and time
    #[arg(short, long)]
    pub long: bool,
    /// Which snapshots.
    #[command(flatten)]
    pub filter: SnapshotFilter,
}

/// Compares snapshots.
#[derive(Clone, Debug, Args)]
pub struct Diff {
    /// The older snapshot
    pub old: String,
    /// The newer snapshot
    pub new: String,
    /// Show changes of attributes and times, too
    #[arg(long)]
    pub metadata: bool,
    /// Which snapshots.
    #[command(flatten)]
    pub filter: SnapshotFilter,
}

/// Restores.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Examples:
  cistern restore latest --repo s3://backups/orders --to s3://orders-copy
  cistern restore latest:/orders/2026 --repo s3://backups/orders --to ./orders
  cistern restore latest --to s3://orders --include '*.json' --dry-run

A bucket receives the original keys with all their attributes; a directory receives the paths of the
snapshot. Without a terminal, a restore that deletes needs --yes.")]
pub struct Restore {
    /// latest, latest~1, an id, each with :path
    pub snapshot: String,
    /// s3://bucket[/prefix], a directory, or file:///directory
    #[arg(short = 't', long, visible_alias = "target", value_name = "TARGET", value_hint = ValueHint::AnyPath)]
    pub to: OsString,
    /// What becomes of objects that are there already
    #[arg(long, value_name = "POLICY", default_value = "if-changed")]
    pub overwrite: OverwritePolicy,
    /// Delete what is in the target but not in the snapshot
    #[arg(long)]
    pub delete: bool,
    /// Replace the beginning of keys (repeatable)
    #[arg(long, value_name = "OLD=NEW", value_parser = crate::units::parse_pair)]
    pub remap: Vec<(String, String)>,
    /// Show the plan and stop
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Read back what was written
    #[arg(long)]
    pub verify: bool,
    /// Carry the plan out without asking
    #[arg(short, long)]
    pub yes: bool,
    /// How files are written to a directory
    #[arg(long, value_name = "WRITER", default_value = "auto")]
    pub writer: FileWriter,
    /// Restore set-uid bits and device nodes too
    #[arg(long)]
    pub privileged: bool,
    /// Which objects are meant.
    #[command(flatten)]
    pub select: Select,
    /// Which snapshots.
    #[command(flatten)]
    pub filter: SnapshotFilter,
}

/// What becomes of objects that are there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OverwritePolicy {
    /// Write every object.
    Always,
    /// Write what differs.
    IfChanged,
    /// Write what is newer in the snapshot.
    IfNewer,
    /// Leave what is there alone.
    Never,
}

/// How files are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FileWriter {
    /// A probe of the target decides.
    Auto,
    /// In any order.
    Random,
    /// In order, nothing but create, write, close (mounts of buckets).
    Sequential,
}

/// Compares with the live source.
#[derive(Clone, Debug, Args)]
pub struct Verify {
    /// latest, latest~1, an id
    pub snapshot: String,
    /// s3://bucket[/prefix] or a directory [default: where the snapshot was taken]
    #[arg(value_hint = ValueHint::AnyPath)]
    pub source: Option<OsString>,
    /// Read contents on both sides, too
    #[arg(long)]
    pub content: bool,
    /// Which objects are meant.
    #[command(flatten)]
    pub select: Select,
    /// Which snapshots.
    #[command(flatten)]
    pub filter: SnapshotFilter,
}

/// Checks the repository.
#[derive(Clone, Debug, Args)]
pub struct Check {
    /// Read and compare all data
    #[arg(long, conflicts_with = "read_data_subset")]
    pub read_data: bool,
    /// Read and compare some of the packs: a part of so many (2/7), a share of them (5%) or about a size (50G),
    /// these two chosen at random
    #[arg(long, value_name = "N/M|SHARE|SIZE", value_parser = crate::units::parse_subset)]
    pub read_data_subset: Option<ReadData>,
}

/// Counts.
#[derive(Clone, Debug, Args)]
pub struct Stats {
    /// Only these snapshots [default: all]
    pub snapshots: Vec<String>,
    /// Which snapshots.
    #[command(flatten)]
    pub filter: SnapshotFilter,
}

/// What to do with the passwords. Each opens the repository through a key of its own.
#[derive(Clone, Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum Key {
    /// List the keys; the one in use is marked
    List,
    /// Let another password open the repository, too
    Add(NewKey),
    /// Remove a key: its password opens the repository no more
    Remove(RemoveKey),
    /// Put a new password in the place of the one in use
    Passwd(NewKey),
}

/// A new password and its labels.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "New key")]
pub struct NewKey {
    /// File that holds the new password [default: it is asked for]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub new_password_file: Option<PathBuf>,
    /// Command that prints the new password
    #[arg(long, value_name = "COMMAND", value_hint = ValueHint::CommandString, conflicts_with = "new_password_file")]
    pub new_password_command: Option<String>,
    /// User name in the new key [default: this user]
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Host name in the new key [default: this host]
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
}

/// Removes a key.
#[derive(Clone, Debug, Args)]
pub struct RemoveKey {
    /// The beginning of the key's id, as `cistern key list` shows it
    pub id: String,
}

/// What is mended. Each shows its plan first; whatever is removed although it could not be read is kept below
/// cistern/damaged/ in the repository.
#[derive(Clone, Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum Repair {
    /// Have the index say what packs hold: first of all
    Index(RepairIndex),
    /// Save what is whole in damaged packs
    Packs(RepairPacks),
    /// Write snapshots without what is lost
    Snapshots(RepairSnapshots),
}

/// Mends the index.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Packs that no index names are adopted, packs that do not exist are forgotten, and index files that cannot be
read are replaced by what the packs say. Exit code 3: some of what the index named is lost, or a pack says
nothing; `cistern repair packs` and `cistern repair snapshots` follow.")]
pub struct RepairIndex {
    /// Read the headers of all packs, also of those that fit the index
    #[arg(long)]
    pub read_all_packs: bool,
    /// Show what would be done, and change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

/// Saves what is whole in packs.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Without ids, all data is read to find the damaged packs. What is whole in them is written into new packs; each
damaged pack is copied as it is to cistern/damaged/ in the repository before it goes. Exit code 3: something is
lost. Without a terminal, a repair that loses something needs --yes.

A backup of what the sources still have stores again what is lost: run one before `cistern repair snapshots`.")]
pub struct RepairPacks {
    /// Ids of damaged packs, as `cistern check --read-data` names them [default: all are read]
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
    /// Show what would be done, and change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Carry the plan out without asking
    #[arg(short, long)]
    pub yes: bool,
}

/// Writes snapshots anew.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
A file that has lost contents keeps the rest under the name NAME.repaired, a directory that cannot be read
becomes an empty one. New snapshots carry the tags `repaired` and `partial`. The index and packs are repaired
first: data is not read. Exit code 3: a snapshot is damaged. Without a terminal, --forget needs --yes.")]
pub struct RepairSnapshots {
    /// Remove the damaged snapshots once the new ones are written, and those of which nothing can be read
    #[arg(long)]
    pub forget: bool,
    /// Show what would be done, and change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Carry the plan out without asking
    #[arg(short, long)]
    pub yes: bool,
}

/// Removes locks.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
A lock is stale if it is older than 30 minutes, or if its process ran on this host and is not alive any
more. With --all every lock goes, also one whose holder is at work: make sure that nobody is. Without a
terminal, --all needs --yes.")]
pub struct Unlock {
    /// Remove locks that are not stale, too
    #[arg(long)]
    pub all: bool,
    /// Remove them without asking
    #[arg(short, long)]
    pub yes: bool,
}

/// Checks manifests.
#[derive(Clone, Debug, Args)]
pub struct Validate {
    /// Files, directories with files (*.yaml, *.yml, *.json), or - for standard input
    #[arg(required = true, value_name = "FILE", value_hint = ValueHint::AnyPath)]
    pub files: Vec<PathBuf>,
    /// Everything that is referred to must be among the documents
    #[arg(long)]
    pub strict: bool,
}

/// Runs the demo.
#[derive(Clone, Debug, Args)]
pub struct Demo {
    /// Leave the server running and print the commands to try next
    #[arg(long)]
    pub keep: bool,
    /// Number of objects in the bucket
    #[arg(long, value_name = "N", default_value_t = 4_000)]
    pub objects: usize,
}

/// Prints completions.
#[derive(Clone, Debug, Args)]
pub struct Completions {
    /// The shell
    pub shell: clap_complete::Shell,
}
