//! What the binary does in a cluster, and for people who have one: the work of a Job's pod, the trigger of a schedule, and
//! the verbs of the kubectl plugin.

pub mod args;
mod backup;
mod client;
mod forget;
pub mod job;
mod kubectl;
mod maintain;
mod outcome;
mod places;
mod pod;
mod public;
mod report;
mod restore;
mod trigger;
mod watch;

pub use client::connect;
pub use kubectl::run as kubectl;
pub use trigger::run as trigger;

use std::ffi::OsString;
use std::path::Path;

/// The arguments of this process; as a plugin of kubectl
/// (<https://kubernetes.io/docs/tasks/extend-kubectl/kubectl-plugins/>), those of `cistern cluster`.
pub fn arguments(given: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = given.into_iter().collect();
    let is_plugin = arguments
        .first()
        .and_then(|program| Path::new(program).file_name())
        .is_some_and(|name| name == "kubectl-cistern");
    if is_plugin && arguments.get(1).is_none_or(|verb| verb != "cluster") {
        arguments.insert(1, "cluster".into());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_is_called_by_its_name() {
        let seen = |words: &[&str]| arguments(words.iter().map(OsString::from)).join(" ".as_ref());
        assert_eq!(seen(&["/opt/kubectl-cistern", "logs", "x"]), "/opt/kubectl-cistern cluster logs x");
        assert_eq!(seen(&["kubectl-cistern", "cluster", "logs"]), "kubectl-cistern cluster logs");
        assert_eq!(seen(&["kubectl-cistern"]), "kubectl-cistern cluster");
        assert_eq!(seen(&["cistern", "ls"]), "cistern ls");
    }
}
