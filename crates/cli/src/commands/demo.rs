//! `cistern demo`: the main job, on a bucket of its own that an S3 server in this process holds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use cistern_bucket::{
    Address, Attributes, Bucket, Credentials, GetOptions, Key, ListRequest, PutOptions, S3, S3Config, Verb,
};
use cistern_engine::{
    Access, Backup, BackupReport, Note, Progress, Report, Requests, Restore, Role, Status, Task,
};
use cistern_repository::{Options, Repository};
use cistern_testkit::{Server, objects};
use comfy_table::CellAlignment;
use futures::StreamExt;
use secrecy::SecretString;
use serde_json::json;

use super::{Outcome, Shell, identity};
use crate::args;
use crate::failure::Failure;
use crate::listing;
use crate::ui::Ui;
use crate::units::{count, counted, size};

const SOURCE: &str = "orders";
const REPOSITORY: &str = "backups";
const PASSWORD: &str = "demo";
const SEED: u64 = 2026;

/// Every key with its contents and attributes.
type Contents = BTreeMap<Key, (Bytes, Attributes)>;

pub async fn run(shell: &Shell, args: args::Demo) -> Outcome {
    let ui = &*shell.ui;
    let started = Instant::now();
    let server = Server::start().map_err(|e| Failure::io("starting the demo's S3 server".to_owned(), e))?;
    let demo = Demo::new(&server)?;
    step(ui, &format!("An S3 server listens on {} (in this process).", server.endpoint()));
    let mut rows = Rows::default();

    demo.source.create().await?;
    demo.repository.create().await?;
    let odd = (args.objects / 20).clamp(50, 10_000);
    let all = objects::natural(SEED, args.objects)
        .chain(objects::large(SEED, 4, 24 << 20))
        .chain(objects::odd(SEED, odd));
    let refused = objects::fill(&*demo.source, all).await?;
    let before = contents(&demo.memory).await?;
    let bytes: usize = before.values().map(|(content, _)| content.len()).sum();
    step(
        ui,
        &format!(
            "Filled s3://{SOURCE} with {} ({}): headers, metadata, tags, four large ones,\n  and {} hostile keys such as {}.",
            counted(before.len() as u64, "object"),
            size(bytes as u64),
            count(odd as u64),
            hostile_examples(&before),
        ),
    );
    if !refused.is_empty() {
        return Err(Failure::new(cistern_bucket::Class::Broken, "the demo's server refused keys"));
    }

    let access = cistern_engine::repository_bucket(&repository_address(), Role::Repository, &demo).await?;
    Repository::init(access, &SecretString::from(PASSWORD), &identity(), Options::default()).await?;
    step(ui, "Created a repository at s3://backups/orders.");

    let cx = demo.cx(shell);
    let (report, took) = backup(&cx).await?;
    step(ui, &format!("Backed it up: {}", summary(&report)));
    rows.backup(&demo, "first backup", &report, took).await?;

    let (report, took) = backup(&cx).await?;
    let read = report.source_requests.by_kind.get("get").copied().unwrap_or(0);
    step(
        ui,
        &format!(
            "Backed it up again, unchanged: {} objects read, {}.",
            count(read),
            super::backup::requests(&report.source_requests)
        ),
    );
    rows.backup(&demo, "unchanged", &report, took).await?;
    expect(read == 0 && report.bytes_read == 0, "an unchanged object was read")?;

    let changed = change(&demo, &before).await?;
    let before = contents(&demo.memory).await?;
    let (report, took) = backup(&cx).await?;
    step(ui, &format!("Changed {}; backed it up: {}", counted(changed, "object"), summary(&report)));
    rows.backup(&demo, "1 % changed", &report, took).await?;

    let keys: Vec<Key> = before.keys().cloned().collect();
    for outcome in demo.source.delete_many(&keys).await {
        outcome.result?;
    }
    expect(contents(&demo.memory).await?.is_empty(), "the bucket is not empty")?;
    step(ui, &format!("Deleted all {} from s3://{SOURCE}.", counted(keys.len() as u64, "object")));

    let restore = Restore::new(repository_address(), "latest", source_address());
    let began = Instant::now();
    let report = cistern_engine::run(&Task::Restore(restore), &cx).await?;
    let took = began.elapsed();
    let Report::Restore(report) = report else { return Err(broken("a restore yielded another report")) };
    ui.clear();
    step(
        ui,
        &format!("Restored {} ({}).", counted(report.objects_written, "object"), size(report.bytes_written)),
    );
    let written = (report.objects_written, report.bytes_written);
    rows.add(&demo, "restore", written, report.target_requests.clone(), took).await?;

    let after = contents(&demo.memory).await?;
    compare(&before, &after)?;
    step(
        ui,
        &format!(
            "Compared every key, byte and attribute of {}: all equal.",
            counted(after.len() as u64, "object")
        ),
    );

    if ui.is_json() {
        rows.json(ui);
    } else {
        ui.say("");
        ui.say(rows.table());
        ui.say("");
        ui.say(format!("All of it took {:.1} s.", started.elapsed().as_secs_f64()));
    }
    if args.keep {
        keep(shell, &server).await?;
    }
    server.stop();
    Ok(0)
}

