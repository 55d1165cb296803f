//! Tasks: which Function does it, with which volumes, parameters and settings of its pod.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Volume, VolumeMount};
use serde_json::{Map, Value, json};

use crate::kinds::addon::{AddonInfo, AddonTask, TaskReference};
use crate::kinds::pod::PodTemplateSpec;
use crate::problem::Problems;
use crate::substitute::substitute;
use crate::world::World;

/// Variable in volumes of the catalogue: the name of the target's claim.
const PVC_NAME: &str = "PVC_NAME";
/// How a volume of the catalogue names it.
const TARGET: &str = "${PVC_NAME";
/// Variables in the names of volumes, with their values.
const VOLUME_NAMES: [(&str, &str); 2] =
    [("RESTIC_CACHE_VOLUME", "kubestash-tmp-volume"), ("INTERIM_VOLUME", "kubestash-interim-volume")];

/// A task with everything that its Job needs beside the work itself.
#[derive(Clone, Debug, PartialEq)]
pub struct LoweredTask {
    /// Name of the addon.
    pub addon: String,
    /// Name of the task.
    pub name: String,
    /// Name of the Function, which is there.
    pub function: String,
    /// Volumes of the pod.
    pub volumes: Vec<Volume>,
    /// Where the Function wants them.
    pub mounts: Vec<VolumeMount>,
    /// What the user says of the Job and its pod.
    pub job: Option<PodTemplateSpec>,
}

/// What is found of a task before its target is known.
pub(super) struct Found<'a> {
    pub path: String,
    pub reference: &'a TaskReference,
    pub task: &'a AddonTask,
    addon: String,
    job: Option<PodTemplateSpec>,
}

/// Finds the task that an invoker names, among those that back up or those that restore.
pub(super) fn find<'a>(
    info: Option<&'a AddonInfo>,
    restores: bool,
    path: &str,
    world: &'a World,
    problems: &mut Problems,
) -> Option<Found<'a>> {
    let Some(info) = info else {
        problems.wrong(path, "must be set");
        return None;
    };
    settings(info, path, problems);
    let name = info.name.as_deref().unwrap_or_default();
    if name.is_empty() {
        problems.wrong(format!("{path}.name"), "must be set");
    }
    let Some(reference) = info.tasks.first() else {
        problems.wrong(format!("{path}.tasks"), "must name a task");
        return None;
    };
    for (number, _) in info.tasks.iter().enumerate().skip(1) {
        problems.unsupported(format!("{path}.tasks[{number}]"), "more than one task is");
    }
    let path = format!("{path}.tasks[0]");
    let task_name = reference.name.as_deref().unwrap_or_default();
    if task_name.is_empty() {
        problems.wrong(format!("{path}.name"), "must be set");
    }
    if name.is_empty() || task_name.is_empty() {
        return None;
    }
    if reference.variables.as_ref().is_some_and(|all| !all.is_empty()) {
        problems.unsupported(format!("{path}.variables"), "variables are");
    }
    if reference.target_volumes.as_ref().is_some_and(|all| *all != Default::default()) {
        problems.unsupported(format!("{path}.targetVolumes"), "volumes beside the target's claim are");
    }
    let Some(addon) = world.addons.get(name) else {
        problems.missing(
            format!("{}.name", path.trim_end_matches(".tasks[0]")),
            format!("there is no Addon {name}"),
        );
        return None;
    };
    let tasks = if restores { &addon.spec.restore_tasks } else { &addon.spec.backup_tasks };
    let Some(task) = tasks.iter().find(|task| task.name == task_name) else {
        let there: Vec<_> = tasks.iter().map(|task| task.name.as_str()).collect();
        let kind = if restores { "restore" } else { "backup" };
        problems.wrong(
            format!("{path}.name"),
            format!("the Addon {name} has no {kind} task {task_name:?}; it has {}", there.join(", ")),
        );
        return None;
    };
    supported(task, &format!("{path}.name"), problems);
    Some(Found { path, reference, task, addon: name.to_owned(), job: info.job_template.clone() })
}

