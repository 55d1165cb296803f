//! Looks at any document: what is wrong with it in itself, and beside the others.

use super::{configuration, restore, task};
use crate::document::{Document, Object};
use crate::kinds::backup_storage::{Local, S3, Storage};
use crate::kinds::shared::{From, UsagePolicy};
use crate::kinds::{Addon, BackupSession, BackupStorage, Repository, RetentionPolicy};
use crate::name::folder;
use crate::problem::{Problem, Problems};
use crate::world::{Name, World};

/// Everything that is wrong with a document of a kind of ours; of other kinds nothing is said.
pub fn check(document: &Document, world: &World) -> Vec<Problem> {
    let mut problems = Problems::default();
    let name = &document.name;
    match &document.object {
        Object::BackupStorage(one) => storage(name, one, world, &mut problems),
        Object::RetentionPolicy(one) => policy(name, one, world, &mut problems),
        Object::Repository(one) => repository(name, one, world, &mut problems),
        Object::BackupConfiguration(one) => {
            let mut one = (**one).clone();
            one.metadata.namespace = Some(name.namespace.clone());
            problems.0.extend(configuration(&one, world).err().into_iter().flatten());
        }
        Object::RestoreSession(one) => {
            let mut one = (**one).clone();
            one.metadata.namespace = Some(name.namespace.clone());
            problems.0.extend(restore(&one, world).err().into_iter().flatten());
        }
        Object::BackupSession(one) => session(name, one, world, &mut problems),
        Object::Addon(one) => addon(one, &mut problems),
        _ => {}
    }
    problems.0
}

fn storage(name: &Name, document: &BackupStorage, world: &World, problems: &mut Problems) {
    let spec = &document.spec;
    usage_policy(spec.usage_policy.as_ref(), problems);
    blocks(&spec.storage, problems);
    let others = || world.storages.iter().filter(|(other, _)| *other != name);
    if spec.default == Some(true)
        && others().any(|(other, one)| other.namespace == name.namespace && one.spec.default == Some(true))
    {
        let text = "multiple default BackupStorages are not allowed within the same namespace";
        problems.wrong("spec.default", text);
    }
    if let Some(own) = identity(&spec.storage) {
        for (other, _) in others().filter(|(_, one)| identity(&one.spec.storage).as_ref() == Some(&own)) {
            let text = "no two BackupStorage should point to the same directory of the same bucket";
            problems.wrong("spec.storage", format!("{text}: {other} does"));
        }
    }
    let Some(secret) = super::storage_secret(name, document) else { return };
    match world.secrets.get(&secret) {
        None => problems.missing("spec.storage.s3.secretName", format!("there is no Secret {secret}")),
        Some(facts) => {
            for key in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
                if !facts.keys.contains(key) {
                    let text = format!("the Secret {secret} lacks the key {key}");
                    problems.wrong("spec.storage.s3.secretName", text);
                }
            }
        }
    }
}

/// Exactly the block of the provider, with what it needs.
fn blocks(storage: &Storage, problems: &mut Problems) {
    let provider = storage.provider.as_str();
    let before = problems.0.len();
    if !["local", "s3", "gcs", "azure"].contains(&provider) {
        problems.wrong(
            "spec.storage.provider",
            format!("must be one of local, s3, gcs, azure, and is {provider:?}"),
        );
        return;
    }
    let there = [
        ("local", storage.local.is_some()),
        ("s3", storage.s3.is_some()),
        ("gcs", storage.gcs.is_some()),
        ("azure", storage.azure.is_some()),
    ];
    for (block, is_there) in there {
        if (block == provider) != is_there {
            let text = match is_there {
                true => format!("the provider is {provider}: it has no such block"),
                false => format!("must be set: the provider is {provider}"),
            };
            problems.wrong(format!("spec.storage.{block}"), text);
        }
    }
    match (&storage.s3, &storage.local) {
        (Some(s3), _) if provider == "s3" => bucket(s3, problems),
        (_, Some(local)) if provider == "local" => volume(local, problems),
        _ => {}
    }
    if problems.0.len() == before
        && let Err(error) = crate::backend::place(storage, "", "")
    {
        problems.wrong("spec.storage", super::reason(&error));
    }
}

fn bucket(s3: &S3, problems: &mut Problems) {
    let path = "spec.storage.s3";
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    if text(&s3.bucket).is_empty() {
        problems.wrong(format!("{path}.bucket"), "bucket can not be empty");
    }
    let endpoint = text(&s3.endpoint);
    if !endpoint.is_empty() && !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
        problems.wrong(format!("{path}.endpoint"), "must begin with http:// or https://");
    }
    leaves(&text(&s3.prefix), &format!("{path}.prefix"), problems);
}

