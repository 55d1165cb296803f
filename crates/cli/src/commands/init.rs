//! `cistern init`: creates a repository.

use cistern_repository::Repository;
use serde_json::json;

use super::{Outcome, Shell, identity};
use crate::password;

pub async fn run(shell: &Shell) -> Outcome {
    let access = shell.access();
    let address = access.repository()?;
    let bucket = cistern_engine::repository_bucket(&address, &access).await?;
    let password = password::find(&shell.global, &shell.environment, true)?;
    let options = cistern_engine::Access::options(&access, &address);
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
