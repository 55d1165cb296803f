//! `cistern validate`: checks manifests without a cluster.

use std::io::Read;
use std::path::{Path, PathBuf};

use cistern_api::document::MAX_TEXT;
use cistern_api::validate::validate;
use serde_json::json;

use super::{Outcome, Shell};
use crate::args;
use crate::failure::Failure;
use crate::units::counted;

pub fn run(shell: &Shell, args: &args::Validate) -> Outcome {
    let mut texts = Vec::new();
    for file in &args.files {
        for path in files(file)? {
            texts.push((path.display().to_string(), text(&path)?));
        }
    }
    let found = validate(&texts);
    if found.documents == 0 && found.findings.is_empty() {
        return Err(Failure::invalid("there is no document of Cistern's kinds"));
    }
    let (mut wrong, mut missing) = (0, 0);
    for finding in &found.findings {
        let counts = args.strict || !finding.problem.missing;
        *(if counts { &mut wrong } else { &mut missing }) += 1;
        if shell.ui.is_json() {
            let mut line = serde_json::to_value(finding).expect("a finding has string keys");
            line["message_type"] = if counts { "problem" } else { "missing" }.into();
            shell.ui.object(&line);
        } else if counts {
            shell.ui.result(finding.to_string());
        } else {
            shell.ui.note(format!("note: {finding} among these documents"));
        }
    }
    if shell.ui.is_json() {
        shell.ui.summary(&json!({ "documents": found.documents, "problems": wrong, "missing": missing }), []);
    } else {
        shell.ui.say(format!(
            "{}, {}",
            counted(found.documents as u64, "document"),
            if wrong == 0 { "nothing wrong".to_owned() } else { counted(wrong, "problem") }
        ));
    }
    Ok(if wrong == 0 { 0 } else { 2 })
}

/// The files that a name on the command line means: itself, or the manifests that lie right in the directory.
fn files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let failed = |error| Failure::io(format!("reading the directory {}", path.display()), error);
    let mut all = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let ending = file.extension().and_then(|ending| ending.to_str());
        if matches!(ending, Some("yaml" | "yml" | "json")) && file.is_file() {
            all.push(file);
        }
    }
    if all.is_empty() {
        return Err(Failure::invalid(format!("there are no manifests in {}", path.display())));
    }
    all.sort();
    Ok(all)
}

/// The text of a file or of standard input, as long as it is no longer than manifests are.
fn text(path: &Path) -> Result<String, Failure> {
    let failed = |error| Failure::io(format!("reading {}", path.display()), error);
    let mut text = String::new();
    // One byte more than is read shows a text that is too long.
    let limit = MAX_TEXT as u64 + 1;
    match path.to_str() {
        Some("-") => std::io::stdin().take(limit).read_to_string(&mut text),
        _ => std::fs::File::open(path).map_err(failed)?.take(limit).read_to_string(&mut text),
    }
    .map_err(failed)?;
    Ok(text)
}
