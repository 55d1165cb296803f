//! The catalogue that the chart installs: the Addon for claims with its Functions, for whoever works without a cluster.

use crate::document::{Document, read};
use crate::problem::Problems;

/// The files of the chart.
const FILES: [&str; 3] = [
    include_str!("../../../charts/cistern/catalogue/pvc-addon.yaml"),
    include_str!("../../../charts/cistern/catalogue/pvc-backup.yaml"),
    include_str!("../../../charts/cistern/catalogue/pvc-restore.yaml"),
];

/// The documents of the catalogue. Images are as the chart has them, before it fills them in.
pub fn documents() -> Vec<Document> {
    let mut problems = Problems::default();
    let values = FILES.iter().flat_map(|file| read(file));
    let documents: Vec<_> = values
        .filter_map(|value| Document::parse(&value.expect("the catalogue is YAML"), "", &mut problems))
        .collect();
    assert!(problems.0.is_empty(), "the catalogue is valid: {:?}", problems.0);
    documents
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lower::check;
    use crate::world::World;

    #[test]
    fn the_catalogue_is_what_users_name() {
        let documents = documents();
        let world = World::of_documents(&documents);
        assert!(documents.iter().all(|one| check(one, &world).is_empty()));
        let addon = &world.addons["pvc-addon"].spec;
        for (tasks, task, function) in [
            (&addon.backup_tasks, "logical-backup", "pvc-backup"),
            (&addon.restore_tasks, "logical-backup-restore", "pvc-restore"),
        ] {
            assert_eq!(tasks[0].name, task);
            assert_eq!(tasks[0].function.as_deref(), Some(function));
            assert!(world.functions.contains_key(function));
        }
    }
}
