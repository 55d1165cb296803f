//! Snapshots: what a session makes of one, what its parts add up to, and what becomes of its data when it is deleted.
//!
//! While its session runs, the session's controller is the one writer of a Snapshot's status. The controller here sees to
//! the end of a Snapshot only.

use std::collections::BTreeMap;

use cistern_api::condition::{self, Condition};
use cistern_api::job::{ForgetJob, JobTask};
use cistern_api::kinds::backup_session::BackupSession;
use cistern_api::kinds::repository::Repository;
use cistern_api::kinds::shared::{DeletionPolicy, TypedRef};
use cistern_api::kinds::snapshot::{
    Snapshot, SnapshotPhase, SnapshotSpec, SnapshotStatus, VerificationStatus,
};
use cistern_api::world::Name;
use cistern_api::{labels, name, phase, size};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use crate::backup_storage::ends;
use crate::context::{Cx, MANAGER, owner, warning};
use crate::controller::{Failure, Reconcile, Requeue, Watches};
use crate::destination::{self, Destination};
use crate::job::work::{self, Work};
use crate::job::{self, Plan, User};
use crate::retention;

/// The Snapshot that a session makes in a Repository.
pub(crate) fn wanted(session: &BackupSession, repository: &Repository) -> Snapshot {
    let (namespace, of) = (session.namespace().unwrap_or_default(), session.name_any());
    let repository_name = repository.name_any();
    let app_ref = repository.spec.app_ref.clone();
    let spec = SnapshotSpec {
        snapshot_id: Some(id(session, &repository_name)),
        type_: Some("FullBackup".into()),
        repository: repository_name.clone(),
        session: session.spec.session.clone(),
        backup_session: Some(of.clone()),
        version: Some("v1".into()),
        app_ref: app_ref.clone(),
        deletion_policy: DeletionPolicy::Delete,
        paused: None,
    };
    let mut snapshot = Snapshot::new(&name::snapshot(&repository_name, &of), spec);
    snapshot.metadata.labels = Some(marks(session, &repository_name, app_ref.as_ref(), &namespace));
    snapshot.metadata.namespace = Some(namespace);
    snapshot.metadata.owner_references = Some(vec![owner(repository)]);
    snapshot.metadata.finalizers = Some(vec![labels::FINALIZER.into()]);
    snapshot
}

fn marks(
    session: &BackupSession,
    repository: &str,
    target: Option<&TypedRef>,
    namespace: &str,
) -> BTreeMap<String, String> {
    let target = target.cloned().unwrap_or_else(|| TypedRef { name: "na".into(), ..TypedRef::default() });
    let kind = target.kind.unwrap_or_else(|| "na".into());
    let of = target.namespace.filter(|it| !it.is_empty()).unwrap_or_else(|| namespace.into());
    let all = [
        (labels::MANAGED_BY, labels::MANAGER),
        (labels::INVOKER_NAME, &session.name_any()),
        (labels::INVOKER_NAMESPACE, namespace),
        (labels::SESSION_NAME, session.spec.session.as_deref().unwrap_or_default()),
        (labels::REPO_NAME, repository),
        (labels::APP_REF_KIND, &kind),
        (labels::APP_REF_NAMESPACE, &of),
        (labels::APP_REF_NAME, &target.name),
    ];
    all.map(|(label, value)| (label.to_owned(), name::label(value))).into()
}

/// The Snapshots of a Repository.
///
/// # Errors
/// The API server does not give them.
pub(crate) async fn of_repository(cx: &Cx, repository: &Name) -> Result<Vec<Snapshot>, Failure> {
    let selector = name::selector(labels::REPO_NAME, &repository.name);
    let mut all = cx.list::<Snapshot>(&repository.namespace, &selector).await?;
    // Of long names, the label has only a part.
    all.retain(|one| one.spec.repository == repository.name);
    Ok(all)
}

/// The id of a session's Snapshot in a Repository: a ULID of the session's creation, the same each time it is asked for.
fn id(session: &BackupSession, repository: &str) -> String {
    let created = session.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_millisecond());
    let uid = session.uid().unwrap_or_default();
    // FNV-1a of 128 bits (https://datatracker.ietf.org/doc/draft-eastlake-fnv/): the uid is random enough.
    let hash = [uid.as_bytes(), repository.as_bytes()]
        .concat()
        .iter()
        .fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
            (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
        });
    ulid::Ulid::from_parts(u64::try_from(created).unwrap_or(0), hash).to_string()
}