/// Settings of the Job that are not applied yet.
fn settings(info: &AddonInfo, path: &str, problems: &mut Problems) {
    if info.container_runtime_settings.as_ref().is_some_and(|all| !all.is_empty()) {
        problems.wrong(
            format!("{path}.containerRuntimeSettings"),
            "is not supported yet: settings of the container go into jobTemplate.spec",
        );
    }
    let spec = info.job_template.as_ref().and_then(|template| template.spec.as_ref());
    let Some(spec) = spec else { return };
    let path = format!("{path}.jobTemplate.spec");
    if spec.args.as_ref().is_some_and(|all| !all.is_empty()) {
        problems.unsupported(format!("{path}.args"), "arguments beside the Function's are");
    }
    if spec.pod_placement_policy.as_ref().is_some_and(|all| !all.is_empty()) {
        problems.unsupported(format!("{path}.podPlacementPolicy"), "placement policies are");
    }
}

/// What a task asks for that only other programs do.
pub(super) fn supported(task: &AddonTask, path: &str, problems: &mut Problems) {
    let says = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    if let Some(driver) = says(&task.driver).filter(|driver| driver != "Restic") {
        problems.unsupported(path, &format!("the driver {driver} of task {} is", task.name));
    }
    if let Some(executor) = says(&task.executor).filter(|executor| executor != "Job") {
        problems.unsupported(path, &format!("the executor {executor} of task {} is", task.name));
    }
    for volume in &task.volume_template {
        if volume.source.as_ref().is_some_and(|source| source.contains_key("volumeClaimTemplate")) {
            problems.unsupported(
                path,
                &format!("a volumeClaimTemplate as volume {} of task {} is", volume.name, task.name),
            );
        }
    }
}

impl Found<'_> {
    /// The task with its volumes, for a target's claim.
    pub fn lower(self, claim: &str, world: &World, problems: &mut Problems) -> Option<LoweredTask> {
        let function = self.task.function.clone().unwrap_or_default();
        if !world.functions.contains_key(&function) {
            problems.missing(
                format!("{}.name", self.path),
                format!(
                    "there is no Function {function}, which task {} of the Addon {} needs",
                    self.task.name, self.addon
                ),
            );
        }
        let names: BTreeMap<String, String> =
            VOLUME_NAMES.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let mut sources: Vec<(String, Map<String, Value>)> = Vec::new();
        for volume in &self.task.volume_template {
            sources.push((substitute(&volume.name, &names), volume.source.clone().unwrap_or_default()));
        }
        for (number, own) in self.reference.addon_volumes.iter().enumerate() {
            let path = format!("{}.addonVolumes[{number}]", self.path);
            let name = substitute(&own.name, &names);
            let source = own.source.clone().unwrap_or_default();
            if source.contains_key("volumeClaimTemplate") {
                problems
                    .unsupported(format!("{path}.source.volumeClaimTemplate"), "claims made for a Job are");
            }
            match sources.iter_mut().find(|(there, _)| *there == name) {
                // What is backed up is said by the target alone.
                Some((_, there)) if Value::Object(there.clone()).to_string().contains(TARGET) => {
                    problems.wrong(format!("{path}.name"), format!("the volume {name} is the target's own"));
                }
                Some((_, there)) => *there = source,
                None => {
                    let there: Vec<_> = sources.iter().map(|(name, _)| name.as_str()).collect();
                    let message = format!("the Addon has no volume {name:?}; it has {}", there.join(", "));
                    problems.wrong(format!("{path}.name"), message);
                }
            }
        }
        let mut variables = names;
        variables.insert(PVC_NAME.to_owned(), claim.to_owned());
        let mut volumes = Vec::new();
        for (name, source) in sources {
            let mut volume = replaced(Value::Object(source), &variables);
            volume["name"] = json!(name);
            match serde_json::from_value::<Volume>(volume) {
                Ok(volume) => volumes.push(volume),
                Err(error) => {
                    problems.wrong(format!("{}.addonVolumes", self.path), format!("volume {name}: {error}"));
                }
            }
        }
        let mut mounts = self.task.volume_mounts.clone().unwrap_or_default();
        for mount in &mut mounts {
            mount.name = substitute(&mount.name, &variables);
        }
        Some(LoweredTask {
            addon: self.addon,
            name: self.task.name.clone(),
            function,
            volumes,
            mounts,
            job: self.job,
        })
    }
}

/// The value with the variables of its texts replaced.
fn replaced(value: Value, variables: &BTreeMap<String, String>) -> Value {
    match value {
        Value::String(text) => Value::String(substitute(&text, variables)),
        Value::Array(all) => all.into_iter().map(|one| replaced(one, variables)).collect(),
        Value::Object(all) => all.into_iter().map(|(name, one)| (name, replaced(one, variables))).collect(),
        other => other,
    }
}
