//! `cistern key`: lists, adds, removes and changes the passwords that open the repository.

use cistern_repository::{LockKind, NewKey, Repository, StoredKey};
use serde_json::{Value, json};

use super::{Outcome, Shell, identity};
use crate::args;
use crate::failure::Failure;
use crate::listing::{self, columns, local, short, shown};
use crate::units::counted;

pub async fn run(shell: &Shell, verb: args::Key) -> Outcome {
    match verb {
        args::Key::List => shell.unless_interrupted(list(shell)).await,
        args::Key::Add(new) => add(shell, new).await,
        args::Key::Remove(args) => remove(shell, &args.id).await,
        args::Key::Passwd(new) => change(shell, new).await,
    }
}

async fn list(shell: &Shell) -> Outcome {
    let keys = shell.repository().await?.keys().await?;
    if shell.ui.is_json() {
        shell.ui.object(&keys.iter().map(key_json).collect::<Vec<Value>>());
    } else {
        shell.ui.result(table(&keys));
        shell.ui.say(counted(keys.len() as u64, "key"));
    }
    let mut code = 0;
    for (id, error) in keys.iter().filter_map(|key| Some((key.id, key.file.as_ref().err()?))) {
        shell.ui.warn(format!("key {} cannot be read: {error}", short(&id)));
        code = 3;
    }
    Ok(code)
}

/// As restic's `key list --json` shows it, with `error` in the place of what cannot be read.
fn key_json(key: &StoredKey) -> Value {
    let mut value = json!({"current": key.is_current, "id": key.id.to_string(), "short_id": short(&key.id)});
    match &key.file {
        Ok(file) => {
            value["userName"] = file.username.clone().into();
            value["hostName"] = file.hostname.clone().into();
            value["created"] = file.created.as_ref().map(local).into();
        }
        Err(error) => value["error"] = error.to_string().into(),
    }
    value
}

fn table(keys: &[StoredKey]) -> String {
    let mut table = listing::table([" ID", "User", "Host", "Created"]);
    for key in keys {
        let id = format!("{}{}", if key.is_current { '*' } else { ' ' }, short(&key.id));
        // Whoever wrote the key chose the labels: they must not steer the terminal.
        let label = |text: &str| shown(text.as_bytes());
        table.add_row(match &key.file {
            Ok(file) => {
                let created = file.created.as_ref().map_or_else(String::new, local);
                [id, label(&file.username), label(&file.hostname), created]
            }
            Err(_) => [id, String::new(), String::new(), "cannot be read".to_owned()],
        });
    }
    columns(&table)
}

async fn add(shell: &Shell, args: args::NewKey) -> Outcome {
    let (repository, new) = shell.unless_interrupted(prepared(shell, args)).await?;
    let lock = cistern_engine::lock_as(&repository, LockKind::Shared, &shell.cx()).await?;
    let added = repository.add_key(&new, &lock).await;
    lock.release().await;
    let id = added?;
    if shell.ui.is_json() {
        let id = id.to_string();
        shell.ui.object(&json!({"message_type": "key_added", "id": id, "short_id": &id[..8]}));
    } else {
        shell.ui.say(format!("added key {}: the new password opens the repository, too", short(&id)));
    }
    Ok(0)
}

async fn remove(shell: &Shell, wanted: &str) -> Outcome {
    let repository = shell.unless_interrupted(shell.repository()).await?;
    let lock = cistern_engine::lock_as(&repository, LockKind::Exclusive, &shell.cx()).await?;
    let removed = repository.remove_key(wanted, &lock).await;
    lock.release().await;
    let id = removed?;
    if shell.ui.is_json() {
        let id = id.to_string();
        shell.ui.object(&json!({"message_type": "key_removed", "id": id, "short_id": &id[..8]}));
    } else {
        shell.ui.say(format!("removed key {}", short(&id)));
    }
    Ok(0)
}

async fn change(shell: &Shell, args: args::NewKey) -> Outcome {
    let (repository, new) = shell.unless_interrupted(prepared(shell, args)).await?;
    let lock = cistern_engine::lock_as(&repository, LockKind::Exclusive, &shell.cx()).await?;
    let changed = repository.change_key(&new, &lock).await;
    lock.release().await;
    let (id, old) = (changed?, repository.key_id());
    if shell.ui.is_json() {
        let id = id.to_string();
        shell.ui.object(&json!({
            "message_type": "password_changed",
            "id": id,
            "short_id": &id[..8],
            "removed": old.to_string(),
        }));
    } else {
        shell.ui.say(format!("changed the password: key {} is in the place of {}", short(&id), short(&old)));
        shell.ui.say("Keep it in a safe place: without it, nothing in the repository can be read.");
    }
    Ok(0)
}

/// The repository, opened with the current password, and what is to become a key of it. All questions are asked
/// before the repository is locked.
async fn prepared(shell: &Shell, args: args::NewKey) -> Result<(Repository, NewKey), Failure> {
    let repository = shell.repository().await?;
    let who = identity();
    let password = shell.access.new_secret(args.clone()).await?;
    let username = args.user.unwrap_or(who.username);
    Ok((repository, NewKey { password, username, hostname: args.host.unwrap_or(who.hostname) }))
}
