//! `cistern verify`: is the snapshot what the source holds now?

use cistern_bucket::Address;
use cistern_engine::{Error, Report, Task, Verify, VerifyReport};

use super::backup::{exceptions, requests};
use super::{Outcome, Shell, selection, selector};
use crate::args;
use crate::failure::Failure;
use crate::ui::Ui;
use crate::units::{clock, counted, size};

pub async fn run(shell: &Shell, args: args::Verify) -> Outcome {
    let access = &shell.access;
    let source: Address = match &args.source {
        Some(text) => access.address(text)?,
        None => recorded_source(shell, &args).await?,
    };
    let task = Verify {
        repository: access.repository()?,
        snapshot: selector(&args.snapshot, &args.filter),
        source,
        root: None,
        selection: selection(&args.select)?,
        content: args.content,
    };
    let result = cistern_engine::run(&Task::Verify(task), &shell.cx()).await;
    shell.ui.clear();
    match result {
        Ok(Report::Verify(report)) => {
            print(&shell.ui, &report);
            Ok(if report.exceptions.total() > 0 { 3 } else { 0 })
        }
        Ok(_) => Err(Failure::new(cistern_bucket::Class::Broken, "a comparison yielded another report")),
        Err(Error::Incomplete { why, report }) => {
            if let Report::Verify(report) = &*report {
                print(&shell.ui, report);
            }
            Err(Error::Incomplete { why, report }.into())
        }
        Err(error) => Err(shell.access.failure(error)),
    }
}

/// Where the snapshot was taken: a bucket says so in its attribute; anything else is a directory of this host.
async fn recorded_source(shell: &Shell, args: &args::Verify) -> Result<Address, Failure> {
    let repository = shell.repository().await?;
    let snapshots = repository.snapshots().await?;
    let selected = cistern_engine::resolve(&snapshots, &selector(&args.snapshot, &args.filter))?;
    let ask = |why: String| {
        Failure::invalid(format!("the snapshot does not tell its source: {why}"))
            .hint("name it: cistern verify SNAPSHOT s3://bucket/prefix")
    };
    let (_, first) = selected.run.parts.first().ok_or_else(|| ask("it has no parts".into()))?;
    let path = first.paths.first().ok_or_else(|| ask("it has no path".into()))?;
    let reader = repository.reader(repository.index().await?);
    let marked = cistern_engine::parts::marked(&reader, first).await?;
    if let Some(source) = marked.and_then(|(_, info)| info.source()) {
        return Ok(source);
    }
    if first.hostname == super::identity().hostname {
        return shell.access.address(path.as_ref());
    }
    Err(ask(format!("it is {path} on {}", first.hostname)))
}

fn print(ui: &Ui, report: &VerifyReport) {
    let took = report.ended.duration_since(report.started).unsigned_abs();
    if ui.is_json() {
        return ui.summary(report, [("seconds", took.as_secs_f64().into())]);
    }
    ui.say(format!(
        "equal       {}, {} ({})",
        counted(report.objects_equal, "object"),
        size(report.bytes_equal),
        if report.content { "contents compared" } else { "by listing" }
    ));
    exceptions(ui, &report.exceptions);
    let asked = requests(&report.source_requests);
    if !asked.is_empty() {
        ui.say(format!("source      {asked}"));
    }
    ui.say(match report.exceptions.total() {
        0 => format!("verified    the snapshot is what the source holds ({})", clock(took)),
        n => format!("verified    {} ({})", counted(n, "difference"), clock(took)),
    });
}
