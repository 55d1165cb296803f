//! Looks up in the cluster what lowering needs to know beside the document that is lowered.

use std::collections::BTreeSet;

use cistern_api::backend::{Keys, PASSWORD};
use cistern_api::kinds::addon::AddonInfo;
use cistern_api::kinds::shared::TypedRef;
use cistern_api::kinds::{
    Addon, BackupConfiguration, BackupStorage, Function, Repository, RestoreSession, RetentionPolicy,
    Snapshot,
};
use cistern_api::lower::Credentials;
use cistern_api::problem::Problem;
use cistern_api::world::{ClaimFacts, Name, SecretFacts, World};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, Secret};
use kube::ResourceExt;

use crate::context::{Cx, Kind};
use crate::controller::Failure;
use crate::snapshot::of_repository;

/// The name of an object, with its namespace.
pub(crate) fn name_of(object: &impl Kind) -> Name {
    Name::new(object.namespace().unwrap_or_default(), object.name_any())
}

/// What a BackupConfiguration names, with all that may be meant by default.
///
/// # Errors
/// The API server does not answer. What is not there is left out.
pub(crate) async fn of_configuration(cx: &Cx, document: &BackupConfiguration) -> Result<World, Failure> {
    let namespace = document.namespace().unwrap_or_default();
    let spec = &document.spec;
    let addons = spec.sessions.iter().filter_map(|session| session.addon.as_ref());
    let secrets = spec.sessions.iter().flat_map(|session| &session.repositories);
    let secrets = secrets.filter_map(|repository| repository.encryption_secret.as_ref());
    let secrets: BTreeSet<_> = secrets.map(|secret| Name::of(secret, &namespace)).collect();
    let named = spec.backends.iter();
    let storages: BTreeSet<_> = named
        .clone()
        .filter_map(|one| one.storage_ref.as_ref())
        .map(|one| Name::of(one, &namespace))
        .collect();
    let policies: BTreeSet<_> =
        named.filter_map(|one| one.retention_policy.as_ref()).map(|one| Name::of(one, &namespace)).collect();
    let (mut world, storages, policies, repositories, secrets) = futures::try_join!(
        common(cx, &namespace, addons, spec.target.as_ref()),
        all_and::<BackupStorage>(cx, storages),
        all_and::<RetentionPolicy>(cx, policies),
        cx.list_everywhere::<Repository>(""),
        facts(cx, secrets),
    )?;
    world.storages = storages.into_iter().map(|one| (name_of(&one), one)).collect();
    world.policies = policies.into_iter().map(|one| (name_of(&one), one)).collect();
    world.repositories = repositories.into_iter().map(|one| (name_of(&one), one)).collect();
    world.secrets = secrets;
    world.configurations.insert(name_of(document), document.clone());
    Ok(world)
}

/// What a RestoreSession names.
///
/// # Errors
/// The API server does not answer. What is not there is left out.
pub(crate) async fn of_restore(cx: &Cx, document: &RestoreSession) -> Result<World, Failure> {
    let namespace = document.namespace().unwrap_or_default();
    let source = &document.spec.data_source;
    let other = source.namespace.as_deref().filter(|it| !it.is_empty()).unwrap_or(&namespace);
    let snapshots: Vec<Snapshot> = match (source.snapshot.as_deref(), source.repository.as_deref()) {
        (Some("latest"), Some(repository)) => of_repository(cx, &Name::new(other, repository)).await?,
        (Some(name), _) => cx.get(other, name).await?.into_iter().collect(),
        (None, _) => Vec::new(),
    };
    let named = source.repository.clone().filter(|name| !name.is_empty());
    let repository = named.or_else(|| Some(snapshots.first()?.spec.repository.clone()));
    let repository = match repository {
        Some(name) => cx.get::<Repository>(other, &name).await?,
        None => None,
    };
    let storage = async {
        let Some(repository) = &repository else { return Ok(None) };
        let name = Name::of(&repository.spec.storage_ref, other);
        cx.get::<BackupStorage>(&name.namespace, &name.name).await
    };
    let of_repository = repository.as_ref().and_then(|one| one.spec.encryption_secret.as_ref());
    let secrets = [(source.encryption_secret.as_ref(), namespace.as_str()), (of_repository, other)];
    let secrets = secrets.into_iter().filter_map(|(secret, of)| Some(Name::of(secret?, of))).collect();
    let target = document.spec.target.clone();
    let target = target.or_else(|| snapshots.first()?.spec.app_ref.clone());
    let (mut world, storage, secrets) = futures::try_join!(
        common(cx, &namespace, document.spec.addon.iter(), target.as_ref()),
        storage,
        facts(cx, secrets),
    )?;
    world.storages = storage.into_iter().map(|one| (name_of(&one), one)).collect();
    world.repositories = repository.into_iter().map(|one| (name_of(&one), one)).collect();
    world.snapshots = snapshots.into_iter().map(|one| (name_of(&one), one)).collect();
    world.secrets = secrets;
    Ok(world)
}

