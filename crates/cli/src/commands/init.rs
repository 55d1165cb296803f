//! `cistern init`: creates a repository.

use cistern_repository::Repository;
use serde_json::json;

use super::{Outcome, Shell, identity};
use crate::args;
use crate::failure::Failure;
use crate::from::From;

pub async fn run(shell: &Shell, args: args::Init) -> Outcome {
    let address = shell.access.repository()?;
    let polynomial = match (args.copy_chunker_params, args.from.from_repo.is_some()) {
        (true, _) => {
            let from = From::new(&shell.access, args.from)?.repository().await?;
            Some(from.config().chunker_polynomial)
        }
        (false, true) => {
            return Err(Failure::invalid("--from-repo says nothing without --copy-chunker-params"));
        }
        (false, false) => None,
    };
    let bucket = shell.repository_bucket(&address).await?;
    let password = shell.access.secret(true).await?;
    let options = shell.access.options(&address);
    let repository = Repository::init_like(bucket, &password, &identity(), options, polynomial).await?;
    if shell.ui.is_json() {
        shell.ui.object(&json!({
            "message_type": "initialized",
            "id": repository.id().to_string(),
            "repository": address.to_string(),
        }));
    } else {
        shell.ui.say(format!("created repository {} at {address}", &repository.id().to_string()[..10]));
        shell.ui.say("Keep the password in a safe place: without it, nothing in the repository can be read.");
    }
    Ok(0)
}