/// The status of a Snapshot that has just been made.
pub(crate) fn pending(taken: Timestamp) -> SnapshotStatus {
    SnapshotStatus {
        phase: Some(SnapshotPhase::Pending),
        verification_status: Some(VerificationStatus::NotVerified),
        snapshot_time: Some(Time(taken)),
        total_components: Some(1),
        ..SnapshotStatus::default()
    }
}

/// The status that follows from the components and the conditions, with all of them.
pub(crate) fn observed(
    mut status: SnapshotStatus,
    news: impl IntoIterator<Item = Condition>,
    now: Timestamp,
) -> SnapshotStatus {
    for one in news {
        condition::set(&mut status.conditions, one);
    }
    let components = status.components.values();
    let sizes: Vec<u64> =
        components.filter_map(|part| part.size.as_deref().and_then(size::parse_size)).collect();
    status.size = (!sizes.is_empty()).then(|| size::size(sizes.iter().sum()));
    let verdicts: Option<Vec<bool>> = status.components.values().map(|part| part.integrity).collect();
    status.integrity = verdicts.filter(|all| !all.is_empty()).map(|all| all.iter().all(|whole| *whole));
    status.phase = Some(phase::snapshot(&status));
    status.last_update_time = Some(Time(now));
    status
}

/// Whether the components of a Snapshot are over.
pub(crate) fn parts_are_over(status: &SnapshotStatus) -> bool {
    phase::components(status).is_over()
}

/// When somebody else than we last wrote the status of an object.
pub(crate) fn heard(object: &impl kube::Resource) -> Option<Timestamp> {
    let entries = object.meta().managed_fields.iter().flatten();
    let others = entries.filter(|one| {
        one.subresource.as_deref() == Some("status") && one.manager.as_deref() != Some(MANAGER)
    });
    others.filter_map(|one| Some(one.time.as_ref()?.0)).max()
}

/// Writes a Snapshot's status. Components are the Job's to write, unless they are taken over from a Job that is dead.
///
/// # Errors
/// As of [`Cx::publish`].
pub(crate) async fn publish(
    cx: &Cx,
    snapshot: &Snapshot,
    mut status: SnapshotStatus,
    taken_over: bool,
) -> Result<(), Failure> {
    if !taken_over && !owns_components(snapshot) {
        status.components.clear();
    }
    cx.publish(snapshot, &status).await
}

/// Whether an object's components were taken over before.
pub(crate) fn owns_components(object: &impl kube::Resource) -> bool {
    object.meta().managed_fields.iter().flatten().any(|one| {
        one.manager.as_deref() == Some(MANAGER)
            && one.subresource.as_deref() == Some("status")
            && one.fields_v1.as_ref().is_some_and(|fields| fields.0["f:status"]["f:components"].is_object())
    })
}

/// What has to be forgotten so that a Snapshot's data is gone, by folder of the component.
pub(crate) fn restic_snapshots(snapshot: &Snapshot) -> BTreeMap<String, Vec<String>> {
    let mut all = BTreeMap::<String, Vec<String>>::new();
    for part in snapshot.status.iter().flat_map(|status| status.components.values()) {
        let ids = part.restic_stats.iter().filter_map(|stats| stats.snapshot().map(str::to_owned));
        if let Some(path) = &part.path {
            all.entry(path.clone()).or_default().extend(ids);
        }
    }
    all.retain(|_, ids| !ids.is_empty());
    all
}

impl Reconcile for Snapshot {
    fn watches(watches: Watches<Self>) -> Watches<Self> {
        watches.owned::<Job>()
    }

    async fn reconcile(&self, cx: &Cx) -> Result<Requeue, Failure> {
        if self.metadata.deletion_timestamp.is_none() {
            cx.hold(self).await?;
            return Ok(Requeue::OnChange);
        }
        if !self.finalizers().iter().any(|name| name == labels::FINALIZER) {
            return Ok(Requeue::OnChange);
        }
        match end(self, cx).await? {
            End::Go => {}
            End::Leave(why) => {
                let note = format!("the data of this Snapshot stays: {why}");
                cx.announce(self, warning("DataLeft", "Delete", note)).await;
            }
            End::Wait => return Ok(Requeue::After(std::time::Duration::from_mins(5))),
        }
        cx.release(self).await?;
        Ok(Requeue::OnChange)
    }
}

/// What becomes of a Snapshot that is being deleted.
#[derive(Debug, PartialEq)]
enum End {
    /// It may go.
    Go,
    /// It may go, and its data stays, though the user wanted it to go.
    Leave(String),
    /// Its Job is at it.
    Wait,
}

