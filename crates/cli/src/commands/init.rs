//! `cistern init`: creates a repository.

use cistern_repository::Repository;
use serde_json::json;

use super::{Outcome, Shell, identity};

pub async fn run(shell: &Shell) -> Outcome {
    let address = shell.access.repository()?;
    let bucket = shell.repository_bucket(&address).await?;
    let password = shell.access.secret(true).await?;
    let options = shell.access.options(&address);
    let repository = Repository::init(bucket, &password, &identity(), options).await?;
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