fn step(ui: &Ui, line: &str) {
    ui.say(format!("• {line}"));
}

fn broken(text: &str) -> Failure {
    Failure::new(cistern_bucket::Class::Broken, text)
}

fn expect(holds: bool, otherwise: &str) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(broken(otherwise)) }
}

fn source_address() -> Address {
    Address::S3 { endpoint: None, bucket: SOURCE.to_owned(), prefix: Key::default() }
}

fn repository_address() -> Address {
    Address::S3 { endpoint: None, bucket: REPOSITORY.to_owned(), prefix: Key::from("orders") }
}

fn hostile_examples(contents: &Contents) -> String {
    let wanted = ["//", "/../", "\n", "%", "e\u{301}"];
    let examples: Vec<String> = wanted
        .iter()
        .filter_map(|part| {
            contents.keys().find(|k| k.len() < 24 && k.as_str().is_some_and(|t| t.contains(part)))
        })
        .map(|key| format!("“{key}”"))
        .take(3)
        .collect();
    examples.join(", ")
}

/// Shows the live line only: the demo tells the rest in its own words.
struct LiveLine(Arc<Ui>);

impl Progress for LiveLine {
    fn status(&self, status: &Status) {
        self.0.live(status);
    }

    fn note(&self, _note: Note) {}
}

/// The demo's buckets, as the engine sees them.
#[derive(Clone)]
struct Demo {
    source: Arc<S3>,
    repository: Arc<S3>,
    /// The source bucket itself, to look into it without the code that is on show.
    memory: Arc<cistern_bucket::Memory>,
}

impl Demo {
    fn new(server: &Server) -> Result<Self, Failure> {
        let connect = |bucket: &str| -> Result<Arc<S3>, Failure> {
            let mut config = S3Config::new(bucket);
            config.endpoint = server.endpoint().parse().ok();
            config.credentials = Credentials::fixed(Server::ACCESS_KEY, server.secret_key());
            Ok(Arc::new(S3::connect(config)?))
        };
        Ok(Demo { source: connect(SOURCE)?, repository: connect(REPOSITORY)?, memory: server.bucket(SOURCE) })
    }

    fn cx(&self, shell: &Shell) -> cistern_engine::Cx {
        cistern_engine::Cx {
            access: Arc::new(self.clone()),
            progress: Arc::new(LiveLine(shell.ui.clone())),
            cancel: shell.cancel.clone(),
            identity: identity(),
            concurrency: 32,
            lock_wait: Duration::ZERO,
        }
    }

    /// Bytes that the repository takes.
    async fn repository_size(&self) -> Result<u64, Failure> {
        let mut request = ListRequest { prefix: Key::from("orders/"), ..ListRequest::default() };
        let mut total = 0;
        loop {
            let page = self.repository.list(&request).await?;
            total += page.entries.iter().map(|entry| entry.size).sum::<u64>();
            match page.next {
                Some(token) => request.token = Some(token),
                None => return Ok(total),
            }
        }
    }
}