async fn end(snapshot: &Snapshot, cx: &Cx) -> Result<End, Failure> {
    if snapshot.spec.deletion_policy == DeletionPolicy::Delete {
        return Ok(End::Go);
    }
    let namespace = snapshot.namespace().unwrap_or_default();
    if ends(cx, snapshot).await {
        return Ok(End::Leave("the namespace is being deleted".into()));
    }
    let Some(repository) = cx.get::<Repository>(&namespace, &snapshot.spec.repository).await? else {
        return Ok(End::Leave(format!("the Repository {} is gone", snapshot.spec.repository)));
    };
    let is_wiped = repository.spec.deletion_policy == DeletionPolicy::WipeOut;
    if repository.metadata.deletion_timestamp.is_some() && is_wiped {
        return Ok(End::Go);
    }
    let destination = match destination::of(cx, repository).await {
        Err(Failure::Missing(why) | Failure::Invalid(why)) => return Ok(End::Leave(why)),
        answer => answer?,
    };
    let name = name::joined("forget", &snapshot.name_any(), "");
    if !restic_snapshots(snapshot).is_empty() {
        match work::look(cx, &namespace, &name).await? {
            Work::Absent => {
                let plan = match forget(cx, snapshot, &destination, name).await {
                    Err(Failure::Missing(why) | Failure::Invalid(why)) => return Ok(End::Leave(why)),
                    answer => answer?,
                };
                job::start(cx, &plan).await?;
                return Ok(End::Wait);
            }
            Work::Ended { error: None, .. } => {}
            Work::Ended { error: Some(error), outcome, .. } => {
                job::stop(cx, snapshot, &name).await?;
                let said = outcome.and_then(|said| said.results.into_iter().find_map(|line| line.error));
                return Err(Failure::Transient(format!("forgetting its data: {}", said.unwrap_or(error))));
            }
            work => {
                let limits = cx.settings();
                let until = work::given_up(&work, None, limits.start_limit, limits.stall_limit);
                if until.is_some_and(|until| until < cx.now()) {
                    job::stop(cx, snapshot, &name).await?;
                    return Err(Failure::Transient("the Job that forgets its data does not get on".into()));
                }
                return Ok(End::Wait);
            }
        }
    }
    match destination.layout(cx).await {
        Err(Failure::Missing(why) | Failure::Invalid(why)) => return Ok(End::Leave(why)),
        layout => layout?.delete_snapshot(&destination.repository.spec.path, &snapshot.name_any()).await?,
    }
    Ok(End::Go)
}

/// The Job that forgets a Snapshot's data.
async fn forget(
    cx: &Cx,
    snapshot: &Snapshot,
    destination: &Destination,
    name: String,
) -> Result<Plan, Failure> {
    let namespace = snapshot.namespace().unwrap_or_default();
    let keys = destination.keys(cx).await?;
    let repositories = retention::places(destination, [snapshot], "repository-0")?;
    Ok(Plan {
        name,
        owner: owner(snapshot),
        component: labels::COMPONENT_CLEANER,
        labels: [(labels::REPO_NAME.to_owned(), name::label(&snapshot.spec.repository))].into(),
        task: JobTask::Forget(ForgetJob { repositories, deadline: None }),
        keys: [("repository-0".to_owned(), keys)].into(),
        volumes: Vec::new(),
        mounts: Vec::new(),
        read_only: true,
        storages: destination.volume()?.into_iter().collect(),
        reports: None,
        user: User::Nobody,
        template: None,
        annotations: BTreeMap::new(),
        deadline: None,
        namespace,
    })
}

#[cfg(test)]
mod tests {
    use cistern_api::kinds::repository::RepositorySpec;
    use serde_json::json;

    use super::*;

    fn session(name: &str, uid: &str) -> BackupSession {
        let session = json!({
            "metadata": { "name": name, "namespace": "demo", "uid": uid, "creationTimestamp": "2026-01-07T10:00:00Z" },
            "spec": { "invoker": { "kind": "BackupConfiguration", "name": "pvc" }, "session": "hourly" },
        });
        serde_json::from_value(session).expect("a session")
    }

    fn repository(name: &str) -> Repository {
        let target = TypedRef {
            kind: Some("PersistentVolumeClaim".into()),
            name: "bucket".into(),
            ..TypedRef::default()
        };
        let mut repository = Repository::new(
            name,
            RepositorySpec { app_ref: Some(target), path: "/a".into(), ..RepositorySpec::default() },
        );
        repository.metadata.uid = Some("repository uid".into());
        repository
    }

