//! `cistern unlock`: removes locks that nobody holds any more. It takes none itself.

use cistern_repository::HeldLock;
use serde_json::{Value, json};

use super::{Outcome, Shell, identity};
use crate::args;
use crate::failure::Failure;
use crate::listing::{local, short, shown};
use crate::units::{count, counted};

pub async fn run(shell: &Shell, args: args::Unlock) -> Outcome {
    let repository = shell.repository().await?;
    let locks = repository.locks(&identity()).await?;
    let in_doubt = locks.iter().filter(|lock| !lock.is_stale).count() as u64;
    if args.all && in_doubt > 0 {
        approve(shell, &locks, in_doubt).await?;
    }
    let mut removed = 0;
    for lock in &locks {
        let goes = args.all || lock.is_stale;
        if goes {
            repository.remove_lock(lock).await?;
            removed += 1;
        }
        if shell.ui.is_json() {
            shell.ui.object(&lock_json(lock, goes));
        } else {
            shell.ui.say(format!("{:<11} {}", if goes { "removed" } else { "stays" }, described(lock)));
        }
    }
    let stay = locks.len() as u64 - removed;
    if shell.ui.is_json() {
        shell.ui.object(&json!({"message_type": "summary", "removed": removed, "stay": stay}));
        return Ok(0);
    }
    shell.ui.say(match (removed, stay) {
        (0, 0) => "no locks".to_owned(),
        (_, 0) => format!("removed {}", counted(removed, "lock")),
        (0, _) => format!("nothing to remove: no lock is stale, {} may be in use", count(stay)),
        _ => format!("removed {}, {} more may be in use", counted(removed, "lock"), count(stay)),
    });
    if stay > 0 {
        shell.ui.note("`cistern unlock --all` removes these, too, once nobody is at work");
    }
    Ok(0)
}

/// Shows the locks that somebody may still hold, and asks.
///
/// # Errors
/// No, or nobody to ask.
async fn approve(shell: &Shell, locks: &[HeldLock], in_doubt: u64) -> Result<(), Failure> {
    if !shell.ui.is_json() {
        for lock in locks.iter().filter(|lock| !lock.is_stale) {
            shell.ui.result(format!("not stale   {}", described(lock)));
        }
    }
    match shell.ui.approval("remove locks of those who may be at work?").await {
        Some(true) => Ok(()),
        Some(false) => Err(cistern_engine::Error::Refused.into()),
        None => Err(Failure::invalid(format!(
            "{} may be in use, and there is nobody to ask",
            counted(in_doubt, "lock")
        ))
        .hint("--yes removes all locks without asking; without --all, the stale ones are removed")),
    }
}

/// Who holds a lock, since when, and whether it is exclusive.
fn described(lock: &HeldLock) -> String {
    let id = short(&lock.id);
    match &lock.file {
        Ok(file) => format!(
            "{id}  {:<9}  {}@{}, process {}, since {}",
            if file.exclusive { "exclusive" } else { "shared" },
            shown(file.username.as_bytes()),
            shown(file.hostname.as_bytes()),
            file.pid,
            local(&file.time),
        ),
        Err(error) => format!("{id}  unreadable: {error}"),
    }
}

fn lock_json(lock: &HeldLock, removed: bool) -> Value {
    let mut value = match &lock.file {
        Ok(file) => serde_json::to_value(file).unwrap_or(Value::Null),
        Err(error) => json!({"error": error.to_string()}),
    };
    value["message_type"] = "lock".into();
    value["id"] = lock.id.to_string().into();
    value["short_id"] = short(&lock.id).into();
    value["stale"] = lock.is_stale.into();
    value["removed"] = removed.into();
    value
}