#[async_trait]
impl Access for Demo {
    async fn bucket(&self, _address: &Address, role: Role) -> cistern_bucket::Result<Arc<dyn Bucket>> {
        Ok(match role {
            Role::Repository => self.repository.clone(),
            Role::Source | Role::Target => self.source.clone(),
        })
    }

    async fn password(&self, _repository: &Address) -> cistern_engine::Result<SecretString> {
        Ok(SecretString::from(PASSWORD))
    }

    fn options(&self, _repository: &Address) -> Options {
        Options::default()
    }
}

async fn backup(cx: &cistern_engine::Cx) -> Result<(BackupReport, Duration), Failure> {
    let task = Task::Backup(Backup::new(source_address(), repository_address(), "demo"));
    let began = Instant::now();
    match cistern_engine::run(&task, cx).await? {
        Report::Backup(report) => Ok((report, began.elapsed())),
        _ => Err(broken("a backup yielded another report")),
    }
}

/// Everything in a bucket, read behind the back of the code that is on show.
async fn contents(bucket: &cistern_bucket::Memory) -> Result<Contents, Failure> {
    let mut request = ListRequest::default();
    let mut all = Contents::new();
    loop {
        let page = bucket.list(&request).await?;
        let mut reads = futures::stream::iter(page.entries)
            .map(|entry| async move {
                let got = bucket.get(&entry.key, &GetOptions::default()).await?;
                let mut attributes = got.attributes;
                attributes.tags = Some(bucket.tags(&entry.key).await?);
                let content = got.body.bytes().await?;
                Ok::<_, cistern_bucket::Error>((entry.key, (content, attributes)))
            })
            .buffered(16);
        while let Some(read) = reads.next().await {
            let (key, value) = read?;
            all.insert(key, value);
        }
        drop(reads);
        match page.next {
            Some(token) => request.token = Some(token),
            None => return Ok(all),
        }
    }
}

/// Replaces every hundredth object, with one of the same size among them, adds one key that sorts first, and
/// deletes one.
async fn change(demo: &Demo, contents: &Contents) -> Result<u64, Failure> {
    let mut changed = 0;
    for (i, (key, (content, attributes))) in contents.iter().enumerate().filter(|(i, _)| i % 100 == 7) {
        let mut new = content.to_vec();
        match new.first_mut() {
            Some(first) if i % 200 == 7 => *first ^= 1,
            _ => new.extend_from_slice(b" changed"),
        }
        let options = PutOptions { attributes: attributes.clone(), ..PutOptions::default() };
        demo.source.put(key, &[Bytes::from(new)], &options).await?;
        changed += 1;
    }
    demo.source
        .put(&Key::from("!first"), &[Bytes::from_static(b"sorts first")], &PutOptions::default())
        .await?;
    if let Some(key) = contents.keys().nth(3) {
        demo.source.delete(key).await?;
    }
    Ok(changed + 2)
}

fn compare(before: &Contents, after: &Contents) -> Result<(), Failure> {
    for (key, (content, attributes)) in before {
        let (new_content, new_attributes) =
            after.get(key).ok_or_else(|| broken(&format!("the key {key} is missing")))?;
        expect(content == new_content, &format!("the contents of {key} differ"))?;
        expect(attributes == new_attributes, &format!("the attributes of {key} differ"))?;
    }
    expect(before.len() == after.len(), "there are keys that were not there before")
}

fn summary(report: &BackupReport) -> String {
    format!(
        "{} new, {} changed, {} unchanged; {} read, {} stored.",
        count(report.objects_new),
        count(report.objects_changed),
        count(report.objects_unchanged),
        size(report.bytes_read),
        size(report.stored.bytes_stored)
    )
}

/// The table at the end.
#[derive(Default)]
struct Rows(Vec<Row>);

struct Row {
    step: &'static str,
    objects: u64,
    bytes: u64,
    requests: Requests,
    seconds: f64,
    repository: u64,
}