    #[test]
    fn a_session_makes_the_same_snapshot_each_time() {
        let first = wanted(&session("pvc-hourly-1767780000", "u"), &repository("s3"));
        assert_eq!(first, wanted(&session("pvc-hourly-1767780000", "u"), &repository("s3")));
        insta::assert_yaml_snapshot!("made", first);
        let id = |uid: &str, repository_name: &str| {
            wanted(&session("s", uid), &repository(repository_name)).spec.snapshot_id
        };
        assert_ne!(id("u", "s3"), id("v", "s3"));
        assert_ne!(id("u", "s3"), id("u", "gcs"));
        assert_eq!(id("u", "s3").expect("an id").len(), 26);
    }

    #[test]
    fn long_names_are_labels_all_the_same() {
        let snapshot = wanted(&session(&"s".repeat(200), "u"), &repository(&"r".repeat(200)));
        assert!(snapshot.metadata.labels.expect("labels").values().all(|value| value.len() <= 63));
    }

    #[test]
    fn size_integrity_and_phase_follow_from_the_components() {
        let now = Timestamp::UNIX_EPOCH;
        let of = |components: serde_json::Value, news: Vec<Condition>| {
            let status: SnapshotStatus =
                serde_json::from_value(json!({ "totalComponents": 2, "components": components }))
                    .expect("a status");
            let status = observed(status, news, now);
            (status.phase.expect("a phase"), status.size, status.integrity)
        };
        let uploaded = || vec![condition::SNAPSHOT_METADATA_UPLOADED.is(true, "", now)];
        let done = |size: &str, integrity: bool| json!({ "phase": "Succeeded", "size": size, "integrity": integrity });
        use SnapshotPhase::*;
        assert_eq!(of(json!({}), vec![]), (Pending, None, None));
        assert_eq!(of(json!({ "a": { "phase": "Running" } }), vec![]), (Running, None, None));
        let two = json!({ "a": done("1.000 KiB", true), "b": done("1.500 KiB", true) });
        assert_eq!(of(two.clone(), vec![]), (Running, Some("2.500 KiB".into()), Some(true)));
        assert_eq!(of(two, uploaded()).0, Succeeded);
        let torn = json!({ "a": done("1.000 KiB", true), "b": done("1.000 KiB", false) });
        assert_eq!(of(torn, uploaded()).2, Some(false));
        let failed = json!({ "a": { "phase": "Failed" }, "b": done("1.000 KiB", true) });
        assert_eq!(of(failed, uploaded()), (Failed, Some("1.000 KiB".into()), None));
    }

    #[test]
    fn the_job_is_heard_and_we_are_not() {
        let mut snapshot = Snapshot::new("s", SnapshotSpec::default());
        let entry = |manager: &str, time: &str, part: &str| {
            json!({
                "manager": manager, "operation": "Apply", "subresource": part, "time": time,
                "fieldsV1": { "f:status": { "f:components": {} } },
            })
        };
        let entries =
            |all: Vec<serde_json::Value>| Some(serde_json::from_value(json!(all)).expect("entries"));
        assert_eq!(heard(&snapshot), None);
        snapshot.metadata.managed_fields = entries(vec![
            entry("job", "2026-01-01T00:00:05Z", "status"),
            entry(MANAGER, "2026-01-01T00:00:09Z", "status"),
        ]);
        assert_eq!(heard(&snapshot), Some("2026-01-01T00:00:05Z".parse().expect("a time")));
        assert!(owns_components(&snapshot));
        snapshot.metadata.managed_fields = entries(vec![entry("job", "2026-01-01T00:00:05Z", "status")]);
        assert!(!owns_components(&snapshot));
    }

    #[test]
    fn what_is_to_be_forgotten_is_gathered_by_folder() {
        let mut snapshot = Snapshot::new("s", SnapshotSpec::default());
        assert!(restic_snapshots(&snapshot).is_empty());
        let status = json!({ "components": {
            "dump": { "path": "repository/v1/a/dump", "resticStats": [{ "summary": { "id": "1" } }, { "id": "2" }, {}] },
            "none": { "path": "repository/v1/a/none" },
        } });
        snapshot.status = Some(serde_json::from_value(status).expect("a status"));
        let expected =
            BTreeMap::from([("repository/v1/a/dump".to_owned(), vec!["1".to_owned(), "2".to_owned()])]);
        assert_eq!(restic_snapshots(&snapshot), expected);
    }
}
