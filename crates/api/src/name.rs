//! Names of objects that we create: derived, never random, so that creating one twice collides harmlessly.

/// Longest name of most objects.
const MAX: usize = 63;
/// Longest name of a CronJob, whose Jobs' names are longer.
const MAX_CRON_JOB: usize = 52;

/// The parts joined with `-`. Of what is longer than 63, the first 32 and the last 31 characters: so that a time at the end
/// survives.
pub fn joined(prefix: &str, name: &str, suffix: &str) -> String {
    shortened(join(prefix, name, suffix), MAX)
}

/// Name of the CronJob of a session, and of its ServiceAccount and RoleBinding.
pub fn trigger(configuration: &str, session: &str) -> String {
    shortened(join("trigger", configuration, session), MAX_CRON_JOB)
}

/// Name of a BackupSession that begins at `unix` seconds.
pub fn backup_session(configuration: &str, session: &str, unix: i64) -> String {
    joined(configuration, session, &unix.to_string())
}

/// Name of the Snapshot of a BackupSession in a Repository.
pub fn snapshot(repository: &str, backup_session: &str) -> String {
    joined(repository, backup_session, "")
}

/// Name of the retention Job of a BackupSession.
pub fn retention(backup_session: &str) -> String {
    joined("retentionpolicy", backup_session, "")
}

/// A name as the value of a label, which is shorter than a name may be.
pub fn label(name: &str) -> String {
    joined(name, "", "")
}

/// Selects the objects that carry the name as the value of this label.
pub fn selector(label: &str, name: &str) -> String {
    format!("{label}={}", self::label(name))
}

/// Folder of a component, relative to its Repository's.
pub fn component_path(session: &str, component: &str) -> String {
    format!("repository/v1/{session}/{component}")
}

/// Prefix and directory as one clean path without slashes at its ends; slashes in a row are one.
pub fn folder(prefix: &str, directory: &str) -> String {
    let parts = prefix.split('/').chain(directory.split('/')).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join("/")
}

fn join(prefix: &str, name: &str, suffix: &str) -> String {
    let parts: Vec<_> = [prefix, name, suffix].into_iter().filter(|part| !part.is_empty()).collect();
    parts.join("-").trim_matches('-').to_owned()
}

/// The first half and the rest of the allowed characters, as even as can be.
fn shortened(name: String, max: usize) -> String {
    let letters: Vec<char> = name.chars().collect();
    if letters.len() <= max {
        return name;
    }
    let head = max.div_ceil(2);
    letters[..head].iter().chain(&letters[letters.len() - (max - head)..]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_users_know() {
        assert_eq!(
            trigger("s3-bucket-backup", "frequent-backup"),
            "trigger-s3-bucket-backup-frequent-backup"
        );
        let session = backup_session("s3-bucket-backup", "frequent-backup", 1_735_000_000);
        assert_eq!(session, "s3-bucket-backup-frequent-backup-1735000000");
        assert_eq!(
            snapshot("gcs-repository", &session),
            "gcs-repository-s3-bucket-backup-frequent-backup-1735000000"
        );
    }

    #[test]
    fn long_names_keep_both_ends() {
        let name = joined(&"a".repeat(40), &"b".repeat(40), "1735000000");
        assert_eq!(name.len(), 63);
        assert!(name.starts_with(&"a".repeat(32)) && name.ends_with("-1735000000"));
        assert_eq!(trigger(&"a".repeat(60), "s").len(), 52);
    }

    #[test]
    fn folders_are_clean() {
        assert_eq!(folder("/a//b/", "/c/"), "a/b/c");
        assert_eq!(folder("", "c"), "c");
    }
}