/// The namespace, the addons with their functions, and the target.
async fn common(
    cx: &Cx,
    namespace: &str,
    addons: impl Iterator<Item = &AddonInfo>,
    target: Option<&TypedRef>,
) -> Result<World, Failure> {
    // An empty name is none, and asking for one would be an error of ours.
    let is_name = |name: &String| !name.is_empty();
    let names: BTreeSet<_> = addons.filter_map(|addon| addon.name.clone()).filter(is_name).collect();
    let catalogue = async {
        let api = cx.cluster::<Addon>();
        let addons = names.iter().map(|name| api.get_opt(name));
        let addons: Vec<_> = futures::future::try_join_all(addons).await?.into_iter().flatten().collect();
        let tasks =
            addons.iter().flat_map(|addon| addon.spec.backup_tasks.iter().chain(&addon.spec.restore_tasks));
        let functions: BTreeSet<_> = tasks.filter_map(|task| task.function.clone()).filter(is_name).collect();
        let api = cx.cluster::<Function>();
        let functions = functions.iter().map(|name| api.get_opt(name));
        let functions: Vec<_> =
            futures::future::try_join_all(functions).await?.into_iter().flatten().collect();
        Ok((addons, functions))
    };
    let claim = async {
        match target.filter(|it| it.kind.as_deref() == Some("PersistentVolumeClaim") && is_name(&it.name)) {
            Some(target) => claim(cx, namespace, &target.name).await,
            None => Ok(None),
        }
    };
    let of_namespace = async { Ok(cx.cluster::<Namespace>().get_opt(namespace).await?) };
    let ((addons, functions), claim, of_namespace) = futures::try_join!(catalogue, claim, of_namespace)?;
    let mut world = World {
        addons: addons.into_iter().map(|one| (one.name_any(), one)).collect(),
        functions: functions.into_iter().map(|one| (one.name_any(), one)).collect(),
        ..World::default()
    };
    world.claims.extend(claim);
    world.namespaces.extend(of_namespace.map(|one| (namespace.to_owned(), one.labels().clone())));
    Ok(world)
}

/// A claim, and the driver of its volume.
async fn claim(cx: &Cx, namespace: &str, name: &str) -> Result<Option<(Name, ClaimFacts)>, Failure> {
    let Some(claim) = cx.get::<PersistentVolumeClaim>(namespace, name).await? else { return Ok(None) };
    let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone());
    let volume = match volume.filter(|name| !name.is_empty()) {
        Some(volume) => cx.cluster::<PersistentVolume>().get_opt(&volume).await?,
        None => None,
    };
    let driver = volume.and_then(|volume| Some(volume.spec?.csi?.driver));
    Ok(Some((name_of(&claim), ClaimFacts { driver })))
}

/// All objects of a kind in the namespaces that we look after, and those of other ones that are named.
async fn all_and<K: Kind>(cx: &Cx, named: BTreeSet<Name>) -> Result<Vec<K>, Failure> {
    let mut all = cx.list_everywhere::<K>("").await?;
    let others = named.into_iter().filter(|name| !cx.settings().covers(&name.namespace));
    let others = others.map(async |name| cx.get::<K>(&name.namespace, &name.name).await);
    all.extend(futures::future::try_join_all(others).await?.into_iter().flatten());
    Ok(all)
}

/// What is known of Secrets without their values.
async fn facts(
    cx: &Cx,
    names: BTreeSet<Name>,
) -> Result<std::collections::BTreeMap<Name, SecretFacts>, Failure> {
    let each = names.into_iter().map(async |name| {
        let secret = cx.get::<Secret>(&name.namespace, &name.name).await?;
        Ok::<_, Failure>(secret.map(|secret| {
            let keys = secret.data.iter().flat_map(|data| data.keys().cloned()).collect();
            (name, SecretFacts { keys, annotations: secret.annotations().clone() })
        }))
    });
    Ok(futures::future::try_join_all(each).await?.into_iter().flatten().collect())
}

/// The values that credentials stand for.
///
/// # Errors
/// A Secret is not there, or lacks the password.
pub(crate) async fn keys(cx: &Cx, credentials: &Credentials) -> Result<Keys, Failure> {
    let storage = async {
        match &credentials.storage {
            Some(name) => the_secret(cx, name).await.map(Some),
            None => Ok(None),
        }
    };
    let (storage, encryption) = futures::try_join!(storage, the_secret(cx, &credentials.encryption))?;
    let mut keys = Keys::default();
    for (name, value) in storage.and_then(|secret| secret.data).unwrap_or_default() {
        keys.insert(name, &value.0);
    }
    let password = encryption.data.and_then(|mut data| data.remove(PASSWORD)).filter(|it| !it.0.is_empty());
    let password = password.ok_or_else(|| {
        Failure::Missing(format!("the Secret {} has no key {PASSWORD}", credentials.encryption))
    })?;
    keys.insert(PASSWORD, &password.0);
    Ok(keys)
}

/// A Secret that has to be there.
pub(crate) async fn the_secret(cx: &Cx, name: &Name) -> Result<Secret, Failure> {
    let secret = cx.get::<Secret>(&name.namespace, &name.name).await?;
    secret.ok_or_else(|| Failure::Missing(format!("the Secret {name} does not exist")))
}

/// Problems of a document as one failure: something that may still come, or something to be mended.
pub(crate) fn refusal(problems: &[Problem]) -> Failure {
    let text = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    match problems.iter().all(|problem| problem.missing) {
        true => Failure::Missing(text),
        false => Failure::Invalid(text),
    }
}