impl Rows {
    /// A row for a backup: what it read from the source.
    async fn backup(
        &mut self,
        demo: &Demo,
        step: &'static str,
        report: &BackupReport,
        took: Duration,
    ) -> Result<(), Failure> {
        let read = report.objects_new + report.objects_changed;
        self.add(demo, step, (read, report.bytes_read), report.source_requests.clone(), took).await
    }

    async fn add(
        &mut self,
        demo: &Demo,
        step: &'static str,
        (objects, bytes): (u64, u64),
        requests: Requests,
        took: Duration,
    ) -> Result<(), Failure> {
        let repository = demo.repository_size().await?;
        self.0.push(Row { step, objects, bytes, requests, seconds: took.as_secs_f64(), repository });
        Ok(())
    }

    fn table(&self) -> String {
        let heads = ["", "Objects", "Bytes", "LIST", "GET", "HEAD", "PUT", "other", "Seconds", "Repository"];
        let mut table = listing::table(heads);
        for row in &self.0 {
            let of = |verb: Verb| row.requests.by_kind.get(verb.name()).copied().unwrap_or(0);
            let shown = [Verb::List, Verb::Get, Verb::Head, Verb::Put];
            let all: u64 = row.requests.by_kind.values().sum();
            let mut cells = vec![row.step.to_owned(), count(row.objects), size(row.bytes)];
            cells.extend(shown.iter().map(|verb| count(of(*verb))));
            cells.push(count(all - shown.iter().map(|verb| of(*verb)).sum::<u64>()));
            cells.push(format!("{:.2}", row.seconds));
            cells.push(size(row.repository));
            table.add_row(cells);
        }
        for column in 1..heads.len() {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.to_string()
    }

    fn json(&self, ui: &Ui) {
        for row in &self.0 {
            ui.object(&json!({
                "message_type": "step",
                "step": row.step,
                "objects": row.objects,
                "bytes": row.bytes,
                "requests": row.requests,
                "seconds": row.seconds,
                "repository_bytes": row.repository,
            }));
        }
        ui.object(&json!({"message_type": "summary", "equal": true}));
    }
}

/// Leaves the server to the user until an interrupt.
async fn keep(shell: &Shell, server: &Server) -> Result<(), Failure> {
    let environment = [
        ("AWS_ENDPOINT_URL", server.endpoint().to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ACCESS_KEY_ID", Server::ACCESS_KEY.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", server.secret_key().to_owned()),
        ("CISTERN_REPOSITORY", format!("s3://{REPOSITORY}/orders")),
        ("CISTERN_PASSWORD", PASSWORD.to_owned()),
    ];
    if shell.ui.is_json() {
        let environment: BTreeMap<_, _> = environment.into_iter().collect();
        shell.ui.object(&json!({"message_type": "serving", "environment": environment}));
        shell.cancel.cancelled().await;
        return Ok(());
    }
    // Whoever ran this with cargo has no `cistern` on the path.
    let program = std::env::current_exe().map_err(|e| Failure::io("finding this program".to_owned(), e))?;
    let program = program.display();
    let exports: Vec<String> =
        environment.iter().map(|(name, value)| format!("  export {name}={value}")).collect();
    let lines = [
        String::new(),
        "The server goes on until you interrupt this. In another terminal, try:".to_owned(),
        String::new(),
        exports.join("\n"),
        String::new(),
        format!("  alias cistern='{program}'"),
        "  cistern snapshots".to_owned(),
        "  cistern diff latest~1 latest".to_owned(),
        "  cistern ls latest --keys | head".to_owned(),
        "  cistern restore latest --to ./restored".to_owned(),
        format!("  cistern verify latest s3://{SOURCE}"),
        format!(
            "  RESTIC_PASSWORD={PASSWORD} restic -r s3:{}/{REPOSITORY}/orders check --read-data",
            server.endpoint()
        ),
    ];
    for line in lines {
        shell.ui.result(line);
    }
    shell.cancel.cancelled().await;
    Ok(())
}