fn volume(local: &Local, problems: &mut Problems) {
    let path = "spec.storage.local";
    if !local.mount_path.as_deref().unwrap_or_default().starts_with('/') {
        problems.wrong(format!("{path}.mountPath"), "must be an absolute path");
    }
    leaves(local.sub_path.as_deref().unwrap_or_default(), &format!("{path}.subPath"), problems);
    let sources = [local.host_path.is_some(), local.persistent_volume_claim.is_some(), local.nfs.is_some()];
    if sources.iter().filter(|is_there| **is_there).count() != 1 {
        problems.wrong(path, "one of hostPath, persistentVolumeClaim, nfs must be set");
    }
}

fn leaves(text: &str, path: &str, problems: &mut Problems) {
    if text.split('/').any(|part| part == "..") {
        problems.wrong(path, "must not hold '..'");
    }
}

/// What makes two storages the same; local ones are not compared.
fn identity(storage: &Storage) -> Option<[String; 4]> {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let s3 = storage.s3.as_ref()?;
    let endpoint = text(&s3.endpoint).trim_end_matches('/').to_owned();
    Some([
        endpoint,
        text(&s3.bucket).trim_end_matches('/').to_owned(),
        text(&s3.region),
        folder("", &text(&s3.prefix)),
    ])
}

fn usage_policy(policy: Option<&UsagePolicy>, problems: &mut Problems) {
    let Some(allowed) = policy.map(|policy| &policy.allowed_namespaces) else { return };
    let path = "spec.usagePolicy.allowedNamespaces.selector";
    match (&allowed.selector, allowed.from) {
        (None, From::Selector) => problems.wrong(path, "from: Selector needs a selector"),
        (Some(selector), _) => {
            if let Err(error) = kube::core::Selector::try_from(selector.clone()) {
                problems.wrong(path, error.to_string());
            }
        }
        _ => {}
    }
}

fn policy(name: &Name, document: &RetentionPolicy, world: &World, problems: &mut Problems) {
    let spec = &document.spec;
    usage_policy(spec.usage_policy.as_ref(), problems);
    let period = spec.max_retention_period.as_deref().filter(|text| !text.is_empty());
    if period.is_none() && spec.successful_snapshots.is_none() {
        problems.wrong("spec", "at least one of maxRetentionPeriod and successfulSnapshots must be set");
    }
    if let Some(Err(error)) = period.map(crate::retention::period) {
        problems.wrong("spec.maxRetentionPeriod", error.to_string());
    }
    let mut others = world.policies.iter().filter(|(other, _)| *other != name);
    if spec.default == Some(true)
        && others.any(|(other, one)| other.namespace == name.namespace && one.spec.default == Some(true))
    {
        let text = "multiple default RetentionPolicies are not allowed within the same namespace";
        problems.wrong("spec.default", text);
    }
}

fn repository(name: &Name, document: &Repository, world: &World, problems: &mut Problems) {
    let spec = &document.spec;
    let directory = super::directory(&spec.path);
    if let Err(message) = directory {
        problems.wrong("spec.path", message);
    }
    let storage = Name::of(&spec.storage_ref, &name.namespace);
    super::storage(&storage, &name.namespace, "spec.storageRef", world, problems);
    if let Some(secret) = &spec.encryption_secret {
        let path = "spec.encryptionSecret";
        super::encryption_secret(Some(secret), &name.namespace, path, world, problems);
    }
    let Ok(directory) = directory else { return };
    for (other, one) in world.repositories.iter().filter(|(other, _)| *other != name) {
        let there = super::directory(&one.spec.path).unwrap_or_default();
        if Name::of(&one.spec.storage_ref, &other.namespace) == storage && super::overlap(&there, &directory)
        {
            problems.wrong(
                "spec.path",
                format!("shares a folder with the Repository {other}, which has {there:?}"),
            );
        }
    }
}

fn session(name: &Name, document: &BackupSession, world: &World, problems: &mut Problems) {
    let invoker = &document.spec.invoker;
    if invoker.kind != "BackupConfiguration" {
        problems.unsupported("spec.invoker.kind", &format!("an invoker of kind {:?} is", invoker.kind));
        return;
    }
    let owner = Name::new(&name.namespace, &invoker.name);
    let Some(configuration) = world.configurations.get(&owner) else {
        problems.missing("spec.invoker", format!("there is no BackupConfiguration {owner}"));
        return;
    };
    let session = document.spec.session.as_deref().unwrap_or_default();
    if !configuration.spec.sessions.iter().any(|one| one.name == session) {
        let text = format!("the BackupConfiguration {owner} has no session {session:?}");
        problems.wrong("spec.session", text);
    }
}

fn addon(document: &Addon, problems: &mut Problems) {
    let lists =
        [("backupTasks", &document.spec.backup_tasks), ("restoreTasks", &document.spec.restore_tasks)];
    for (field, tasks) in lists {
        for (number, one) in tasks.iter().enumerate() {
            task::supported(one, &format!("spec.{field}[{number}]"), problems);
        }
    }
}
